"""Every kind of image file gives the right pixels, and what is no image an error that says why."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from data_helpers import encoded, photo
from PIL import Image

from shared_vit.data import decode as decode_module
from shared_vit.data.decode import DecodeError, decode

PIXELS = photo(0, 37, 53)


def png(pixels: np.ndarray, color_type: int, bits: int, extra: bytes = b"") -> bytes:
    """A PNG written by hand: rows of raw samples [H, ...] of 8 or 16 bits, big-endian."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, color_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in pixels)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def chunk_of(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_byte_for_byte_what_pillow_gives(subsampling, progressive):
    data = encoded(PIXELS, subsampling=subsampling, progressive=progressive, quality=85)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode(data), expected)
    assert (
        np.abs(decode(data).astype(int) - PIXELS).mean() < 12
    )  # and it is the image that was written


def test_the_fast_decoder_is_the_one_that_runs(monkeypatch):
    monkeypatch.setattr(
        decode_module, "_decode_any", lambda *_: pytest.fail("the slow decoder was used")
    )
    decode(encoded(PIXELS))
    decode(encoded(PIXELS[..., 0]))


def test_grey_is_repeated():
    image = decode(encoded(PIXELS[..., 0], quality=95))
    assert image.shape == PIXELS.shape and (image == image[..., :1]).all()
    assert np.abs(image[..., 0].astype(int) - PIXELS[..., 0]).mean() < 5


def test_cmyk_with_adobes_inversion():
    inks = np.zeros((16, 16, 4), np.uint8)  # as Pillow holds them: 255 is full ink
    inks[:8, :, 0] = 255  # cyan
    inks[8:, 8:, 3] = 255  # black
    file = io.BytesIO()
    Image.fromarray(inks, "CMYK").save(file, "JPEG", quality=100)
    assert b"Adobe" in file.getvalue()
    image = decode(file.getvalue())
    for pixel, color in (
        (image[2, 2], (0, 255, 255)),
        (image[13, 13], (0, 0, 0)),
        (image[13, 2], (255, 255, 255)),
    ):
        assert np.abs(pixel.astype(int) - color).max() <= 6


def test_a_png_named_jpeg_and_other_formats_by_content():
    for kind in ("PNG", "BMP", "PPM", "TIFF"):
        assert np.array_equal(decode(encoded(PIXELS, kind)), PIXELS)
    assert np.array_equal(decode(encoded(PIXELS, "WEBP", lossless=True)), PIXELS)


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    data = encoded(PIXELS, exif=exif.tobytes(), quality=90)
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == 6
    assert np.array_equal(decode(data), decode(encoded(PIXELS, quality=90)))


def test_sixteen_bits_are_cut_to_the_high_eight():
    samples = np.random.default_rng(0).integers(0, 65536, (9, 11, 4)).astype(np.uint16)
    high = (samples >> 8).astype(np.uint8)
    assert np.array_equal(decode(png(samples[..., :3], 2, 16)), high[..., :3])
    assert np.array_equal(decode(png(samples, 6, 16)), high[..., :3])
    assert np.array_equal(decode(png(samples[..., 0], 0, 16)), np.repeat(high[..., :1], 3, axis=-1))


def test_a_palette_is_looked_up_and_alpha_dropped():
    palette = np.random.default_rng(1).integers(0, 256, (256, 3)).astype(np.uint8)
    indices = np.random.default_rng(2).integers(0, 256, (9, 11)).astype(np.uint8)
    table = chunk_of(b"PLTE", palette.tobytes())
    transparent = chunk_of(b"tRNS", bytes(range(256)))
    assert np.array_equal(decode(png(indices, 3, 8, table)), palette[indices])
    assert np.array_equal(decode(png(indices, 3, 8, table + transparent)), palette[indices])
    alpha = np.dstack([PIXELS, np.arange(37 * 53).reshape(37, 53) % 256]).astype(np.uint8)
    assert np.array_equal(decode(encoded(alpha, "PNG")), PIXELS)
    grey_alpha = alpha[..., 2:]
    assert np.array_equal(decode(png(grey_alpha, 4, 8)), np.repeat(PIXELS[..., 2:], 3, axis=-1))
    bits = Image.fromarray(PIXELS[..., 0]).convert("1")
    file = io.BytesIO()
    bits.save(file, "PNG")
    assert np.array_equal(
        decode(file.getvalue()), np.repeat(np.asarray(bits)[..., None] * np.uint8(255), 3, axis=-1)
    )


def test_stray_bytes_after_and_inside_a_jpeg_do_no_harm():
    """As in several of ImageNet's files, at which libjpeg warns and every reader goes on."""
    data = encoded(PIXELS, quality=90)
    assert np.array_equal(decode(data + b"stray bytes"), decode(data))
    at = data.index(b"\xff\xdb")
    assert np.array_equal(decode(data[:at] + b"\0\0" + data[at:]), decode(data))


WHOLE = encoded(PIXELS, quality=90)
BROKEN = {
    "empty": b"",
    "half of it": WHOLE[: len(WHOLE) // 2],
    "only a header": WHOLE[:200],
    "only a mark": WHOLE[:3],
    "a few bytes short": WHOLE[:-200],
    "half a png": encoded(PIXELS, "PNG")[:700],
    "a web page": b"<!DOCTYPE html><html><body>404</body></html>",
    "zeros": bytes(5000),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_whole_image_is_an_error(name):
    with pytest.raises(DecodeError) as caught:
        decode(BROKEN[name])
    assert len(str(caught.value)) > 10 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fault",
    [dict(fastdct=True), dict(fastupsample=True), dict(colorspace="BGR")],
    ids=["dct", "upsampling", "order"],
)
def test_the_comparison_notices_another_decoder(monkeypatch, fault):
    import simplejpeg

    real = simplejpeg.decode_jpeg
    monkeypatch.setattr(
        simplejpeg,
        "decode_jpeg",
        lambda data, space: real(data, **(dict(colorspace=space) | fault)),
    )
    with pytest.raises(AssertionError):
        test_jpeg_is_byte_for_byte_what_pillow_gives(2, False)


def test_nothing_but_the_pipeline_imports_decoders():
    heavy = {"cv2", "PIL", "grain", "jax", "torch", "sklearn"}
    program = f"import sys, shared_vit.data; print(*sorted({heavy} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == []
