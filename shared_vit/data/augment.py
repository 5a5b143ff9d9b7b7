"""Training's crops, flips and turns: pure functions of the image and of uniform random numbers."""

from __future__ import annotations

import functools
import math
from types import ModuleType

import numpy as np

from shared_vit.data.preprocess import resize_to_cover
from shared_vit.spec.recipe import MIN_AREA
from shared_vit.spec.sides import Sides, sides

TRIES = 10
LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
NUM_UNIFORMS = 2 * TRIES + 3  # area and ratio of each try, top, left, flip


@functools.cache
def opencv() -> ModuleType:
    """cv2, imported on first use, with one thread."""
    import cv2

    cv2.setNumThreads(0)  # the pipeline has threads of its own
    return cv2


def crop_box(
    uniforms: np.ndarray, height: int, width: int, min_area: float = MIN_AREA
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random-resized crop (Szegedy et al. 2015).

    As `torchvision.transforms.RandomResizedCrop.get_params`: ten tries of a fraction of the area
    from `min_area` to 1 and a log-uniform ratio of 3/4 to 4/3; if none fits, the largest centred
    crop of a ratio within those bounds. uniforms: [23], in [0, 1).
    """
    u = uniforms.tolist()
    for i in range(TRIES):
        area = height * width * (min_area + (1.0 - min_area) * u[2 * i])
        ratio = math.exp(LOG_RATIO[0] + (LOG_RATIO[1] - LOG_RATIO[0]) * u[2 * i + 1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return _offset(u[-3], height - h), _offset(u[-2], width - w), h, w
    lowest, highest = math.exp(LOG_RATIO[0]), math.exp(LOG_RATIO[1])
    h, w = height, width
    if width / height < lowest:
        h = round(width / lowest)
    elif width / height > highest:
        w = round(height * highest)
    return (height - h) // 2, (width - w) // 2, h, w


def random_crop_flip(
    image: np.ndarray, size: Sides, uniforms: np.ndarray, min_area: float = MIN_AREA
) -> np.ndarray:
    """A random-resized crop to uint8 [*size, 3], mirrored half of the time.

    Bilinear without antialias (as big_vision trains), by OpenCV's bit-exact variant: integer
    arithmetic, equal on every processor. image: uint8 [H, W, 3]; uniforms, min_area: those of
    `crop_box`.
    """
    cv2 = opencv()
    height, width = image.shape[:2]
    top, left, h, w = crop_box(uniforms, height, width, min_area)
    rows, columns = sides(size)
    crop = cv2.resize(
        image[top : top + h, left : left + w], (columns, rows), interpolation=cv2.INTER_LINEAR_EXACT
    )
    return _flip(crop, uniforms)


def padded_crop_flip(
    image: np.ndarray, size: Sides, pad: int, interpolation: str, uniforms: np.ndarray
) -> np.ndarray:
    """A random crop of the image with `pad` black pixels on each side, mirrored half of the time.

    The crop of the CIFAR recipes (He et al. 2016, section 4.2). An image of another size is first
    resized until it covers `size`, as in evaluation. image: uint8 [H, W, 3] -> uint8 [*size, 3];
    interpolation: bilinear or bicubic; uniforms: those of `crop_box`, from which top, left and flip
    are taken.
    """
    image = resize_to_cover(image, size, interpolation)
    rows, columns = sides(size)
    height, width = image.shape[:2]
    padded = np.zeros((height + 2 * pad, width + 2 * pad, 3), np.uint8)
    padded[pad : pad + height, pad : pad + width] = image
    top = _offset(uniforms[-3], height + 2 * pad - rows)
    left = _offset(uniforms[-2], width + 2 * pad - columns)
    return _flip(padded[top : top + rows, left : left + columns], uniforms)


def random_affine(image: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """For digits: turned by up to 12 degrees, scaled by 0.88 to 1.12, shifted by up to 0.8 pixels.

    What comes in from outside is black. image: uint8 [H, W, 3] -> the same; uniforms: at least 4,
    in [0, 1).
    """
    cv2 = opencv()
    angle, scale, right, down = (2 * uniforms[:4] - 1) * (12, 0.12, 0.8, 0.8)
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1 + scale)
    matrix[:, 2] += right, down
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)


def _offset(uniform: float, most: int) -> int:
    """An offset from 0 to `most`, each as likely as the others."""
    return min(int(uniform * (most + 1)), most)


def _flip(crop: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    return opencv().flip(crop, 1) if uniforms[-1] < 0.5 else crop
