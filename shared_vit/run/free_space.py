"""Whether the disk has room for a run's checkpoints, looked at before the first step."""

from __future__ import annotations

import shutil
from pathlib import Path

from shared_vit.errors import UserError
from shared_vit.run.state import TrainState
from shared_vit.weights import checkpoints

_BESIDE = 1 << 20  # bytes: headers, state.json, lines of metrics


def check_free_space(run_dir: Path, state: TrainState, keep: int) -> str:
    """A notice where the disk has room for one checkpoint and not for those that are kept; "" else.

    `keep` checkpoints stay (0: all), and a new one is written before the oldest is removed. Raises
    UserError where there is no room for one.
    """
    arrays = [state.params, *state.slots.values()]
    size = sum(array.nbytes for each in arrays for array in each.values()) + _BESIDE
    try:
        free = shutil.disk_usage(run_dir).free
    except OSError:
        return ""
    if free < size:
        raise UserError(
            f"a checkpoint of this run takes {_shown(size)}, and the disk of {run_dir} has "
            f"{_shown(free)} free: make room, or choose a --run_dir on another disk"
        )
    there = len(checkpoints.steps(run_dir / "checkpoints"))
    more = max(1, (keep or there + 2) + 1 - there)
    if free >= more * size:
        return ""
    kept = "all are kept (--keep=all)" if not keep else f"--keep={keep} needs {more} more"
    return (
        f"the disk of {run_dir} has room for {free // size} checkpoints of {_shown(size)}, and "
        f"{kept}: the run will stop where it is full"
    )


def _shown(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
