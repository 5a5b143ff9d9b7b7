"""Constants by which a gradient of the reference is one of the port's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from twinvit.port.index import Index, evidence, fingerprint
from twinvit.port.verdict import relative

EQUAL = 1e-9  # relative L2 up to which a gradient with a constant is the port's
SLACK = 1e-9  # of a gradient's size, by which rounding may seem to clip it
CLIPPED = 256  # gradients of the port that are tried as clipped ones, at most


def factors(index: Index, g: np.ndarray) -> Iterator[tuple[float, int]]:
    """Factors other than 1 with which the port holds a gradient, and its entries, the first ones
    first."""
    if not evidence(g) or not np.isfinite(g).all():
        return
    mine, table, ids = fingerprint(g), index.table(g.size), index.ids(g.size)
    if not len(table) or mine[5] or not mine[1]:
        return
    ratio = table[:, 1] / mine[1]
    for k in np.flatnonzero((ratio > 0) & np.isfinite(ratio) & (table[:, 5] == 0)):
        for factor in (float(ratio[k]), -float(ratio[k])):
            if abs(factor - 1) < EQUAL or not _alike(mine, table[k], factor):
                continue
            theirs = index.sorted(ids[k])
            if theirs is not None and theirs.size == g.size:
                if relative(theirs, np.sort(factor * g, axis=None)) <= EQUAL:
                    yield _rounded(factor), ids[k]


def _alike(mine: np.ndarray, theirs: np.ndarray, factor: float) -> bool:
    """True if the moments of an array times a factor may be those of another one."""
    low, high = sorted((factor * mine[3], factor * mine[4]))
    expected = np.array([factor * mine[0], abs(factor) * mine[2], high, low])
    far = np.abs(theirs[[0, 2, 3, 4]] - expected)
    return bool(far.max() <= 1e-8 * max(theirs[1], high, -low))


def _rounded(x: float) -> float:
    """The number with fewer digits that this one is but for rounding."""
    for digits in (6, 9):
        near = float(f"{x:.{digits}g}")
        if abs(near - x) <= 1e-11 * abs(x):
            return near
    return x


def bounds(index: Index, g: np.ndarray) -> Iterator[tuple[float, float, int]]:
    """Ranges that the port holds a gradient clipped to, and its entries."""
    if not evidence(g) or not np.isfinite(g).all():
        return
    mine, ids = np.sort(g, axis=None), index.ids(g.size)
    table, size = index.table(g.size), float(np.sqrt(np.mean(g**2)))
    if not len(table) or not size:
        return
    found: list[tuple[bool, float, float, int]] = []
    for k in np.flatnonzero(table[:, 1] < size)[:CLIPPED]:
        high, low = float(table[k, 3]), float(table[k, 4])
        above, below = mine[-1] - high > SLACK * size, low - mine[0] > SLACK * size
        if not low < high or not (above or below):
            continue
        theirs = index.sorted(ids[k])
        clipped = np.clip(mine, low, high)
        if theirs is None or theirs.size != mine.size or relative(theirs, clipped) > EQUAL:
            continue
        low, high = _rounded(low), _rounded(high)
        if above and below:
            found.append((False, low, high, ids[k]))
        elif above:  # whether it is clipped below cannot be seen
            found += [(True, -high, high, ids[k])] if -high <= mine[0] else []
            found.append((True, -np.inf, high, ids[k]))
        else:
            found += [(True, low, -low, ids[k])] if -low >= mine[-1] else []
            found.append((True, low, np.inf, ids[k]))
    yield from ((low, high, entry) for _, low, high, entry in sorted(found, key=lambda f: f[0]))


def factor_between(mine: np.ndarray, theirs: np.ndarray) -> float | None:
    """The factor by which one array is another, in the same order; None if there is none."""
    if mine.shape != theirs.shape or not np.isfinite(mine).all() or not np.isfinite(theirs).all():
        return None
    size = float(np.vdot(mine, mine))
    if not size:
        return None
    factor = float(np.vdot(mine, theirs)) / size
    return _rounded(factor) if relative(theirs, factor * mine) <= EQUAL and factor else None


def range_between(mine: np.ndarray, theirs: np.ndarray) -> tuple[float, float] | None:
    """The range to which one array clipped is another, in the same order; None if there is
    none."""
    if mine.shape != theirs.shape or not np.isfinite(mine).all():
        return None
    low, high = float(theirs.min()), float(theirs.max())
    if not low < high or (high >= mine.max() and low <= mine.min()):
        return None
    return (low, high) if relative(theirs, np.clip(mine, low, high)) <= EQUAL else None
