"""The first weights, drawn once with NumPy for both twins: the distributions of Google's ViT (Dosovitskiy et al. 2021)."""

import math
import zlib

import numpy as np

from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig

# The standard deviation of a unit normal cut at two deviations, by which Flax's `lecun_normal` divides.
TRUNCATED_STD = 0.87962566103423978


def draw(cfg: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """First weights: `{canonical name: float32 array}`.

    Xavier-uniform products (each of q, k, v as a matrix of its own), LeCun truncated normal for the patch embedding and
    the pre-logits layer, positions N(0, 0.02) or fixed sines, MLP biases N(0, 1e-6), unit norms, all else zero, the
    head included. Each tensor's numbers depend on (seed, its name) alone.
    """
    return {
        name: _draw_one(cfg, name, shape, seed) for name, shape in canonical.shapes(cfg).items()
    }


def _draw_one(cfg: ModelConfig, name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = _rng(seed, name)
    if name == "pos_embed":
        return (
            sincos2d(cfg)
            if cfg.pos_embed == "sincos2d"
            else rng.normal(0, 0.02, shape).astype(np.float32)
        )
    if name.endswith(".bias"):
        return (rng.normal(0, 1e-6, shape) if ".mlp." in name else np.zeros(shape)).astype(
            np.float32
        )
    if "norm" in name:
        return np.ones(shape, np.float32)
    if name in ("cls_token", "head.weight"):
        return np.zeros(shape, np.float32)
    if name in ("patch_embed.proj.weight", "pre_logits.weight"):
        return _lecun_normal(rng, shape)
    if name.endswith("attn.qkv.weight"):
        third = (shape[0] // 3, shape[1])
        return np.concatenate([_xavier_uniform(rng, third) for _ in "qkv"])
    return _xavier_uniform(rng, shape)


def _rng(seed: int, name: str) -> np.random.RandomState:
    """RandomState, whose streams NumPy has frozen (NEP 19): a seed means the same weights in every version."""
    return np.random.RandomState(
        np.random.MT19937(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))
    )


def _xavier_uniform(rng: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
    """U(-b, b), b = sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    bound = math.sqrt(6 / sum(shape))
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def _lecun_normal(rng: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
    """Normal cut at two deviations with a standard deviation of sqrt(1 / fan_in) after the cut."""
    values = rng.standard_normal(shape)
    while (outside := np.abs(values) > 2).any():
        values[outside] = rng.standard_normal(int(outside.sum()))
    return (values * (math.sqrt(1 / math.prod(shape[1:])) / TRUNCATED_STD)).astype(np.float32)


def sincos2d(cfg: ModelConfig) -> np.ndarray:
    """Fixed positions [1, tokens, width] (Chen et al. 2021, MoCo v3, as in big_vision): sin x, cos x, sin y, cos y, each
    over width / 4 frequencies from 1 to 1/10000; the class token's row is zero."""
    side, quarter = cfg.image_size // cfg.patch_size, cfg.width // 4
    y, x = np.mgrid[:side, :side]
    omega = 1.0 / 10_000 ** (np.arange(quarter) / max(quarter - 1, 1))
    xs, ys = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega
    table = np.concatenate([np.sin(xs), np.cos(xs), np.sin(ys), np.cos(ys)], axis=1)
    if cfg.class_token:
        table = np.concatenate([np.zeros((1, cfg.width)), table])
    return table[None].astype(np.float32)
