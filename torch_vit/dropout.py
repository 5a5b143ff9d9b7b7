"""Dropout and stochastic depth whose masks are pure functions of key, site and global row (see
`shared_vit.spec.mask_keys`)."""

import math

import numpy as np
import torch
from torch import Tensor

from shared_vit.spec.mask_keys import PARITY, ROTATIONS

Dropout = tuple[Tensor, Tensor] | None  # (keys int32 [sites, 2], rows int64 [B])


def to_keys(keys: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint32 [sites, 2] of `shared_vit.spec.mask_keys.site_keys` as the int32 tensor of the same
    bits that `drop` takes."""
    return torch.from_numpy(keys.view(np.int32).copy()).to(device)


def drop(x: Tensor, dropout: Dropout, site: int, rate: float) -> Tensor:
    """x [B, ...] with each element zeroed with probability `rate`, else divided by 1 - rate.

    Without `dropout`, x itself.
    """
    if dropout is None or rate == 0:
        return x
    keys, rows = dropout
    kept = mask(keys[site], rows, x.shape, 1 - rate)
    return torch.where(kept, x / (1 - rate), 0)


def drop_path(x: Tensor, dropout: Dropout, site: int, rate: float) -> Tensor:
    """x [B, ...] with each row zeroed with probability `rate`, else divided by 1 - rate.

    It is stochastic depth (Huang et al. 2016) where x is a branch. Without `dropout`, x itself.
    """
    if dropout is None or rate == 0:
        return x
    keys, rows = dropout
    kept = mask(keys[site], rows, (len(x), *[1] * (x.ndim - 1)), 1 - rate)
    return torch.where(kept, x / (1 - rate), 0)


def mask(key: Tensor, rows: Tensor, shape: tuple[int, ...], keep: float) -> Tensor:
    """bool `shape` [B, ...]: which elements of the global rows `rows` int64 [B] are kept under
    `key` int32 [2]."""
    per_row = math.prod(shape[1:])
    number = rows[:, None] * per_row + torch.arange(per_row, device=rows.device)
    high, low = (
        (number >> 32).to(torch.int32),
        (number & 0xFFFFFFFF).to(torch.int32),
    )  # wraps: the same 32 bits
    bits = torch.bitwise_xor(*_threefry2x32(key, high, low))
    uniform = (_shift_right(bits, 9) | 0x3F800000).view(torch.float32) - 1
    return (uniform < float(np.float32(keep))).reshape(shape)


def _threefry2x32(key: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """As `shared_vit.spec.mask_keys.threefry2x32`, on int32 tensors, whose additions wrap as
    unsigned ones do."""
    ks = (key[0], key[1], key[0] ^ key[1] ^ PARITY)
    x0, x1 = x0 + ks[0], x1 + ks[1]
    for i in range(5):
        for r in ROTATIONS[i % 2]:
            x0 = x0 + x1
            x1 = ((x1 << r) | _shift_right(x1, 32 - r)) ^ x0
        x0 = x0 + ks[(i + 1) % 3]
        x1 = x1 + ks[(i + 2) % 3] + (i + 1)
    return x0, x1


def _shift_right(x: Tensor, n: int) -> Tensor:
    """Logical shift of int32: torch's operator preserves the sign."""
    return (x >> n) & ((1 << (32 - n)) - 1)
