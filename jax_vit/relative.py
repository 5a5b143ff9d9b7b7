"""Biases of attention by relative position. Twin of `torch_vit/relative.py`."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import Array

from shared_vit.spec import relative
from shared_vit.spec.config import ModelConfig


class RelativeIndex(nnx.Module):
    """The row of a block's table for each query and key."""

    def __init__(self, cfg: ModelConfig):
        self.cfg = cfg

    def block_positions(self) -> list[tuple[Array, ...]]:
        """int [N, N] for each block."""
        index = jnp.asarray(relative.index(self.cfg.grid), jnp.int32)
        return [(index,)] * self.cfg.depth


def relative_bias(table: Array, positions: tuple[Array, ...]) -> Array:
    """table [rows, heads] -> what is added to scores, [1, heads, N, N]."""
    (index,) = positions
    return jnp.asarray(table)[index].transpose(2, 0, 1)[None]
