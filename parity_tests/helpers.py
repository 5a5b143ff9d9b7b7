"""What the tests share: small models, weights that hide nothing, and distances."""

import numpy as np

from shared_vit.config import ModelConfig
from shared_vit.weights import canonical

SMALL = ModelConfig(image_size=24, patch_size=8, width=60, depth=3, num_heads=5, mlp_dim=100, num_classes=7)


def random_arrays(cfg: ModelConfig, seed: int = 0, dtype=np.float32) -> dict[str, np.ndarray]:
    """Weights in which no tensor is zero or constant, biases and norms included, at the scale of a trained model's."""
    rng = np.random.default_rng(seed)
    arrays = {}
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


def relative_l2(a, b) -> float:
    """|a - b| / |b|, in float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
