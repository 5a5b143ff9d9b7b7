"""RandAugment (Cubuk et al. 2020) in integers: equal bytes on every processor.

The 16 operations, their list and their strengths are those of big_vision's `randaug(N, M)`, drawn
uniformly, always applied; with two differences: contrast turns about the mean grey level (there: a
count of pixels, by mistake), and lengths in pixels are those of 224 px and scale with the side:
along an axis with its own, of the cutout with the shorter one. For an image of side S and strength
M, all divisions rounded down (the one rounding there is):

    autocontrast    of each channel: 255 (x - lowest) / (highest - lowest)
    equalize        of each channel: (pixels darker than x + step / 2) / step, with
                    step = (pixels - those of the brightest level in use) / 255
    invert          255 - x
    rotate          3 M degrees about the centre, either way
    posterize       retain the 4 M / 10 highest bits
    solarize        255 - x from the level 256 M / 10 on; at M = 10 everywhere (see `_solarize`)
    color           grey + f (x - grey), with f = (18 M + 10) / 100
    contrast        mean + f (x - mean), the mean of the grey levels rounded to the nearest
    brightness      f x
    sharpness       smooth + f (x - smooth), smooth = (the 3 x 3 around + 4 x) / 13; not at the edge
    shear_x, shear_y            by 3 M / 100 of the other coordinate, either way
    translate_x, translate_y    by 10 M S / 224 pixels, either way
    cutout          a square of half side 4 M S / 224 about a random pixel becomes 128
    solarize_add    x + 11 M below 128

Results are clipped to 0..255. Geometric operations take the nearest pixel, ties towards the larger
coordinate; what comes in from outside is 128. Grey is (19595 R + 38470 G + 7471 B + 2^15) / 2^16.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shared_vit.data.augment import opencv

FILL = 128
UNIFORMS_PER_LAYER = 4  # operation, direction, row and column of the cutout
_GREY = (19595, 38470, 7471)  # ITU-R 601's weights in 2^-16, as Pillow has them
_FRACTION = 30  # bits of sines and cosines
_BAND = 1 << 14  # numbers that are blended at a time


@dataclass(frozen=True)
class RandAugment:
    """N `layers` of one random operation each, of strength M, `magnitude` (1 to 15)."""

    layers: int
    magnitude: int

    @property
    def num_uniforms(self) -> int:
        return self.layers * UNIFORMS_PER_LAYER

    def __call__(self, image: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] -> the same type and shape; uniforms: [num_uniforms], in [0, 1)."""
        return rand_augment(image, self.magnitude, uniforms.reshape(-1, UNIFORMS_PER_LAYER))


def rand_augment(image: np.ndarray, magnitude: int, uniforms: np.ndarray) -> np.ndarray:
    """One random operation after another, a layer for each row of `uniforms`.

    image: uint8 [H, W, 3] -> a new one, or itself where N is 0; magnitude: 1 to 15; uniforms:
    [N, 4] in [0, 1).
    """
    for operation, direction, row, column in uniforms.tolist():
        name = OPERATIONS[int(operation * len(OPERATIONS))]
        sign = -1 if direction < 0.5 else 1
        centre = (int(row * image.shape[0]), int(column * image.shape[1]))
        image = apply(name, image, magnitude, sign, centre)
    return image


