"""What passes between the training loop and a trainer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from shared_vit.data.batch import Batch
from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.lr_scales import trained_names
from shared_vit.spec.optimizers import ADAM_SLOTS, EMA, slots_of
from shared_vit.spec.precision import PRECISIONS
from shared_vit.spec.recipe import Recipe


@dataclass
class TrainState:
    """All that a run continues from, as canonical arrays in the parameters' dtype.

    step counts updates done (skipped ones of fp16 too). slots are the optimizer's arrays, {slot:
    {name: array}}, with the names and shapes of the trained parameters: Adam's `exp_avg` and
    `exp_avg_sq`, SGD's `momentum_buffer`, and `ema`, the averaged weights. scalars are its single
    numbers: `adam_count`, the updates that the optimizer made, and fp16's `scale` and
    `growth_tracker`.
    """

    config: ModelConfig
    step: int
    params: dict[str, np.ndarray]
    slots: dict[str, dict[str, np.ndarray]]
    scalars: dict[str, Any]


class StepScalars(NamedTuple):
    """What the host sets for one update."""

    lr: float


class StepMetrics(NamedTuple):
    """One update's metrics over the global batch; grad_norm is that before clipping."""

    loss: float
    grad_norm: float
    skipped: bool  # fp16 only: gradient not finite, loss scale lowered, no weight changed
    stop: bool  # whether any process had requested to stop when the step began


class Counts(NamedTuple):
    """An evaluation's sums over real (weight 1) examples of the global batch."""

    correct1: float
    correct5: float
    loss_sum: float
    examples: float
    stop: bool


class Lazy(Protocol):
    """A result still on its way from the device."""

    def get(self) -> Any:
        """Wait for this result (not for what was queued after it) and return its StepMetrics or
        Counts."""
        ...


class Trainer(Protocol):
    """The arithmetic of one framework.

    Arrays go in and out as canonical NumPy arrays; steps are not waited for.
    """

    process: int
    num_processes: int
    sharded: bool  # whether `state` and `snapshot` gather arrays, and every process must call them

    @property
    def compile_seconds(self) -> float | None:
        """Of the first training step, once it has run."""
        ...

    def load(self, state: TrainState) -> None: ...

    def load_params(self, params: Mapping[str, np.ndarray]) -> None:
        """Take over parameters alone, on which `gradients` depends."""
        ...

    def state(self) -> TrainState: ...

    def snapshot(self) -> Callable[[], TrainState]: ...

    def to_device(self, batch: Batch) -> Any:
        """Start the batch's copy to the device; the result goes to a step."""
        ...

    def train_step(self, batch: Any, scalars: StepScalars, stop: bool = False) -> Lazy:
        """One update from `put`'s batch; `stop` makes every process stop."""
        ...

    def gradients(self, batch: Any) -> tuple[Lazy, dict[str, np.ndarray]]:
        """The StepMetrics and the unclipped gradients of the global mean loss, by canonical name.

        Nothing moves.
        """
        ...

    def update(self, grads: dict[str, np.ndarray], scalars: StepScalars) -> None:
        """Clip and step on given gradients, as `gradients` returns them."""
        ...

    def eval_step(self, batch: Any, stop: bool = False, averaged: bool = False) -> Lazy:
        """Counts of a batch, by the weights or, if `averaged`, by their moving average."""
        ...

    def versions(self) -> dict[str, str]:
        """Framework, version, device kind and count, for the record."""
        ...


def first_state(
    cfg: ModelConfig, params: dict[str, np.ndarray], precision: str, recipe: Recipe | None = None
) -> TrainState:
    """The state before the first update: `params` in the parameters' dtype, moments of zero.

    The slots are those of `recipe`, or Adam's of all tensors that can be trained. An average of the
    weights begins as their copy.
    """
    dtype = np.dtype(PRECISIONS[precision].param)
    params = {name: np.asarray(params[name], dtype) for name in canonical.shapes(cfg)}
    names = canonical.trained(cfg, params) if recipe is None else trained_names(recipe)
    slots = ADAM_SLOTS if recipe is None else slots_of(recipe)
    scaler = {"scale": 65536.0, "growth_tracker": 0}
    return TrainState(
        config=cfg,
        step=0,
        params=params,
        slots={
            slot: {n: params[n].copy() if slot == EMA else np.zeros_like(params[n]) for n in names}
            for slot in slots
        },
        scalars={"adam_count": 0} | (scaler if precision == "fp16" else {}),
    )
