"""What a user sets of the way from an image to the input, instead of what weights say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, cast

from shared_vit.spec.config import ModelConfig
from shared_vit.spec.input import colours
from shared_vit.spec.sides import Sides
from shared_vit.weights.adapt import adapt
from shared_vit.weights.lazy import LazyArray
from shared_vit.weights.positions import Positions, describe_positions
from shared_vit.weights.read import Source

Interpolation = Literal["bilinear", "bicubic"]
Exif = Literal["ignore", "turn"]
Colours = str | Sequence[float]  # "R,G,B", one number, or three numbers


def with_input(
    cfg: ModelConfig,
    mean: Colours | None = None,
    std: Colours | None = None,
    interpolation: Interpolation | None = None,
    eval_resize: float | None = None,
    exif: Exif | None = None,
) -> ModelConfig:
    """The model with another mean, std (of RGB in [0, 1]), filter, resize or use of EXIF; None: as
    it is. Raises UserError for impossible values."""
    changes: dict[str, Any] = {
        "mean": _numbers(mean),
        "std": _numbers(std),
        "interpolation": interpolation,
        "eval_resize": eval_resize,
        "exif": exif,
    }
    return dataclasses.replace(cfg, **{n: v for n, v in changes.items() if v is not None})


def of_size(
    source: Source,
    image_size: Sides | str | None,
    positions: Positions = "bicubic",
    num_classes: int | None = None,
) -> tuple[Source, list[str]]:
    """Weights for another image size (pixels, or height and width) or number of classes, None: as
    they are; and what becomes of the positions, in words, where the size is another. Raises
    UserError."""
    cfg, arrays = adapt(source.cfg, source.arrays, image_size, num_classes, positions=positions)
    told = []
    if cfg.grid != source.cfg.grid:
        told.append(f"positions {describe_positions(source.cfg, cfg, positions)}")
    return dataclasses.replace(source, cfg=cfg, arrays=cast(dict[str, LazyArray], arrays)), told


def _numbers(value: Colours | None) -> tuple[float, ...] | None:
    return colours(value) if isinstance(value, str) else None if value is None else tuple(value)


def for_images(source: Source, **changes: Any) -> tuple[Source, list[str]]:
    """Weights with the input of `with_input`, to be shown images, and what is to be said.

    Files of other programs do not say what becomes of EXIF orientation: images are turned upright
    for them, unless `exif` says otherwise.
    """
    cfg, assumed = with_input(source.cfg, **changes), list(source.assumed)
    if source.elsewhere and changes.get("exif") is None:
        cfg = dataclasses.replace(cfg, exif="turn")
        assumed.append("images are turned upright by their EXIF orientation")
    source = dataclasses.replace(source, cfg=cfg, assumed=assumed)
    return source, source.told(cfg)
