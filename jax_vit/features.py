"""What a model computes from images besides logits. Twin of `torch_vit/features.py`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
from jax import Array


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("tokens", "pooled", "layers"),
    meta_fields=("grid", "num_prefix_tokens"),
)
@dataclass(frozen=True)
class Features:
    """Features of a batch of images, in the parameters' dtype.

    tokens: after the last norm, [B, N, width]: first the `num_prefix_tokens` class, distillation
    and register tokens, then the patches, row by row of `grid` (rows, columns).
    pooled: what the head is given, [B, width].
    layers: tokens after the requested blocks, in ascending order.
    """

    tokens: Array
    pooled: Array
    layers: tuple[Array, ...]
    grid: tuple[int, int]
    num_prefix_tokens: int

    def spatial(self, layer: int | None = None) -> Array:
        """The patches as images [B, rows, columns, width]: of `tokens`, or `layers[layer]`."""
        tokens = self.tokens if layer is None else self.layers[layer]
        patches = tokens[:, self.num_prefix_tokens :]
        return patches.reshape(len(tokens), *self.grid, -1)
