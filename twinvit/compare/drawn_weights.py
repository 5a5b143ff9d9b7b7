"""Random weights, sampled so that no error is hidden by them."""

from __future__ import annotations

import numpy as np

from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig


def random_arrays(
    cfg: ModelConfig, seed: int = 0, dtype: type = np.float32
) -> dict[str, np.ndarray]:
    """Weights of which none is zero or constant, biases and norms included.

    Their scale is that of a trained model, so that no error hides behind a zero head.
    """
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for name, shape in canonical.shapes(cfg).items():
        values = rng.standard_normal(shape)
        if name.endswith("weight") and len(shape) > 1:
            values *= 1.5 / np.sqrt(np.prod(shape[1:]))
        elif "norm" in name and name.endswith("weight"):
            values = 1 + 0.2 * values
        else:
            values *= 0.2
        arrays[name] = values.astype(np.float32).astype(dtype)
    return arrays
