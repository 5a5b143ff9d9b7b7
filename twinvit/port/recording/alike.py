"""Whether operands are those that an operation was recorded with, element by element."""

from __future__ import annotations

import numpy as np

from twinvit.port.verdict import dwarfing, kinds

SAME = 1e-8
"""Relative: numbers that are nearer are the recorded ones, changed by rounding; those of random
inputs are not."""


def alike(given: np.ndarray, recorded: np.ndarray) -> bool:
    """True if two arrays of float64, complex128, integers or booleans hold the same values at the
    same places but for rounding. Masks and other constants much larger than the rest hide
    nothing."""
    if given.shape != recorded.shape:
        return False
    if given.dtype.kind not in "fc" or recorded.dtype.kind not in "fc":
        return np.array_equal(given, recorded)
    if given.dtype.kind == "c" or recorded.dtype.kind == "c":
        return alike(given.real, recorded.real) and alike(given.imag, recorded.imag)
    if not np.array_equal(kinds(given), kinds(recorded)):
        return False
    finite = np.isfinite(recorded)
    a, b = given[finite].astype(np.float64), recorded[finite].astype(np.float64)
    masks = dwarfing(b)
    rest = b if masks is None else b[~masks]
    usual = float(np.median(np.abs(rest))) if rest.size else 0.0
    return bool((np.abs(a - b) <= SAME * (np.abs(b) + usual)).all())
