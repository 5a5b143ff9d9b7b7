"""Weights for another image size, another number of classes, another dtype."""

import dataclasses

import ml_dtypes
import numpy as np

from shared_vit.errors import UserError
from shared_vit.spec import canonical, init
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.sides import Sides, image_fields, shown, sides
from shared_vit.weights.lazy import Arrays, LazyArray, in_memory
from shared_vit.weights.positions import Positions, check_rule, resample_positions

DTYPES = {
    "fp32": np.dtype(np.float32),
    "fp64": np.dtype(np.float64),
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}
_HEADS = ("head.", "head_dist.")


def adapt(
    cfg: ModelConfig,
    arrays: Arrays,
    image_size: Sides | str | None = None,
    num_classes: int | None = None,
    dtype: str | None = None,
    positions: Positions = "bicubic",
) -> tuple[ModelConfig, dict[str, LazyArray | np.ndarray]]:
    """`(cfg, arrays)` for another image size (pixels, or height and width), number of classes or
    dtype; None: unchanged.

    Learned positions are resampled by the rule `positions`, fixed ones computed anew; rotary ones
    need no weights. Another number of classes means a new task: the pre-logits layer and the heads
    are left out, and the new heads are zero, as in fine-tuning by Dosovitskiy et al. (2021); 0
    leaves the model without one. Lazy arrays stay lazy, arrays in memory are computed at once.
    Raises UserError for sizes that the model cannot have, for another image size where positions
    are relative, and, when an array is computed, where a value does not fit in the dtype.
    """
    check_rule(positions)
    out = dict(arrays)
    if num_classes not in (None, cfg.num_classes):
        cfg = dataclasses.replace(cfg, num_classes=num_classes, pre_logits=0)
        for name, shape in canonical.shapes(cfg).items():
            if name.startswith(_HEADS):
                out[name] = zeros(shape, arrays["patch_embed.proj.weight"].dtype)
    if image_size is not None and sides(image_size) != cfg.image_shape:
        old, cfg = cfg, dataclasses.replace(cfg, **image_fields(image_size))
        check_size(old, cfg)
        if cfg.position_rows:
            out["pos_embed"] = _resampled(old, cfg, arrays["pos_embed"], positions)
    if dtype is not None:
        if dtype not in DTYPES:
            raise UserError(f"unknown dtype {dtype!r}: choose from {', '.join(DTYPES)}")
        out = {name: cast(name, array, DTYPES[dtype]) for name, array in out.items()}
    out = {name: out[name] for name in canonical.shapes(cfg)}
    if all(isinstance(array, np.ndarray) for array in arrays.values()):
        return cfg, {**in_memory(out)}
    return cfg, out


def zeros(shape: tuple[int, ...], dtype: np.dtype) -> LazyArray:
    """An array of zeros that takes no memory until it is read."""
    return LazyArray(shape, dtype, lambda: np.zeros(shape, dtype))


def check_size(old: ModelConfig, new: ModelConfig) -> None:
    """Raise UserError where the weights of a model cannot be those of the same at another size."""
    if old.relative_bias and old.image_shape != new.image_shape:
        raise UserError(
            f"this model has tables of biases by relative position for images of "
            f"{shown(old.image_shape)}, which are not resampled to {shown(new.image_shape)}: leave "
            "the image size as it is"
        )


def _resampled(
    old: ModelConfig, new: ModelConfig, array: np.ndarray | LazyArray, rule: Positions
) -> LazyArray:
    def load() -> np.ndarray:
        if new.pos_embed == "sincos2d":
            return init.sincos2d(new).astype(array.dtype)
        prefix = old.num_prefix if old.prefix_positions else 0
        return resample_positions(np.asarray(array), old.grid, new.grid, prefix, rule)

    return LazyArray((1, new.position_rows, new.width), array.dtype, load)


def cast(
    name: str, array: np.ndarray | LazyArray, dtype: np.dtype, check: bool = True
) -> np.ndarray | LazyArray:
    """An array in another dtype, lazy. Raises UserError, when it is read, where a value does not
    fit, unless `check` is False."""
    if array.dtype == dtype:
        return array

    def load() -> np.ndarray:
        values = np.asarray(array)
        with np.errstate(over="ignore"):
            out = values.astype(dtype)
        if check and not np.isfinite(out).all():
            raise UserError(
                f"the tensor {name} has values up to {np.abs(values).max():g}, which {dtype.name} "
                "cannot hold: bf16 can"
            )
        return out

    return LazyArray(tuple(array.shape), dtype, load)
