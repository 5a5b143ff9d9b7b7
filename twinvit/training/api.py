"""Training from Python: `twinvit.train` for a complete run, `twinvit.trainer` for its steps."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Unpack

from shared_vit.data.batch import Batch
from shared_vit.data.pipeline import Batches
from shared_vit.errors import UserError
from shared_vit.run.directory import METRICS
from shared_vit.run.evaluation import evaluate
from shared_vit.run.interrupt import EXIT_INTERRUPTED, Interrupt
from shared_vit.run.plan import Plan, free_run_dir
from shared_vit.run.state import StepMetrics, StepScalars, Trainer, TrainState
from twinvit.frameworks import FRAMEWORKS, Framework
from twinvit.training.flags import Flags, requested


@dataclass(frozen=True)
class Run:
    """A run on disk.

    path: its folder. framework: of the twin that trained it. interrupted: whether it was stopped by
    a signal, was saved, and goes on with `train(resume=True, run_dir=run.path)`.
    """

    path: Path
    framework: Framework
    interrupted: bool = False

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: each update's loss, grad norm and learning rate, each
        evaluation."""
        return [json.loads(line) for line in (self.path / METRICS).read_text().splitlines()]

    @cached_property
    def model(self) -> Any:
        """The twin with the newest checkpoint's weights, in eval mode."""
        return importlib.import_module(f"{self.framework}_vit").load(self.path)


def train(framework: Framework = "torch", **flags: Unpack[Flags]) -> Run:
    """Train one twin by the flags of `twinvit train`, in this process; the run, once it has ended.

    It prints what the command prints. Call it in the main thread, which takes Ctrl-C and SIGTERM;
    for several devices of PyTorch, which are processes, under `if __name__ == "__main__":`. Raises
    UserError for what cannot work.
    """
    _check(framework)
    wanted = requested(flags, "twinvit.train")
    run_dir = wanted.run_dir or str(free_run_dir(wanted.preset, framework))
    wanted = wanted.replace(run_dir=run_dir)
    with _as_before(framework):
        status = importlib.import_module(f"{framework}_vit.train").train(wanted)
    if status not in (0, EXIT_INTERRUPTED):
        raise UserError(f"the run in {run_dir} failed; its messages say why")
    return Run(Path(run_dir), framework, interrupted=status == EXIT_INTERRUPTED)


def trainer(framework: Framework = "torch", **flags: Unpack[Flags]) -> Stepper:
    """What trains one twin by the flags of `twinvit train`, step by step, in one process.

    Nothing is written. Raises UserError for what cannot work.
    """
    _check(framework)
    wanted = requested(flags, "twinvit.trainer")
    if framework == "torch" and (wanted.world_size or 1) > 1:
        raise UserError("twinvit.trainer is one process, in PyTorch one device: world_size=1")
    if framework == "torch":
        wanted = wanted.replace(world_size=1)
    made = importlib.import_module(f"{framework}_vit.train").make(wanted)
    return Stepper(framework, *made)


class Stepper:
    """A model in training and its data.

    plan: every setting, resolved (`plan.recipe`, `plan.model`, `plan.dataset`). step_count: updates
    done. trainer: the framework's own `Trainer`, for gradients, state and more.
    """

    def __init__(self, framework: Framework, plan: Plan, trainer: Trainer, step_count: int):
        self.framework, self.plan, self.trainer = framework, plan, trainer
        self.step_count = step_count

    def batches(self, split: Literal["train", "val"] = "train") -> Batches:
        """Batches of images uint8 [B, H, W, 3] and labels int32 [B], as numpy arrays: of training
        endless, from the next update on; of validation each example once."""
        start = self.step_count if split == "train" else 0
        return self.plan.batches(split, start)

    def step(self, batch: Batch, lr: float | None = None) -> StepMetrics:
        """One update; its loss and the gradient's norm, once they are computed. `lr` instead of
        the schedule's learning rate."""
        rate = self.plan.lr(self.step_count) if lr is None else lr
        result = self.trainer.train_step(self.trainer.to_device(batch), StepScalars(rate))
        self.step_count += 1
        return result.get()

    def evaluate(self) -> dict[str, float]:
        """val_loss, val_top1 and val_top5 (fractions of 1), val_count on the validation split."""
        result = evaluate(self.plan, self.trainer, Interrupt())
        assert result is not None  # nothing stops it
        return result

    def state(self) -> TrainState:
        """A copy of everything that training changes, as canonical numpy arrays."""
        return self.trainer.state()

    def save(self, path: str | Path) -> None:
        """Write the weights as a canonical file, which both twins load."""
        from shared_vit import weights

        state = self.state()
        weights.write(path, state.config, state.params, class_names=self.plan.class_names)


def _check(framework: str) -> None:
    if framework not in FRAMEWORKS:
        raise UserError(f"framework is one of {', '.join(FRAMEWORKS)}, not {framework!r}")


@contextmanager
def _as_before(framework: Framework) -> Iterator[None]:
    """Restore JAX's settings of dtypes afterwards."""
    if framework != "jax":
        yield
        return
    import jax

    before = jax.config.jax_enable_x64
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)
