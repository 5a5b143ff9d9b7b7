"""Relative positions of BEiT (Bao et al. 2022): which row of a table is added to which score."""

from __future__ import annotations

from functools import cache

import numpy as np


def table_rows(grid: tuple[int, int]) -> int:
    """Rows of a table for a grid (rows, columns)."""
    rows, columns = grid
    return (2 * rows - 1) * (2 * columns - 1) + 3


@cache
def index(grid: tuple[int, int]) -> np.ndarray:
    """The table's row for each query and key, int64 [tokens, tokens] with a class token first.

    Patches at distance (dy, dx) of a grid (rows, columns) use the row (dy + rows - 1)
    (2 columns - 1) + dx + columns - 1. The last three rows are the class token's: to the patches,
    from them, and to itself.
    """
    rows, columns = grid
    y, x = (a.ravel() for a in np.mgrid[:rows, :columns])
    count = table_rows(grid)
    found = np.empty((rows * columns + 1,) * 2, np.int64)
    dy, dx = y[:, None] - y[None], x[:, None] - x[None]
    found[1:, 1:] = (dy + rows - 1) * (2 * columns - 1) + dx + columns - 1
    found[0], found[:, 0], found[0, 0] = count - 3, count - 2, count - 1
    found.flags.writeable = False  # every caller gets the same array
    return found
