"""The difference of two arrays, in words."""

from __future__ import annotations

import numpy as np


def residual(mine: np.ndarray, theirs: np.ndarray) -> str:
    """What the difference of two arrays looks like, in words."""
    diff = theirs - mine
    size = float(np.linalg.norm(diff))
    if not np.isfinite(size) or not size:
        return ""
    if np.allclose(mine, theirs, rtol=1e-9, atol=0):
        return ""  # the two go apart after this
    if np.allclose(np.sort(mine.reshape(-1)), np.sort(theirs.reshape(-1)), rtol=1e-9, atol=0):
        return "is nothing but another order of the same values"
    scale = float(np.vdot(mine, theirs) / max(float(np.vdot(mine, mine)), 1e-300))
    if np.linalg.norm(theirs - scale * mine) < 1e-6 * size:
        return f"is a scale: the port's is {scale:.6g} times the reference's"
    for axis in range(mine.ndim):
        if (
            mine.shape[axis] > 1
            and np.linalg.norm(diff - diff.mean(axis, keepdims=True)) < 1e-6 * size
        ):
            return f"is constant over axis {axis}"
    part = np.abs(diff) > 1e-9 * np.abs(diff).max()
    share = float(part.mean())
    if share < 0.5:
        for axis in range(mine.ndim):
            rows = np.flatnonzero(part.any(axis=tuple(a for a in range(mine.ndim) if a != axis)))
            n = mine.shape[axis]
            if 0 < rows.size < n:
                if rows.size <= 2 and set(rows) <= {0, n - 1}:
                    return f"is at the border of axis {axis} only"
                return f"is at positions {_ranges(rows)} of axis {axis} only"
        return f"is in {share:.0%} of the numbers only"
    for axis in range(mine.ndim):
        n = mine.shape[axis]
        if n >= 6:
            along = np.sqrt((diff**2).mean(axis=tuple(a for a in range(mine.ndim) if a != axis)))
            if (np.diff(along) > 0).mean() > 0.9:
                return f"grows with the position along axis {axis}"
    if mine.ndim >= 2:
        flat = diff.reshape(-1, diff.shape[-1])
        if min(flat.shape) > 4 and flat.size < 1 << 20:
            s = np.linalg.svd(flat[:512], compute_uv=False)
            rank = int((s > 1e-9 * s[0]).sum())
            if rank * 3 <= min(flat[:512].shape):
                return f"has rank {rank}"
    return f"is spread over the array, {size / max(float(np.linalg.norm(mine)), 1e-300):.1e} of it"


def _ranges(rows: np.ndarray) -> str:
    if rows.size > 1 and rows[-1] - rows[0] == rows.size - 1:
        return f"{rows[0]} to {rows[-1]}"
    return ", ".join(map(str, rows[:6])) + (", ..." if rows.size > 6 else "")
