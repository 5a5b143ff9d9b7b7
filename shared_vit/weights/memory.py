"""In which dtype a model's weights are held, and whether there is memory for them."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np

from shared_vit.errors import UserError
from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.precision import PRECISIONS
from shared_vit.weights.adapt import DTYPES, cast
from shared_vit.weights.lazy import Arrays

LARGE = 10**9  # parameters from which on the memory is said before it is taken


def held(
    cfg: ModelConfig, arrays: Arrays, precision: str, dtype: str | None, in_host: bool = True
) -> Arrays:
    """Canonical arrays as a model of a precision holds them: in `dtype`, else in the dtype of the
    precision's parameters. They are lazy, so that one is converted at a time.

    What a model of billions of parameters takes is printed; `in_host` says whether it is this
    machine's own memory. Raises UserError for an unknown dtype, one wider than the precision's
    parameters, missing or unknown arrays, a model that does not fit in memory, and, when an array
    is read, for values that do not fit in a `dtype` that was named.
    """
    canonical.check(cfg, arrays)
    kind = held_dtype(precision, dtype)
    if in_host:
        check_memory(cfg, kind)
    return {
        name: cast(name, array, kind, check=dtype is not None) for name, array in arrays.items()
    }


def held_dtype(precision: str, dtype: str | None) -> np.dtype:
    """The dtype in which a model holds its weights. Raises UserError."""
    widest = np.dtype(PRECISIONS[precision].param)
    if dtype is None:
        return widest
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}: choose from {', '.join(DTYPES)}")
    if DTYPES[dtype].itemsize > widest.itemsize:
        raise UserError(
            f"precision={precision!r} computes in {widest.name} at most, and weights in {dtype} "
            "would be rounded where they are used: add precision='fp64', or choose another dtype"
        )
    return DTYPES[dtype]


def check_memory(cfg: ModelConfig, dtype: np.dtype) -> None:
    """Raise UserError where a model's weights do not fit in the memory that is free; print a line
    before those of a large model do."""
    count = sum(math.prod(shape) for shape in canonical.shapes(cfg).values())
    need, free = count * dtype.itemsize, free_memory()
    size = f"{_number(count)} parameters take {_gigabytes(need)} in {dtype.name}"
    if free is None:
        there = "how much memory is free is not known here"
    else:
        there = f"{_gigabytes(free)} of memory are free"
    if free is not None and need > free:
        narrow = 2 * count
        fix = "a machine with more memory can hold them"
        if dtype.itemsize > 2 and narrow <= free:
            fix = f"dtype='bf16' holds them in {_gigabytes(narrow)}"
        raise UserError(f"this model does not fit: its {size}, and {there}: {fix}")
    if count >= LARGE:
        print(f"notice: {size}; {there}", file=sys.stderr, flush=True)


def free_memory() -> int | None:
    """Bytes of memory that are free to take, with swap, within the limit of the control group; None
    where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        known = {key: int(rest.split()[0]) for key, _, rest in (x.partition(":") for x in lines)}
        free = 1024 * (known["MemAvailable"] + known["SwapFree"])
    except (OSError, KeyError, ValueError, IndexError):
        return None
    group = Path("/sys/fs/cgroup")
    try:
        most, now = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(x.split() for x in (group / "memory.stat").read_text().splitlines())
        return min(free, max(0, most - now + int(stat["file"])))  # files' pages can be given back
    except (OSError, KeyError, ValueError):  # without a limit, memory.max is "max"
        return free


def _number(count: int) -> str:
    return f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
