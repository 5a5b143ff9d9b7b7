"""Pixels of more than 8 bits are scaled by the range that the file says, or refused by name."""

import io

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from shared_vit.data.decode import DecodeError, decode

MIN, MAX, SMIN, SMAX = 280, 281, 340, 341
RAMP = np.linspace(0, 1, 60, dtype=np.float32).reshape(6, 10)


def tiff(pixels: np.ndarray, tags: dict[int, float] | None = None, kind: str = "TIFF") -> bytes:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in (tags or {}).items():
        info.tagtype[tag] = 12 if tag in (SMIN, SMAX) else 3  # double, short
        info[tag] = value
    file = io.BytesIO()
    options = {"tiffinfo": info} if kind == "TIFF" else {}
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (-3.0, 500.0)])
def test_floating_point_is_scaled_by_the_stated_range(low, high):
    pixels = decode(tiff(RAMP * (high - low) + low, {SMIN: low, SMAX: high}))
    assert np.array_equal(pixels, np.repeat(np.round(RAMP * 255)[..., None], 3, axis=-1))
    clipped = decode(tiff(RAMP * 4 - 1, {SMIN: 0.0, SMAX: 1.0}))
    assert clipped.min() == 0 and clipped.max() == 255


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_floating_point_without_a_range_is_refused(scale):
    with pytest.raises(DecodeError, match="floating-point numbers.*SMinSampleValue"):
        decode(tiff(RAMP * np.float32(scale)))
    with pytest.raises(DecodeError, match="not finite"):
        decode(tiff(RAMP + np.float32(np.inf), {SMIN: 0.0, SMAX: 1.0}))


def test_twelve_bits_in_sixteen():
    pixels = np.round(RAMP * 4095).astype(np.uint16)
    stated = decode(tiff(pixels, {MIN: 0, MAX: 4095}))
    assert np.array_equal(stated[..., 0], np.round(pixels * (255 / 4095)))
    for kind in ("TIFF", "PNG"):
        with pytest.raises(DecodeError, match="16 bits are up to 4,095 of 65,535, nearly black"):
            decode(tiff(pixels, kind=kind))


def test_sixteen_bits_that_are_used_or_all_black_are_as_they_were():
    pixels = np.round(RAMP * 65535).astype(np.uint16)
    for tags in ({}, {MIN: 0, MAX: 65535}):
        assert np.array_equal(decode(tiff(pixels, tags))[..., 0], pixels >> 8)
    assert not decode(tiff(pixels * 0, kind="PNG")).any()


def test_integers_of_thirty_two_bits_are_refused():
    with pytest.raises(DecodeError, match="integers up to 1,000,000"):
        decode(tiff((RAMP * 1_000_000).astype(np.int32)))


def test_colours_of_twelve_bits_in_sixteen_are_refused():
    from test_data_decode import png

    pixels = np.repeat(np.round(RAMP * 4095).astype(np.uint16)[..., None], 3, axis=-1)
    with pytest.raises(DecodeError, match="16 bits are below a sixteenth of 65,535"):
        decode(png(pixels, 2, 16))
    assert decode(png(pixels * 16, 2, 16)).max() == 255
    dark = np.full((4, 4, 3), 3, np.uint8)  # 8 bits are what they are
    assert np.array_equal(decode(png(dark, 2, 8)), dark)
