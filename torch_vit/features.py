"""What a model computes from images besides logits. Twin of `jax_vit/features.py`."""

from __future__ import annotations

from dataclasses import dataclass

import torch.export
from torch import Tensor


@dataclass(frozen=True)
class Features:
    """Features of a batch of images, in the parameters' dtype.

    tokens: after the last norm, [B, N, width]: first the `num_prefix_tokens` class, distillation
    and register tokens, then the patches, row by row of `grid` (rows, columns).
    pooled: what the head is given, [B, width].
    layers: tokens after the requested blocks, in ascending order.
    """

    tokens: Tensor
    pooled: Tensor
    layers: tuple[Tensor, ...]
    grid: tuple[int, int]
    num_prefix_tokens: int

    def spatial(self, layer: int | None = None) -> Tensor:
        """The patches as images [B, width, rows, columns]: of `tokens`, or `layers[layer]`."""
        tokens = self.tokens if layer is None else self.layers[layer]
        patches = tokens[:, self.num_prefix_tokens :]
        return patches.mT.unflatten(-1, self.grid)


# So that a program of torch.export can give them, as one of jax.jit can.
torch.export.register_dataclass(Features, serialized_type_name="torch_vit.Features")
