"""What a user sets of the way from a picture to the input, in place of what weights say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from shared_vit.spec.config import ModelConfig
from shared_vit.spec.input import colours

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


def _numbers(value: Colours | None) -> tuple[float, ...] | None:
    return colours(value) if isinstance(value, str) else None if value is None else tuple(value)
