"""Whole runs, in processes or in this one, what of them must be equal, and small states."""

import dataclasses
import functools
import json
import tempfile
from pathlib import Path

import fork_server
import numpy as np

from benchmarks import runs
from benchmarks.runs import ROOT, TWINS, digests, environment, log_of, wait_for
from shared_vit.run import checkpoint
from shared_vit.run.state import TrainState, first_state

__all__ = [
    "ROOT",
    "TWINS",
    "digests",
    "environment",
    "log_of",
    "start",
    "train",
    "wait_for",
]

# Trainers in processes of their own, with the frameworks imported.
start = functools.partial(runs.start, popen=fork_server.Popen)
train = functools.partial(runs.train, popen=fork_server.Popen)

SMALL_RUN = (
    "--preset=digits", "--depth=2", "--device=cpu", "--steps=20", "--batch_size=32",
    "--dropout=0.1", "--warmup_steps=5",
    "--eval_every=10", "--checkpoint_every=2", "--keep=20",
)  # fmt: skip


def train_here(twin: str, run_dir: Path, *flags: str) -> int:
    """`train` in this process: no start-up, no signals. Float64 in JAX needs x64 on."""
    from shared_vit.run import loop
    from shared_vit.run.command_line import parse
    from shared_vit.run.plan import make_plan

    requested = parse([f"--run_dir={run_dir}", *flags], prog="train")
    settled = dict(
        device="cpu", world_size=1, precision=requested.precision or "fp32", compile="off"
    )
    plan = make_plan(requested.replace(**settled), twin)
    if twin == "jax":
        import jax
        from jax.sharding import Mesh

        from jax_vit.trainer import Trainer

        mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
        return loop.run(plan, 0, lambda state: Trainer(state, plan.recipe, mesh))
    import torch

    from torch_vit.trainer import Trainer

    return loop.run(plan, 0, lambda state: Trainer(state, plan.recipe, torch.device("cpu")))


def metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@functools.cache
def reference(twin: str, *flags: str) -> Path:
    """The folder of a run of `SMALL_RUN` and `flags` that nothing stopped."""
    run_dir = Path(tempfile.mkdtemp(prefix="twinvit_reference_")) / twin
    train(twin, run_dir, *SMALL_RUN, *flags)
    return run_dir


EXTRA = {"epoch": 0.25, "seed": 3, "pending_evaluation": False, "versions": {"framework": "none"}}


def small_state(step: int = 7, precision: str = "fp32") -> TrainState:
    """A state in which every array differs from every other, moments included."""
    from helpers import SMALL, random_arrays  # imports both frameworks

    state = first_state(SMALL, random_arrays(SMALL, seed=step), precision)
    for seed, arrays in enumerate(state.slots.values(), start=1):
        values = random_arrays(SMALL, seed=1000 * seed + step)
        arrays.update(
            {name: np.square(values[name]).astype(array.dtype) for name, array in arrays.items()}
        )
    return dataclasses.replace(state, step=step, scalars=state.scalars | {"adam_count": step - 1})


def save(run_dir: Path, *steps: int, keep: int = 9) -> None:
    """Save small states of these steps."""
    writer = checkpoint.Writer(run_dir, keep)
    for step in steps:
        writer.save(step, functools.partial(small_state, step), EXTRA)
    writer.close()
