"""Biases of attention by relative position. Twin of `jax_vit/relative.py`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from shared_vit.spec import relative
from shared_vit.spec.config import ModelConfig


class RelativeIndex(nn.Module):
    """The row of a block's table for each query and key."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.depth = cfg.depth
        index = torch.from_numpy(np.array(relative.index(cfg.grid)))
        self.register_buffer("index", index, persistent=False)

    def block_positions(self) -> list[tuple[Tensor, ...]]:
        """int64 [N, N] for each block."""
        return [(self.index,)] * self.depth


def relative_bias(table: Tensor, positions: tuple[Tensor, ...]) -> Tensor:
    """table [rows, heads] -> what is added to scores, [1, heads, N, N]."""
    (index,) = positions
    return table[index].permute(2, 0, 1)[None]
