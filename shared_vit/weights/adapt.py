"""Weights for another image size, another number of classes, another dtype."""

import dataclasses
import math

import ml_dtypes
import numpy as np

from shared_vit.errors import UserError
from shared_vit.spec import canonical, init
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.sides import Sides, image_fields, sides
from shared_vit.weights.lazy import Arrays, LazyArray, in_memory

DTYPES = {
    "fp32": np.dtype(np.float32),
    "fp64": np.dtype(np.float64),
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}


def adapt(
    cfg: ModelConfig,
    arrays: Arrays,
    image_size: Sides | str | None = None,
    num_classes: int | None = None,
    dtype: str | None = None,
) -> tuple[ModelConfig, dict[str, LazyArray | np.ndarray]]:
    """`(cfg, arrays)` for another image size (pixels, or height and width), number of classes or
    dtype; None: unchanged.

    Learned positions are resampled, fixed ones computed anew. Another number of classes means a new
    task: the pre-logits layer and the head are left out, and the new head is zero, as in
    fine-tuning by Dosovitskiy et al. (2021); 0 leaves the model without one. Lazy arrays stay lazy,
    arrays in memory are computed at once. Raises UserError for sizes that the model cannot have,
    and, when an array is computed, where a value does not fit in the dtype.
    """
    out = dict(arrays)
    if num_classes not in (None, cfg.num_classes):
        cfg = dataclasses.replace(cfg, num_classes=num_classes, pre_logits=0)
        for name, shape in canonical.shapes(cfg).items():
            if name.startswith("head."):
                out[name] = zeros(shape, arrays["patch_embed.proj.weight"].dtype)
    if image_size is not None and sides(image_size) != cfg.image_shape:
        old, cfg = cfg, dataclasses.replace(cfg, **image_fields(image_size))
        out["pos_embed"] = _resampled(old, cfg, arrays["pos_embed"])
    if dtype is not None:
        if dtype not in DTYPES:
            raise UserError(f"unknown dtype {dtype!r}: choose from {', '.join(DTYPES)}")
        out = {name: _cast(name, array, DTYPES[dtype]) for name, array in out.items()}
    out = {name: out[name] for name in canonical.shapes(cfg)}
    if all(isinstance(array, np.ndarray) for array in arrays.values()):
        return cfg, {**in_memory(out)}
    return cfg, out


def zeros(shape: tuple[int, ...], dtype: np.dtype) -> LazyArray:
    """An array of zeros that takes no memory until it is read."""
    return LazyArray(shape, dtype, lambda: np.zeros(shape, dtype))


def _resampled(old: ModelConfig, new: ModelConfig, positions: np.ndarray | LazyArray) -> LazyArray:
    def load() -> np.ndarray:
        if new.pos_embed == "sincos2d":
            return init.sincos2d(new).astype(positions.dtype)
        return resample_positions(np.asarray(positions), old.grid, new.grid, old.num_prefix)

    return LazyArray((1, new.num_tokens, new.width), positions.dtype, load)


def resample_positions(
    positions: np.ndarray, old: tuple[int, int], new: tuple[int, int], prefix: int
) -> np.ndarray:
    """Learned positions [1, prefix + patches, width] of a grid `old` (rows, columns) for `new`.

    Bicubic with antialias, computed in float64 and returned in the dtype of `positions`; the first
    `prefix` rows stay. The same numbers as timm's `resample_abs_pos_embed` and torch's
    `interpolate(mode="bicubic", antialias=True)`, up to rounding.
    """
    grid = positions[0, prefix:].astype(np.float64).reshape(*old, -1)
    rows, columns = (bicubic(a, b) for a, b in zip(old, new))
    grid = np.einsum("ij,kl,jld->ikd", rows, columns, grid, optimize=True)
    grid = grid.reshape(1, math.prod(new), -1).astype(positions.dtype)
    return np.concatenate([positions[:, :prefix], grid], axis=1)


def bicubic(old: int, new: int) -> np.ndarray:
    """The matrix [new, old] that resamples a row of `old` pixels to `new` ones, float64.

    Keys' cubic kernel with a = -1/2 (Keys 1981), widened by the scale when it shrinks, as in Pillow
    and in torch with antialias (torch without it has a = -3/4).
    """
    scale = old / new
    wide = max(scale, 1.0)
    centres = (np.arange(new)[:, None] + 0.5) * scale
    x = np.abs((np.arange(old)[None] + 0.5 - centres) / wide)
    near = ((1.5 * x - 2.5) * x) * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)


def _cast(name: str, array: np.ndarray | LazyArray, dtype: np.dtype) -> np.ndarray | LazyArray:
    if array.dtype == dtype:
        return array

    def load() -> np.ndarray:
        values = np.asarray(array)
        with np.errstate(over="ignore"):
            out = values.astype(dtype)
        if not np.isfinite(out).all():
            raise UserError(
                f"the tensor {name} has values up to {np.abs(values).max():g}, which {dtype.name} "
                "cannot hold: bf16 can"
            )
        return out

    return LazyArray(tuple(array.shape), dtype, load)
