"""Pixels of more than 8 bits to 8: by the range that the file says, and refused where none fits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

# TIFF's tags: MinSampleValue, MaxSampleValue, SMinSampleValue, SMaxSampleValue.
_RANGES = ((340, 341), (280, 281))
_DARK = 16  # levels of 256: what has fewer in all pixels is black to the eye


class RangeError(ValueError):
    """The range of the pixels is not known; the message says what to do."""


def grey_levels(image: Image.Image, stated: tuple[float, float] | None) -> np.ndarray:
    """uint8 [H, W] of an image of mode F or I. 16 bits are cut to the high 8.

    stated: the pixel values of black and white, where the file says them.

    Raises RangeError for pixel values of which nothing says what white is.
    """
    grey = np.asarray(image)
    if stated is not None:
        low, high = stated
        if not np.isfinite(grey).all():
            raise RangeError("some of its pixel values are not finite")
        scaled = (grey.astype(np.float64) - low) * (255.0 / (high - low))
        return np.round(scaled).clip(0, 255).astype(np.uint8)
    if image.mode.startswith("F"):
        raise RangeError(
            "its pixels are floating-point numbers, and the file does not say which is white "
            "(TIFF's SMinSampleValue and SMaxSampleValue): write them, or convert it to 8 bits"
        )
    high = int(grey.max(initial=0))
    if high > 0xFFFF:
        raise RangeError(f"its pixels are integers up to {high:,}: convert it to 8 or 16 bits")
    check_not_dark(grey >> 8, f"up to {high:,} of 65,535")
    return (grey >> 8).clip(0, 255).astype(np.uint8)


def is_deep(image: Image.Image) -> bool:
    """Whether an image that is not loaded yet is of 16 bits a colour, of which Pillow stores the
    high 8."""
    tiles = getattr(image, "tile", ())  # of a file
    return image.mode in ("RGB", "RGBA") and any(";16" in str(tile[3]) for tile in tiles)


def check_not_dark(levels: np.ndarray, shown: str = "below a sixteenth of 65,535") -> None:
    """Raise RangeError where the high 8 bits of 16 are nearly black and not quite: mostly it is 10
    or 12 bits in 16."""
    if 0 < int(levels.max(initial=0)) < _DARK:
        raise RangeError(
            f"its pixels of 16 bits are {shown}, nearly black; mostly they hold fewer bits: "
            "stretch them to 16 bits, or convert it to 8 (a TIFF can say its MaxSampleValue)"
        )


def stated_range(image: Image.Image) -> tuple[float, float] | None:
    """The pixel values of black and white, where a TIFF states them."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return None
    for low_tag, high_tag in _RANGES:
        if high_tag in tags:
            low, high = (_one(tags.get(tag, 0)) for tag in (low_tag, high_tag))
            usual = image.mode.startswith("I") and (low, high) == (0, 0xFFFF)
            if low < high and not usual:
                return low, high
    return None


def _one(value: object) -> float:
    return float(value[0] if isinstance(value, tuple) else value)  # type: ignore[arg-type]
