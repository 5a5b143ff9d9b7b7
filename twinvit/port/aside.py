"""Arrays that are not read for a while are kept in a temporary file, and read from there."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import numpy as np

LEAST = 1 << 26  # bytes of arrays that are worth a file


def set_aside(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The same arrays, those that are contiguous with their numbers in a file that has no name and
    ends with them: what is read is in memory again, until the system needs that. The arrays
    themselves where they are few, or where no file can be written.

    Args:
        arrays: of any shapes and types that hold no objects; those of the same memory are written
            once.
    """
    places = {_place(x): 0 for x in arrays if _can(x)}
    if sum(size for _, size in places) < LEAST:
        return list(arrays)
    try:
        with tempfile.TemporaryFile() as file:
            for x in arrays:
                if _can(x) and not places[_place(x)]:
                    places[_place(x)] = file.seek(-file.tell() % 64, 1) + 1
                    file.write(x.data.cast("B"))
            file.flush()
            mapped = np.memmap(file, np.uint8, mode="c")
    except OSError:
        return list(arrays)
    return [
        np.ndarray(x.shape, x.dtype, mapped, places[_place(x)] - 1) if _can(x) else x
        for x in arrays
    ]


def _can(x: np.ndarray) -> bool:
    return bool(x.flags.c_contiguous and x.size and x.dtype.kind in "fiub")


def _place(x: np.ndarray) -> tuple[int, int]:
    """Where in memory its numbers are, and how many bytes they take."""
    return x.__array_interface__["data"][0], x.nbytes
