"""Rotary positions of a grid of patches (Su et al. 2021; in two dimensions), for both twins.

A head of width d is d / 2 pairs of channels, each turned by an angle: half of the pairs by the
row's, half by the column's. With k = 0 .. d / 4 - 1:

    axial     (row + rope_offset) rope_base^(-4 k / d), rows first (EVA-02, Fang et al. 2023);
              where there is a rope_grid, multiplied by it and divided by the grid's side
    axial_xy  the same, columns first (RoPE-ViT, Heo et al. 2024; Perception Encoder, 2025)
    centred   2 pi (2 (row + 1/2) / rows - 1) rope_base^(-4 k / d), rows first (DINOv3, 2025)
    mixed     column rope.freqs[0] + row rope.freqs[1], learned by block and head (Heo et al. 2024)

Pairs are neighbours (2 j, 2 j + 1), those of `centred` halves (j, j + d / 2). The tokens before the
patches' are not turned: their angles are 0. All is computed in float64; timm and transformers
compute tables in float32, 4e-7 from these.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from shared_vit.spec.config import ModelConfig


def pairs_are_halves(cfg: ModelConfig) -> bool:
    """Whether channel j is turned with j + d / 2; else 2 j with 2 j + 1."""
    return cfg.rope == "centred"


@cache
def coordinates(cfg: ModelConfig) -> np.ndarray:
    """Column and row of each token, float64 [tokens, 2], zero for those before the patches'."""
    rows, columns = cfg.grid
    y, x = np.mgrid[:rows, :columns]
    found = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float64)
    return _read_only(_behind_prefix(cfg, found))


@cache
def tables(cfg: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Sines and cosines, float64 [tokens, d], of a model whose rotary positions are not learned."""
    rows, columns = cfg.grid
    by_row, by_column = (_positions(cfg, side) for side in (rows, columns))
    along_rows = np.repeat(by_row, columns, axis=0)  # [patches, d / 4]
    along_columns = np.tile(by_column, (rows, 1))
    first, second = along_rows, along_columns
    if cfg.rope == "axial_xy":
        first, second = second, first
    angles = _behind_prefix(cfg, np.concatenate([first, second], axis=1))
    if pairs_are_halves(cfg):
        angles = np.tile(angles, 2)
    else:
        angles = np.repeat(angles, 2, axis=1)
    return _read_only(np.sin(angles)), _read_only(np.cos(angles))


def _positions(cfg: ModelConfig, side: int) -> np.ndarray:
    """The angles of an axis of `side` patches, [side, d / 4]."""
    d, k = cfg.head_width, np.arange(cfg.head_width // 4)
    place = np.arange(side, dtype=np.float64)
    if cfg.rope == "centred":
        place = 2 * math.pi * (2 * (place + 0.5) / side - 1)
    else:
        place = place + cfg.rope_offset
        if cfg.rope_grid:
            place = place / side * cfg.rope_grid
    return place[:, None] * cfg.rope_base ** (-4.0 * k / d)


def _behind_prefix(cfg: ModelConfig, patches: np.ndarray) -> np.ndarray:
    return np.pad(patches, ((cfg.num_prefix, 0), (0, 0)))


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False  # every caller gets the same array
    return array
