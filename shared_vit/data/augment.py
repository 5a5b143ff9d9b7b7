"""Crops, flips and resampling, each a pure function of the image and of uniform numbers."""

import functools
import math

import numpy as np

TRIES = 10
AREA = (0.08, 1.0)
LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
NUM_UNIFORMS = 2 * TRIES + 3  # area and ratio of each try, top, left, flip


@functools.cache
def _cv2():
    import cv2

    cv2.setNumThreads(0)  # the pipeline has threads of its own
    return cv2


def crop_box(uniforms: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random-resized crop: the Inception crop as torchvision samples it.

    Ten tries of an area of 8 to 100 % and a ratio, log-uniform, of 3/4 to 4/3; if none fits, the largest centred crop
    of a ratio within those bounds (`torchvision.transforms.RandomResizedCrop.get_params`). uniforms: [23], in [0, 1).
    """
    u = uniforms.tolist()
    for i in range(TRIES):
        area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * u[2 * i])
        ratio = math.exp(LOG_RATIO[0] + (LOG_RATIO[1] - LOG_RATIO[0]) * u[2 * i + 1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = min(int(u[-3] * (height - h + 1)), height - h)
            left = min(int(u[-2] * (width - w + 1)), width - w)
            return top, left, h, w
    lowest, highest = math.exp(LOG_RATIO[0]), math.exp(LOG_RATIO[1])
    h, w = height, width
    if width / height < lowest:
        h = round(width / lowest)
    elif width / height > highest:
        w = round(height * highest)
    return (height - h) // 2, (width - w) // 2, h, w


def random_crop_flip(image: np.ndarray, size: int, uniforms: np.ndarray) -> np.ndarray:
    """Training: a random-resized crop to uint8 [size, size, 3], mirrored half of the time.

    Bilinear without antialias (as big_vision trains), in OpenCV's bit-exact variant: integer arithmetic, equal on every
    processor. image: uint8 [H, W, 3]; uniforms: as `crop_box` takes them.
    """
    cv2 = _cv2()
    top, left, h, w = crop_box(uniforms, *image.shape[:2])
    crop = cv2.resize(
        image[top : top + h, left : left + w], (size, size), interpolation=cv2.INTER_LINEAR_EXACT
    )
    return cv2.flip(crop, 1) if uniforms[-1] < 0.5 else crop


def random_affine(image: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Training on digits: turned by up to 12 degrees, scaled by 0.88 to 1.12, shifted by up to 0.8 pixels; black around.

    image: uint8 [H, W, 3]; uniforms: at least 4, in [0, 1).
    """
    cv2 = _cv2()
    angle, scale, right, down = (2 * uniforms[:4] - 1) * (12, 0.12, 0.8, 0.8)
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1 + scale)
    matrix[:, 2] += right, down
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Evaluation: the short side to 256/224 of `size`, bilinear with antialias, then the middle: uint8 [size, size, 3].

    Sizes and offsets are rounded as torchvision's `Resize` and `CenterCrop` do, the filter is Pillow's, integer too.
    """
    from PIL import Image

    height, width = image.shape[:2]
    short = round(size * 256 / 224)
    if width <= height:
        w, h = short, int(short * height / width)
    else:
        w, h = int(short * width / height), short
    resized = Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR)
    top, left = round((h - size) / 2), round((w - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size)))
