"""Arrays identified by the sum of their values' hashes, whatever the order."""

from __future__ import annotations

import numpy as np


def total(hashed: np.ndarray) -> int:
    """The sum of hashes."""
    return int(hashed.sum(dtype=np.uint64))


def hashes(array: np.ndarray) -> np.ndarray:
    """A hash of each number, uint64; equal values have equal ones (0.0 and -0.0 are equal)."""
    bits = np.ascontiguousarray(array + 0.0).view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits ^= bits >> np.uint64(29)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(32)
    return bits
