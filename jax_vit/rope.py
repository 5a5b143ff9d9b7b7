"""Rotary positions of queries and keys. Twin of `torch_vit/rope.py`; formulas and tables are in
`shared_vit.spec.rope`."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jax_vit.ops import parameter
from shared_vit.spec import rope
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.precision import Policy

BlockPositions = tuple[Array, ...]


class Rope(nnx.Module):
    """Sines and cosines of all blocks, in the parameters' dtype."""

    def __init__(self, cfg: ModelConfig, policy: Policy):
        self.cfg, self.policy = cfg, policy
        shape = (2, cfg.depth, cfg.num_heads, cfg.head_width // 2)
        self.freqs = parameter(shape, policy) if cfg.rope == "mixed" else None

    def block_positions(self) -> list[BlockPositions]:
        """Sines and cosines of each block, [N, heads or 1, d]."""
        dtype = self.policy.param
        if self.freqs is None:
            sin, cos = (jnp.asarray(x[:, None], dtype) for x in rope.tables(self.cfg))
            return [(sin, cos)] * self.cfg.depth
        coordinates = jnp.asarray(rope.coordinates(self.cfg), dtype)
        angles = [
            coordinates[:, 0, None, None] * x + coordinates[:, 1, None, None] * y
            for x, y in zip(*self.freqs[...])
        ]
        return [(_twice(jnp.sin(a)), _twice(jnp.cos(a))) for a in angles]


def _twice(x: Array) -> Array:
    """[..., d / 2] -> [..., d], each number twice in a row."""
    return jnp.repeat(x, 2, axis=-1)


def rotate(x: Array, positions: BlockPositions) -> Array:
    """x [B, N, heads, d] with neighbouring channels turned, in the dtype of the tables."""
    sin, cos = _for_all(x, positions)
    x = x.astype(sin.dtype)
    partner = jnp.stack([-x[..., 1::2], x[..., ::2]], axis=-1).reshape(x.shape)
    return x * cos + partner * sin


def rotate_halves(x: Array, positions: BlockPositions) -> Array:
    """x [B, N, heads, d] with channels j and j + d / 2 turned, in the dtype of the tables."""
    sin, cos = _for_all(x, positions)
    x = x.astype(sin.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    return x * cos + jnp.concatenate([-second, first], axis=-1) * sin


def not_rotated(x: Array, positions: BlockPositions) -> Array:
    """x itself."""
    return x


def rotation_of(cfg: ModelConfig) -> Callable[[Array, BlockPositions], Array]:
    """How the model turns queries and keys."""
    if cfg.rope == "none":
        return not_rotated
    return rotate_halves if rope.pairs_are_halves(cfg) else rotate


def _for_all(x: Array, positions: BlockPositions) -> BlockPositions:
    """The tables with rows for the token too that fused attention is padded with."""
    more = x.shape[1] - positions[0].shape[0]
    return tuple(jnp.pad(p, ((0, more), (0, 0), (0, 0))) if more else p for p in positions)
