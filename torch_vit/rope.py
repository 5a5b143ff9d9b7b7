"""Rotary positions of queries and keys. Twin of `jax_vit/rope.py`; formulas and tables are in
`shared_vit.spec.rope`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from shared_vit.spec import rope
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.precision import Policy
from torch_vit.ops import parameter

BlockPositions = tuple[Tensor, ...]


class Rope(nn.Module):
    """Sines and cosines of all blocks, in the parameters' dtype."""

    def __init__(self, cfg: ModelConfig, policy: Policy):
        super().__init__()
        self.depth, dtype = cfg.depth, np.dtype(policy.param)

        def fixed(name: str, array: np.ndarray) -> None:
            self.register_buffer(name, torch.from_numpy(np.array(array, dtype)), persistent=False)

        sin, cos = (None, None) if cfg.rope == "mixed" else rope.tables(cfg)
        if sin is None or cos is None:
            shape = (2, cfg.depth, cfg.num_heads, cfg.head_width // 2)
            self.freqs = parameter(shape, policy)
            fixed("coordinates", rope.coordinates(cfg))
        else:
            self.freqs = None
            fixed("sin", sin[:, None])
            fixed("cos", cos[:, None])

    def block_positions(self) -> list[BlockPositions]:
        """Sines and cosines of each block, [N, heads or 1, d]."""
        if self.freqs is None:
            return [(self.sin, self.cos)] * self.depth
        angles = [
            self.coordinates[:, 0, None, None] * x + self.coordinates[:, 1, None, None] * y
            for x, y in zip(*self.freqs)
        ]
        return [(_twice(a.sin()), _twice(a.cos())) for a in angles]


def _twice(x: Tensor) -> Tensor:
    """[..., d / 2] -> [..., d], each number twice in a row."""
    return x.repeat_interleave(2, dim=-1)


def rotate(x: Tensor, positions: BlockPositions) -> Tensor:
    """x [B, N, heads, d] with neighbouring channels turned, in the dtype of the tables."""
    sin, cos = positions
    x = x.to(sin.dtype)
    partner = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).reshape(x.shape)
    return x * cos + partner * sin


def rotate_halves(x: Tensor, positions: BlockPositions) -> Tensor:
    """x [B, N, heads, d] with channels j and j + d / 2 turned, in the dtype of the tables."""
    sin, cos = positions
    x = x.to(sin.dtype)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.concatenate([-second, first], dim=-1) * sin


def not_rotated(x: Tensor, positions: BlockPositions) -> Tensor:
    """x itself."""
    return x


def rotation_of(cfg: ModelConfig) -> Callable[[Tensor, BlockPositions], Tensor]:
    """How the model turns queries and keys."""
    if cfg.rope == "none":
        return not_rotated
    return rotate_halves if rope.pairs_are_halves(cfg) else rotate
