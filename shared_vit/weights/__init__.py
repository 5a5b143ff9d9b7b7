"""Weights on disk: canonical arrays from and to every known format."""

import os
import warnings
from collections.abc import Sequence

import numpy as np

from shared_vit.spec.config import ModelConfig
from shared_vit.weights.formats import NAMES
from shared_vit.weights.lazy import Arrays, in_memory
from shared_vit.weights.read import Source, open_weights
from shared_vit.weights.write import write_weights

__all__ = ["NAMES", "Source", "open_weights", "read", "write", "write_weights"]


def read(
    path: str | os.PathLike,
    format: str = "auto",
    num_heads: int | None = None,
    num_classes: int | None = None,
) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """`(cfg, arrays)` of a weight file, run or checkpoint directory, or model folder.

    Dtypes are as in the file. `format` is one of `NAMES`, or found from the file; `num_heads` is
    for files that do not say (timm's, torchvision's); `num_classes` for those without a head, which
    get one of zeros, else none. Warns where something had to be guessed. Raises UserError.
    `open_weights` does the same without reading the arrays into memory, and has the `class_names`.
    """
    source = open_weights(path, format, num_heads, num_classes)
    for notice in source.notices:
        warnings.warn(notice, stacklevel=2)
    return source.cfg, in_memory(source.arrays)


def write(
    path: str | os.PathLike,
    cfg: ModelConfig,
    arrays: Arrays,
    format: str = "torch",
    class_names: Sequence[str] | None = None,
) -> None:
    """Write canonical arrays in a format; on failure nothing is left behind.

    `class_names` are in the order of the logits; None where nobody knows them.
    Warns where the target's code computes another function unless told, and says how to tell it.
    Raises UserError where the format cannot hold the model, or the file cannot be written.
    """
    for note in write_weights(path, cfg, arrays, format, class_names=class_names):
        warnings.warn(note, stacklevel=2)
