"""The initial weights, sampled once with NumPy for both twins."""

import zlib

import numpy as np

from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.distributions import SinCos2d


def draw(cfg: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """First weights: `{canonical name: float32 array}`, from the distributions of the rows.

    Each tensor's values depend on (seed, its name, its shape) alone.
    """
    rows = canonical.arrays(cfg)
    return {name: row.init.draw(_rng(seed, name), row.shape) for name, row in rows.items()}


def sincos2d(cfg: ModelConfig) -> np.ndarray:
    """Fixed positions of the model's size: float32 [1, rows, width], zero for the tokens before the
    patches'."""
    shape = (1, cfg.position_rows, cfg.width)
    return SinCos2d(cfg.grid).draw(None, shape)


def _rng(seed: int, name: str) -> np.random.RandomState:
    """RandomState, whose streams NumPy has frozen (NEP 19): a seed keeps its weights for ever."""
    return np.random.RandomState(
        np.random.MT19937(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))
    )
