"""Arrays identified by the sum of their values' hashes, whatever the order."""

from __future__ import annotations

import numpy as np

PART = 1 << 16  # numbers that are hashed at once


def total(hashed: np.ndarray) -> int:
    """The sum of hashes."""
    return int(hashed.sum(dtype=np.uint64))


def whole(array: np.ndarray) -> int:
    """The sum of the hashes of an array's numbers, in float64, without an array of them all."""
    flat = np.ascontiguousarray(array).reshape(-1)
    parts = (flat[k : k + PART].astype(np.float64) for k in range(0, flat.size, PART))
    return sum(total(hashes(part)) for part in parts) & 0xFFFFFFFFFFFFFFFF


def hashes(array: np.ndarray) -> np.ndarray:
    """A hash of each number, uint64; equal values have equal ones (0.0 and -0.0 are equal)."""
    bits = np.ascontiguousarray(array + 0.0).view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits ^= bits >> np.uint64(29)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(32)
    return bits
