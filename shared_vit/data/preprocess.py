"""Evaluation's preprocessing, the one place that knows it: resize, crop, normalise."""

from __future__ import annotations

import numpy as np

from shared_vit.data.decode import check_pixels
from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig, check_config
from shared_vit.spec.pixels import normalization


def evaluation_input(image: np.ndarray, cfg: ModelConfig) -> np.ndarray:
    """What a model is shown of an image in evaluation: uint8 RGB [H, W, 3] -> uint8 [S, S, 3].

    S is `cfg.image_size`. The shorter side is resized to `cfg.eval_resize` S, then the centre is
    cropped; with `eval_resize` 0 the whole image is resized to S x S. Pillow's filter of
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
    size = cfg.image_size
    if cfg.eval_resize == 0:
        return resize(image, size, size, cfg.interpolation)
    image = resize_shorter(image, cfg.short_side, cfg.interpolation)
    top, left = (round((side - size) / 2) for side in image.shape[:2])
    return np.ascontiguousarray(image[top : top + size, left : left + size])


def normalize(
    images: np.ndarray, cfg: ModelConfig, dtype: np.dtype | type = np.float32
) -> np.ndarray:
    """`(images / 255 - mean) / std` of uint8 RGB [..., H, W, 3], as the trainers compute it."""
    check_config(cfg)
    scale, shift = (a.astype(dtype) for a in normalization(cfg))
    return images.astype(dtype) * scale + shift


def resize_shorter(image: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """The image with a shorter side of `size` pixels and nearly the same ratio of sides."""
    height, width = image.shape[:2]
    if width <= height:
        return resize(image, int(size * height / width), size, interpolation)
    return resize(image, size, int(size * width / height), interpolation)


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