def apply(
    name: str, image: np.ndarray, magnitude: int, sign: int = 1, centre: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """One of `OPERATIONS`. sign: -1 or 1, for those that go either way; centre: of the cutout."""
    if name in _PLACES:
        places = gather_places(name, image.shape[:2], magnitude, sign)
        # Between integer coordinates there is nothing to interpolate: this is a gather.
        cv2 = opencv()
        return cv2.remap(
            image,
            places,
            None,
            cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(FILL,) * 3,
        )
    if name == "cutout":
        return _cutout(image, magnitude, centre)
    return _OF_PIXELS[name](image, magnitude)


@functools.lru_cache(64)  # more than the 10 of one size and strength
def gather_places(name: str, shape: _Shape, magnitude: int, sign: int) -> np.ndarray:
    """Where each output pixel of a geometric operation comes from: int16 [*shape, 2], (x, y).

    Both are -1 where that is outside.
    """
    y, x = np.indices(shape, np.int64)
    x, y = _PLACES[name](x, y, shape, magnitude, sign)
    inside = (0 <= x) & (x < shape[1]) & (0 <= y) & (y < shape[0])
    places = np.where(inside[..., None], np.stack([x, y], -1), -1).astype(np.int16)
    places.flags.writeable = False
    return places


_Grid = tuple[np.ndarray, np.ndarray]
_Shape = tuple[int, int]


def _rotate(x: np.ndarray, y: np.ndarray, shape: _Shape, magnitude: int, sign: int) -> _Grid:
    angle = math.radians(3 * magnitude) * sign
    cos, sin = (round(f(angle) * 2**_FRACTION) for f in (math.cos, math.sin))
    height, width = shape
    dx, dy = 2 * x - (width - 1), 2 * y - (height - 1)  # from the centre, in half pixels
    # The centre and half a pixel, for rounding.
    middle_x, middle_y = width << _FRACTION, height << _FRACTION
    return (
        (cos * dx - sin * dy + middle_x) >> (_FRACTION + 1),
        (sin * dx + cos * dy + middle_y) >> (_FRACTION + 1),
    )


def _shear_x(x: np.ndarray, y: np.ndarray, shape: _Shape, magnitude: int, sign: int) -> _Grid:
    return x + (2 * sign * 3 * magnitude * y + 100) // 200, y


def _shear_y(x: np.ndarray, y: np.ndarray, shape: _Shape, magnitude: int, sign: int) -> _Grid:
    return x, y + (2 * sign * 3 * magnitude * x + 100) // 200


def _translate_x(x: np.ndarray, y: np.ndarray, shape: _Shape, magnitude: int, sign: int) -> _Grid:
    return x + sign * (10 * magnitude * shape[1] // 224), y


def _translate_y(x: np.ndarray, y: np.ndarray, shape: _Shape, magnitude: int, sign: int) -> _Grid:
    return x, y + sign * (10 * magnitude * shape[0] // 224)


def _cutout(image: np.ndarray, magnitude: int, centre: tuple[int, int]) -> np.ndarray:
    half = 4 * magnitude * min(image.shape[:2]) // 224
    row, column = centre
    image = image.copy()
    image[max(0, row - half) : row + half, max(0, column - half) : column + half] = FILL
    return image


def _autocontrast(image: np.ndarray, magnitude: int) -> np.ndarray:
    def table(count: np.ndarray) -> np.ndarray:
        used = np.flatnonzero(count)
        low, high = int(used[0]), int(used[-1])
        if low == high:
            return _LEVELS
        return (_LEVELS - low) * 255 // (high - low)

    return _by_channel(image, table)


def _equalize(image: np.ndarray, magnitude: int) -> np.ndarray:
    pixels = image.shape[0] * image.shape[1]

    def table(count: np.ndarray) -> np.ndarray:
        step = (pixels - int(count[np.flatnonzero(count)[-1]])) // 255
        if step == 0:
            return _LEVELS
        return (np.cumsum(count) - count + step // 2) // step

    return _by_channel(image, table)


def _invert(image: np.ndarray, magnitude: int) -> np.ndarray:
    return 255 - image


def _posterize(image: np.ndarray, magnitude: int) -> np.ndarray:
    dropped = 8 - 4 * magnitude // 10
    return image & np.uint8(0xFF << dropped & 0xFF)


def _solarize(image: np.ndarray, magnitude: int) -> np.ndarray:
    # The published code compares bytes with 256 at M = 10, which wraps to 0 and inverts all levels:
    # the published accuracies have that. Above 10 the threshold stays 256, which no level reaches.
    threshold = 0 if magnitude == 10 else min(256, 256 * magnitude // 10)
    return _mapped(image, np.where(_LEVELS < threshold, _LEVELS, 255 - _LEVELS))


def _solarize_add(image: np.ndarray, magnitude: int) -> np.ndarray:
    return _mapped(image, np.where(_LEVELS < 128, _LEVELS + 11 * magnitude, _LEVELS))


def _color(image: np.ndarray, magnitude: int) -> np.ndarray:
    grey = _grey(image).astype(np.uint8)
    return _blend(image, opencv().merge([grey, grey, grey]), magnitude)


def _contrast(image: np.ndarray, magnitude: int) -> np.ndarray:
    grey = _grey(image)
    mean = (2 * int(grey.sum(dtype=np.int64)) + grey.size) // (2 * grey.size)
    return _mapped(image, _blended(_LEVELS, mean, magnitude))


def _brightness(image: np.ndarray, magnitude: int) -> np.ndarray:
    return _mapped(image, _blended(_LEVELS, 0, magnitude))


def _sharpness(image: np.ndarray, magnitude: int) -> np.ndarray:
    # The sums are integers of at most 3315: exact, in whatever type they are added.
    cv2 = opencv()
    smooth = cv2.filter2D(image, cv2.CV_16S, _SMOOTH).view(np.uint16) // 13
    result = _blend(image, smooth, magnitude)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        result[edge] = image[edge]
    return result


_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32)
_LEVELS = np.arange(256, dtype=np.int32)


def _blended(x: np.ndarray, base: int | np.ndarray, magnitude: int) -> np.ndarray:
    """base + f (x - base), rounded down; int32."""
    factor = 18 * magnitude + 10  # in hundredths
    return (factor * x - (factor - 100) * base) // 100


def _blend(image: np.ndarray, base: np.ndarray, magnitude: int) -> np.ndarray:
    """`_blended` to uint8, in bands of rows: large temporary arrays cost more than the sums."""
    result = np.empty_like(image)
    rows = max(1, _BAND // (image.shape[1] * 3))
    for begin in range(0, len(image), rows):
        band = np.s_[begin : begin + rows]
        mixed = _blended(image[band].astype(np.int32), base[band].astype(np.int32), magnitude)
        result[band] = np.clip(mixed, 0, 255, out=mixed)
    return result


def _grey(image: np.ndarray) -> np.ndarray:
    """int32 [S, S]."""
    red, green, blue = (image[..., c].astype(np.int32) * _GREY[c] for c in range(3))
    return (red + green + blue + (1 << 15)) >> 16


def _mapped(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Each level looked up in int32 [256], clipped to 0..255."""
    return opencv().LUT(image, np.clip(table, 0, 255).astype(np.uint8))


def _by_channel(image: np.ndarray, table: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Each channel mapped by the table, int32 [256], of its counts of levels, int64 [256]."""
    cv2 = opencv()
    channels = []
    for channel in cv2.split(image):
        # Counted in 32 bits and exact as float32 up to 2^24 pixels, more than an input may have.
        count = cv2.calcHist([channel], [0], None, [256], [0, 256]).ravel()
        channels.append(_mapped(channel, table(count.astype(np.int64))))
    return cv2.merge(channels)


_PLACES: dict[str, Callable[..., _Grid]] = {
    "rotate": _rotate,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
_OF_PIXELS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": _invert,
    "posterize": _posterize,
    "solarize": _solarize,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "solarize_add": _solarize_add,
}
# The order of big_vision's list; a draw u is operation int(16 u).
OPERATIONS = (
    "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "color", "contrast",
    "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y", "cutout",
    "solarize_add",
)  # fmt: skip
