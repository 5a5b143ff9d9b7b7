"""Whether the disk has space for a run's checkpoints, checked before the first step."""

from __future__ import annotations

import shutil
from pathlib import Path

from shared_vit.errors import UserError
from shared_vit.run.state import TrainState
from shared_vit.weights import checkpoints

_BESIDE = 1 << 20  # bytes: headers, state.json, lines of metrics


def check_free_space(run_dir: Path, state: TrainState, keep: int) -> str:
    """A notice where the disk has space for one checkpoint but not for all that are retained; else
    "".

    `keep` checkpoints stay (0: all), and a new one is written before the oldest is removed. Raises
    UserError where there is no space for one.
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
            f"{_shown(free)} free: make space, or choose a --run_dir on another disk"
        )
    there = len(checkpoints.steps(run_dir / "checkpoints"))
    more = max(1, (keep or there + 2) + 1 - there)
    if free >= more * size:
        return ""
    kept = "all are retained (--keep=all)" if not keep else f"--keep={keep} needs {more} more"
    return (
        f"the disk of {run_dir} has space for {free // size} checkpoints of {_shown(size)}, and "
        f"{kept}: the run will stop where it is full"
    )


def _shown(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
