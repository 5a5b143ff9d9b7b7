"""PyTorch's resizes as matrices; JAX's differ in antialiasing, in the cubic's A and at edges."""

import numpy as np


def bilinear(old: int, new: int, align_corners: bool = False) -> np.ndarray:
    """(new, old) weights of `F.interpolate(mode="bilinear")` along one axis."""
    if align_corners:
        places = np.arange(new) * (old - 1) / (new - 1)
    else:
        places = np.maximum((np.arange(new) + 0.5) * old / new - 0.5, 0)
    low = np.minimum(np.floor(places).astype(int), old - 1)
    weights = np.zeros((new, old))
    np.add.at(weights, (np.arange(new), low), 1 - (places - low))
    np.add.at(weights, (np.arange(new), np.minimum(low + 1, old - 1)), places - low)
    return weights


def bicubic(old: int, new: int, a: float = -0.75) -> np.ndarray:
    """(new, old) weights of `F.interpolate(mode="bicubic")` along one axis: edges repeated."""
    places = (np.arange(new) + 0.5) * old / new - 0.5
    low = np.floor(places).astype(int)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        t = np.abs(places - low - tap)
        near = ((a + 2) * t - (a + 3)) * t * t + 1
        far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
        index = np.clip(low + tap, 0, old - 1)
        np.add.at(weights, (np.arange(new), index), np.where(t <= 1, near, far))
    return weights
