"""Trainers in processes of their own, and what of their runs must be equal."""

import functools
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TWINS = ("jax", "torch")


@functools.cache
def environment() -> dict[str, str]:
    """One thread to a process, and JAX's compiled programs kept from process to process."""
    known = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    cache = known or tempfile.mkdtemp(prefix="twinvit_jax_cache_")
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def start(
    twin: str,
    run_dir: Path,
    *flags: str,
    popen: Callable[..., subprocess.Popen] = subprocess.Popen,
    **options: Any,
) -> subprocess.Popen:
    """A trainer in a process group of its own; stdout and stderr go to `run_dir`.log.

    `popen` starts the process.
    """
    run_dir = run_dir.absolute()  # the trainer works in its parent
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with open(log_of(run_dir), "ab") as log:
        command = [sys.executable, str(ROOT / f"train_{twin}.py"), f"--run_dir={run_dir}", *flags]
        options = {"env": environment(), "start_new_session": True, "cwd": run_dir.parent} | options
        return popen(command, stdout=log, stderr=subprocess.STDOUT, **options)


def train(
    twin: str, run_dir: Path, *flags: str, status: int = 0, timeout: float = 300, **options: Any
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


def log_of(run_dir: Path) -> Path:
    return run_dir.with_name(run_dir.name + ".log")


def wait_for(
    condition: Callable[[], Any], process: subprocess.Popen | None = None, timeout: float = 120
) -> bool:
    """Wait until `condition()`; False if the process has ended before."""
    deadline = time.monotonic() + timeout
    while not condition():
        if process is not None and process.poll() is not None:
            return bool(condition())
        if time.monotonic() > deadline:
            raise TimeoutError("waited in vain")
        time.sleep(0.002)
    return True


def digests(run_dir: Path) -> dict[str, str]:
    """SHA-256 of metrics.jsonl and of the weights and moments of every checkpoint."""
    files = [
        *run_dir.glob("metrics.jsonl"),
        *sorted(run_dir.glob("checkpoints/step_*/*.safetensors")),
    ]
    return {str(f.relative_to(run_dir)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
