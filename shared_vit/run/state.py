"""What passes between the training loop and a trainer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from shared_vit.data.batch import Batch
from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.precision import PRECISIONS


@dataclass
class TrainState:
    """All that a run continues from, as canonical arrays in the parameters' dtype.

    step counts updates done (skipped ones of fp16 too); adam_count those that Adam made; the moments have the names of
    the trained parameters; scaler is fp16's {"scale", "growth_tracker"}, else None.
    """

    config: ModelConfig
    step: int
    params: dict[str, np.ndarray]
    exp_avg: dict[str, np.ndarray]
    exp_avg_sq: dict[str, np.ndarray]
    adam_count: int
    scaler: dict[str, float] | None = None


class StepMetrics(NamedTuple):
    """One update's numbers over the global batch; grad_norm is that before clipping."""

    loss: float
    grad_norm: float
    skipped: bool  # fp16 only: the gradient was not finite, the scaler went down, no weight moved
    stop: bool  # whether any process had asked to stop when the step began


class Counts(NamedTuple):
    """An evaluation's sums over real (weight 1) examples of the global batch."""

    correct1: float
    correct5: float
    loss_sum: float
    count: float
    stop: bool


class Lazy(Protocol):
    """A result still on its way from the device."""

    def get(self) -> Any:
        """Wait for this result (not for what was queued after it) and return its StepMetrics or Counts."""
        ...


class Trainer(Protocol):
    """The arithmetic of one framework. Arrays go in and out as canonical NumPy arrays; steps are not waited for."""

    process: int
    num_processes: int
    compile_seconds: float | None  # of the first training step, once it has run

    def load(self, state: TrainState) -> None: ...

    def state(self) -> TrainState: ...

    def snapshot(self) -> Callable[[], TrainState]: ...

    def put(self, batch: Batch) -> Any:
        """Start the batch's copy to the device; the result goes to a step."""
        ...

    def train_step(self, batch: Any, lr: float, stop: bool = False) -> Lazy: ...

    def eval_step(self, batch: Any, stop: bool = False) -> Lazy: ...

    def versions(self) -> dict[str, str]:
        """Framework, version, device kind and count, for the record."""
        ...


def first_state(cfg: ModelConfig, params: dict[str, np.ndarray], precision: str) -> TrainState:
    """The state before the first update: `params` in the parameters' dtype, moments of zero."""
    dtype = np.dtype(PRECISIONS[precision].param)
    params = {name: np.asarray(params[name], dtype) for name in canonical.shapes(cfg)}
    names = canonical.trained(cfg, params)
    return TrainState(
        config=cfg,
        step=0,
        params=params,
        exp_avg={n: np.zeros_like(params[n]) for n in names},
        exp_avg_sq={n: np.zeros_like(params[n]) for n in names},
        adam_count=0,
        scaler={"scale": 65536.0, "growth_tracker": 0} if precision == "fp16" else None,
    )
