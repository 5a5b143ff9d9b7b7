"""Bytes of an image file to RGB pixels, the same on every machine; the fastest decoder first."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from shared_vit.data import levels, orientation
from shared_vit.data.sources.left_out import heic_is_read
from shared_vit.errors import UserError
from shared_vit.files import reason

if TYPE_CHECKING:
    from PIL import Image

MOST_PIXELS = 178_956_970  # of an image: half a gigabyte of RGB; Pillow refuses more, too
MOST_BYTES = 6 * MOST_PIXELS + (1 << 20)  # of a file: these as 16-bit RGB, not compressed

# Pillow's names. Some others of its formats run programs (PostScript) or have no place in a folder
# of photographs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "AVIF")
_HEIF = "HEIF"  # read where pillow-heif is installed
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
_FAST_COLORS = {"YCbCr", "RGB", "Gray"}
_JPEG = b"\xff\xd8\xff"


class DecodeError(UserError):
    """An image that cannot be decoded or prepared; the message says why, in one line."""


def decode(data: bytes, turn: bool = False) -> np.ndarray:
    """Pixels uint8 RGB [H, W, 3] of an encoded image in one of `FORMATS`, or in HEIC where
    pillow-heif is installed.

    Grey is repeated, alpha dropped, a palette looked up, 16 bits cut to the high 8 (or scaled where
    a TIFF says its range), CMYK inverted by Adobe's convention. Of an animation the first frame
    counts. EXIF orientation is ignored, or obeyed with `turn`; TIFF's and HEIC's always is. The
    content decides the format, not the file's name. JPEGs go through libjpeg-turbo's accurate DCT
    and smooth chroma upsampling: byte for byte Pillow's pixels.

    Raises DecodeError for empty, truncated or unknown content, for pixels of an unknown range, and
    for more than `MOST_PIXELS`, which are counted before they are decoded.
    """
    if not data:
        raise DecodeError("the file is empty")
    if data.startswith(_JPEG):
        image = _decode_plain_jpeg(data)
        if image is not None:
            return orientation.turned(image, orientation.jpeg_orientation(data)) if turn else image
    return _decode_any(data, turn)


def check_pixels(height: int, width: int, what: str = "it has") -> None:
    """Raise DecodeError for more than `MOST_PIXELS`."""
    if height * width > MOST_PIXELS:
        raise DecodeError(f"{what} {width:,} x {height:,} pixels, more than {MOST_PIXELS:,}")


def _decode_plain_jpeg(data: bytes) -> np.ndarray | None:
    """None for CMYK, and where libjpeg-turbo warns of anything: Pillow then decides."""
    import simplejpeg

    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        check_pixels(height, width)
        if colors in _FAST_COLORS:
            return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        pass
    return None


def _decode_any(data: bytes, turn: bool) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    known: tuple[str, ...] = FORMATS
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        known = _with_heif()
    try:
        with Image.open(io.BytesIO(data), formats=known) as file:
            return decoded(file, turn)
    except UnidentifiedImageError:
        raise DecodeError(f"not an image of a known format ({', '.join(FORMATS)})") from None
    except (DecodeError, MemoryError):
        raise
    except Exception as error:  # Pillow's plug-ins raise many kinds on broken files
        raise _as_decode_error(error) from error


def _with_heif() -> tuple[str, ...]:
    """The formats with HEIF among them. Raises DecodeError where Pillow cannot read it."""
    if not heic_is_read():
        raise DecodeError("it is a HEIC image: pip install pillow-heif, by which it is read")
    import pillow_heif  # type: ignore[import-not-found, unused-ignore]

    pillow_heif.register_heif_opener()
    return (*FORMATS, _HEIF)


def decoded(image: Image.Image, turn: bool = False) -> np.ndarray:
    """Pixels uint8 RGB [H, W, 3] of an image of Pillow's, as `decode` gives them.

    Raises DecodeError for a broken file, for pixels of an unknown range, and for more than
    `MOST_PIXELS`.
    """
    check_pixels(image.height, image.width)
    try:
        deep, stated = levels.is_deep(image), levels.stated_range(image)
        image.load()
        if turn:
            from PIL import ImageOps

            image = ImageOps.exif_transpose(image)
        return _rgb(image, deep, stated)
    except MemoryError:
        raise
    except levels.RangeError as error:
        raise DecodeError(str(error)) from error
    except Exception as error:
        raise _as_decode_error(error) from error


def _rgb(image: Image.Image, deep: bool, stated: tuple[float, float] | None) -> np.ndarray:
    """deep: of 16 bits a colour, of which Pillow has stored the high 8; stated: black and white."""
    if image.mode.startswith(("I", "F")):
        return np.repeat(levels.grey_levels(image, stated)[..., None], 3, axis=-1)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of a direct conversion to RGB
    pixels = np.asarray(image.convert("RGB"))
    if deep:
        levels.check_not_dark(pixels)
    return pixels


def _as_decode_error(error: Exception) -> DecodeError:
    return DecodeError(f"{type(error).__name__}: {reason(error)}")
