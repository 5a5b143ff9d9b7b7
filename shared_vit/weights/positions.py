"""Learned positions of one grid of patches for another, by the rules of those who train them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np

from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig

Positions = Literal["bicubic", "dinov2", "corners"]


def resample_positions(
    positions: np.ndarray,
    old: tuple[int, int],
    new: tuple[int, int],
    prefix: int,
    rule: Positions = "bicubic",
) -> np.ndarray:
    """Learned positions [1, prefix + patches, width] of a grid `old` (rows, columns) for `new`.

    Computed in float64 and returned in the dtype of `positions`; the first `prefix` rows stay. The
    rules are the functions below, each of which makes the matrix of one axis. Raises UserError for
    an unknown rule.
    """
    check_rule(rule)
    matrix, _ = _RULES[rule]
    grid = positions[0, prefix:].astype(np.float64).reshape(*old, -1)
    rows, columns = (matrix(a, b) for a, b in zip(old, new))
    grid = np.einsum("ij,kl,jld->ikd", rows, columns, grid, optimize=True)
    grid = grid.reshape(1, math.prod(new), -1).astype(positions.dtype)
    return np.concatenate([positions[:, :prefix], grid], axis=1)


def bicubic(old: int, new: int) -> np.ndarray:
    """The matrix [new, old] that resamples a row of `old` pixels to `new` ones, float64.

    Keys' cubic kernel with a = -1/2 (Keys 1981), widened by the scale when it shrinks, as in Pillow
    and in torch with antialias (torch without it has a = -3/4): timm's `resample_abs_pos_embed`.
    """
    scale = old / new
    wide = max(scale, 1.0)
    centres = (np.arange(new)[:, None] + 0.5) * scale
    x = np.abs((np.arange(old)[None] + 0.5 - centres) / wide)
    weights = _keys(x, -0.5)
    return weights / weights.sum(axis=1, keepdims=True)


def dinov2(old: int, new: int) -> np.ndarray:
    """As `bicubic`, but as in DINOv2's hub models without registers: no antialias, a = -3/4, the
    border repeated, and pixels that are old / (new + 0.1) wide, whose sum is not quite `old`."""
    centres = (np.arange(new) + 0.5) * (old / (new + 0.1)) - 0.5
    first = np.floor(centres).astype(int)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        at = (first + tap).clip(0, old - 1)
        np.add.at(weights, (np.arange(new), at), _keys(np.abs(centres - first - tap), -0.75))
    return weights


def corners(old: int, new: int) -> np.ndarray:
    """As `bicubic`, but linear between neighbours, the first and last pixel staying where they are:
    `scipy.ndimage.zoom` of order 1, as in big_vision and Google's ViT."""
    centres = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)
    return np.maximum(0.0, 1.0 - np.abs(centres[:, None] - np.arange(old)[None]))


def _keys(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic kernel at the distances x."""
    near = (((a + 2) * x - (a + 3)) * x) * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


_RULES: dict[str, tuple[Callable[[int, int], np.ndarray], str]] = {
    "bicubic": (bicubic, "bicubic with antialias, as timm"),
    "dinov2": (dinov2, "bicubic without antialias, as DINOv2's hub models without registers"),
    "corners": (corners, "bilinear between the corners, as big_vision"),
}


def check_rule(rule: str) -> None:
    """Raise UserError for an unknown rule."""
    if rule not in _RULES:
        raise UserError(f"unknown rule for positions {rule!r}: choose from {', '.join(_RULES)}")


def describe_positions(old: ModelConfig, new: ModelConfig, rule: Positions = "bicubic") -> str:
    """What becomes of a model's positions at another image size, in words."""
    before, after = (f"{rows} x {columns}" for rows, columns in (old.grid, new.grid))
    if before == after:
        return f"kept, {after}"
    if new.pos_embed == "sincos2d":
        return f"computed anew, {after} (the weights have {before})"
    if new.pos_embed == "none":
        kind = "no learned ones" if new.rope == "none" else "rotary, computed for any grid"
        return f"{before} -> {after}: {kind}"
    return f"{before} -> {after}: {_RULES[rule][1]}"
