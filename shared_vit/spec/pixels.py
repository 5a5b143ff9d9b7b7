"""Pixels to the values that a model takes."""

import numpy as np

from shared_vit.spec.config import ModelConfig


def normalization(cfg: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """`(scale, shift)`, float64 [3] each, such that scale x + shift = (x / 255 - mean) / std for
    uint8 x in RGB."""
    mean, std = np.array(cfg.mean), np.array(cfg.std)
    return 1 / (255 * std), -mean / std
