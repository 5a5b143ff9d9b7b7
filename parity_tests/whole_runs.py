"""Whole runs, in processes or in this one, what of them must be equal, and small states."""

import dataclasses
import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from shared_vit.run import checkpoint
from shared_vit.run.state import TrainState, first_state

ROOT = Path(__file__).resolve().parents[1]
TWINS = ("jax", "torch")
SMALL_RUN = (
    "--preset=digits", "--device=cpu", "--steps=20", "--batch_size=32",
    "--dropout=0.1", "--warmup_steps=5",
    "--eval_every=10", "--checkpoint_every=2", "--keep=20",
)  # fmt: skip


@functools.cache
def environment() -> dict[str, str]:
    """One thread to a process, and JAX's compiled programs kept from process to process."""
    cache = tempfile.mkdtemp(prefix="twinvit_jax_cache_")
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def start(twin: str, run_dir: Path, *flags: str, **options) -> subprocess.Popen:
    """A trainer in a process group of its own; stdout and stderr go to `run_dir`.log."""
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with open(log_of(run_dir), "ab") as log:
        command = [sys.executable, str(ROOT / f"train_{twin}.py"), f"--run_dir={run_dir}", *flags]
        options = {"env": environment(), "start_new_session": True, "cwd": run_dir.parent} | options
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **options)


def train(
    twin: str, run_dir: Path, *flags: str, status: int = 0, timeout: float = 300, **options
) -> str:
    """Run a trainer to its end, which must be this exit status; returns the whole log so far."""
    process = start(twin, run_dir, *flags, **options)
    try:
        found = process.wait(timeout)
    finally:
        process.kill()
    said = log_of(run_dir).read_text()
    assert found == status, f"exit status {found}, expected {status}:\n{said}"
    return said


def train_here(twin: str, run_dir: Path, *flags: str) -> int:
    """`train` in this process: no start-up, no signals. Float64 in JAX needs x64 on."""
    from shared_vit.run import loop
    from shared_vit.run.command_line import parse
    from shared_vit.run.plan import make_plan

    asked = parse([f"--run_dir={run_dir}", *flags], prog="train")
    settled = dict(device="cpu", world_size=1, precision=asked.precision or "fp32", compile="off")
    plan = make_plan(asked.replace(**settled), twin)
    if twin == "jax":
        import jax
        from jax.sharding import Mesh

        from jax_vit.trainer import Trainer

        mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
        return loop.run(plan, 0, lambda state: Trainer(state, plan.recipe, mesh))
    import torch

    from torch_vit.trainer import Trainer

    return loop.run(plan, 0, lambda state: Trainer(state, plan.recipe, torch.device("cpu")))


def log_of(run_dir: Path) -> Path:
    return run_dir.with_name(run_dir.name + ".log")


def wait_for(condition, process: subprocess.Popen | None = None, timeout: float = 120) -> bool:
    """Wait until `condition()`; False if the process has ended before."""
    deadline = time.monotonic() + timeout
    while not condition():
        if process is not None and process.poll() is not None:
            return bool(condition())
        if time.monotonic() > deadline:
            raise TimeoutError("waited in vain")
        time.sleep(0.002)
    return True


def metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def digests(run_dir: Path) -> dict[str, str]:
    """SHA-256 of metrics.jsonl and of the weights and moments of every checkpoint."""
    files = [
        *run_dir.glob("metrics.jsonl"),
        *sorted(run_dir.glob("checkpoints/step_*/*.safetensors")),
    ]
    return {str(f.relative_to(run_dir)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


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
