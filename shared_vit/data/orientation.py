"""The orientation that a camera notes in EXIF: read, applied on request, and counted."""

from __future__ import annotations

import io

import numpy as np

from shared_vit.data.content import SAMPLED, sample_of
from shared_vit.data.dataset import Dataset
from shared_vit.errors import UserError

_ORIENTATION = 0x0112
_HEAD = 1 << 17  # bytes of a JPEG: EXIF comes first in it


def jpeg_orientation(data: bytes) -> int:
    """1 (upright) to 8, as EXIF numbers them, of an encoded JPEG; 1 where it says nothing."""
    if b"Exif\0\0" not in data[:_HEAD]:
        return 1
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises many kinds on broken files; the pixels may be intact
        return 1
    return found if found in range(1, 9) else 1


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The upright image: pixels [H, W, 3] of a file with this orientation -> [H or W, ..., 3]."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def count_turned(dataset: Dataset) -> tuple[int, int]:
    """`(not upright, looked at)` of the JPEGs in a sample of the data's files.

    The sample is that of `content.content_of`: smaller data sets are examined completely.
    """
    if dataset.name not in ("folder", "imagenet"):
        return 0, 0
    found = looked = 0
    for number in sample_of(dataset).tolist():
        here = number < len(dataset.train)
        split = dataset.train if here else dataset.val
        try:
            data, _ = split.read(number if here else number - len(dataset.train))
        except UserError:
            continue
        looked += 1
        found += isinstance(data, bytes) and jpeg_orientation(data) != 1
    return found, looked


def notice(dataset: Dataset, exif: str) -> str:
    """What is to be said of orientations at the start; empty where all images are upright."""
    found, looked = count_turned(dataset)
    if not found:
        return ""
    whole = len(dataset.train) + len(dataset.val) <= SAMPLED
    of = f"the {looked:,} images" if whole else f"{looked:,} sampled images"
    done = "ignored; --exif=turn turns them upright" if exif == "ignore" else "obeyed"
    return f"{found:,} of {of} have an EXIF orientation other than upright, which is {done}"
