"""Evaluation's preprocessing, defined here only: resize, crop, normalise."""

from __future__ import annotations

import numpy as np

from shared_vit.data.decode import check_pixels
from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig, check_config
from shared_vit.spec.pixels import normalization
from shared_vit.spec.sides import Sides, sides


def evaluation_input(image: np.ndarray, cfg: ModelConfig) -> np.ndarray:
    """What a model is shown of an image in evaluation: uint8 RGB [H, W, 3] -> uint8 [S, T, 3].

    S and T are `cfg.image_shape`. The image is resized until it covers `cfg.eval_resize` times
    S x T, in a square by its shorter side, then the centre is cropped; with `eval_resize` 0 the
    full image is resized to S x T. Pillow's filter of
    `cfg.interpolation`, with antialias; sizes and offsets are rounded as torchvision's `Resize` and
    `CenterCrop` round them. Raises UserError for another shape or type, and for an image so long
    that the resized one would have more than `decode.MOST_PIXELS`.
    """
    check_config(cfg)
    if not isinstance(image, np.ndarray):
        raise UserError(
            f"an RGB image is expected, uint8 [H, W, 3], not {type(image).__name__}: "
            "twinvit.preprocess takes paths and Pillow's images too"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UserError(
            f"an RGB image is expected, uint8 [H, W, 3], not {image.dtype} {list(image.shape)}"
        )
    size = cfg.image_shape
    if cfg.eval_resize == 0:
        return resize(image, *size, cfg.interpolation)
    image = resize_to_cover(image, cfg.resized_shape, cfg.interpolation)
    top, left = (round((side - inner) / 2) for side, inner in zip(image.shape, size))
    return np.ascontiguousarray(image[top : top + size[0], left : left + size[1]])


def normalize(
    images: np.ndarray, cfg: ModelConfig, dtype: np.dtype | type = np.float32
) -> np.ndarray:
    """`(images / 255 - mean) / std` of uint8 RGB [..., H, W, 3], as the trainers compute it."""
    check_config(cfg)
    scale, shift = (a.astype(dtype) for a in normalization(cfg))
    return images.astype(dtype) * scale + shift


def resize_to_cover(image: np.ndarray, size: Sides, interpolation: str) -> np.ndarray:
    """The smallest image of nearly the same ratio of sides that covers `size`: its height or width
    is that of `size`, of a square its shorter side."""
    height, width = image.shape[:2]
    rows, columns = sides(size)
    if rows != columns:  # timm's rounding of the other side, of squares torchvision's
        ratio = min(height / rows, width / columns)
        return resize(image, round(height / ratio), round(width / ratio), interpolation)
    if width * rows <= height * columns:
        return resize(image, int(columns * height / width), columns, interpolation)
    return resize(image, rows, int(rows * width / height), interpolation)


def resize(image: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """Pillow's resize with antialias, in integers; the image itself where the size is the same.

    image: uint8 [H, W, 3]; interpolation: bilinear or bicubic. Raises DecodeError for a result of
    more than `decode.MOST_PIXELS`.
    """
    from PIL import Image

    if (height, width) == image.shape[:2]:
        return image
    check_pixels(height, width, f"{image.shape[1]:,} x {image.shape[0]:,} pixels would become")
    resampling = Image.Resampling[interpolation.upper()]
    return np.array(Image.fromarray(image).resize((width, height), resampling))
