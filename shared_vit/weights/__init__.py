"""Weights on disk: canonical arrays from and to every known format."""

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from shared_vit.spec.config import ModelConfig
from shared_vit.spec.sides import Sides
from shared_vit.weights.adapt import adapt as adapted
from shared_vit.weights.formats import NAMES
from shared_vit.weights.lazy import Arrays, in_memory
from shared_vit.weights.overrides import with_input
from shared_vit.weights.positions import Positions
from shared_vit.weights.read import Source, open_weights
from shared_vit.weights.write import write_weights

__all__ = ["NAMES", "Source", "lazily", "open_weights", "read", "write", "write_weights"]


def read(
    path: str | os.PathLike,
    format: str = "auto",
    num_heads: int | None = None,
    num_classes: int | None = None,
    image_size: Sides | str | None = None,
    positions: Positions = "bicubic",
    **input: Any,
) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """`(cfg, arrays)` of a weight file, run or checkpoint directory, or model folder.

    Dtypes are as in the file. `format` is one of `NAMES`, or found from the file; `num_heads` is
    for files that do not say (timm's, torchvision's); `num_classes` for a new head of zeros where
    the file has none or of another number; `image_size` (pixels, or height and width) for another
    size, for which learned positions are resampled by the rule `positions`; `input` as for
    `overrides.with_input`. Warns where something had to be guessed or was taken for granted. Raises
    UserError. `open_weights` reads none of the arrays, and has the `class_names`.
    """
    cfg, arrays = lazily(path, format, num_heads, num_classes, image_size, positions, **input)
    return cfg, in_memory(arrays)


def lazily(
    path: str | os.PathLike,
    format: str = "auto",
    num_heads: int | None = None,
    num_classes: int | None = None,
    image_size: Sides | str | None = None,
    positions: Positions = "bicubic",
    **input: Any,
) -> tuple[ModelConfig, Arrays]:
    """`read`, but for the arrays, which stay on disk until they are."""
    source = open_weights(path, format, num_heads, num_classes, image_size)
    for notice in source.told(with_input(source.cfg, **input)):
        warnings.warn(notice, stacklevel=4)
    cfg, arrays = adapted(source.cfg, source.arrays, image_size, num_classes, positions=positions)
    return with_input(cfg, **input), arrays


def write(
    path: str | os.PathLike,
    cfg: ModelConfig,
    arrays: Arrays,
    format: str = "torch",
    class_names: Sequence[str] | None = None,
) -> None:
    """Write canonical arrays in a format; on failure nothing is left behind.

    `class_names` are in the order of the logits; None where nobody knows them.
    Warns where the target's code computes another function without further arguments, and states
    these. Raises UserError where the format cannot hold the model, or the file cannot be written.
    """
    for note in write_weights(path, cfg, arrays, format, class_names=class_names):
        warnings.warn(note, stacklevel=2)
