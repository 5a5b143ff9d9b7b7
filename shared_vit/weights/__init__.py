"""Weights on disk: canonical arrays from and to every known format."""

import os

import numpy as np

from shared_vit.config import ModelConfig
from shared_vit.weights import native
from shared_vit.weights.lazy import Arrays


def read(
    path: str | os.PathLike, format: str = "auto", num_heads: int | None = None
) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """`(cfg, arrays)` of a weight file, run directory or checkpoint; canonical names, dtypes as in the file."""
    cfg, arrays = native.open_model(path)
    return cfg, {name: np.asarray(array) for name, array in arrays.items()}


def write(path: str | os.PathLike, cfg: ModelConfig, arrays: Arrays, format: str = "torch") -> None:
    """Write canonical arrays in a format; nothing is left behind when it fails."""
    native.write(path, cfg, arrays)
