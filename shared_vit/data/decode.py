"""Bytes of an image file to RGB pixels, the same on every machine; the fastest decoder first."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from shared_vit.errors import UserError
from shared_vit.files import reason

if TYPE_CHECKING:
    from PIL import Image

MOST_PIXELS = 178_956_970  # of an image: half a gigabyte of RGB; Pillow refuses more, too
MOST_BYTES = 6 * MOST_PIXELS + (1 << 20)  # of a file: these as 16-bit RGB, not compressed

# Pillow's names. Some others of its formats run programs (PostScript) or have no place in a folder
# of photographs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF")
_FAST_COLORS = {"YCbCr", "RGB", "Gray"}
_JPEG = b"\xff\xd8\xff"


class DecodeError(UserError):
    """An image that cannot be decoded or prepared; the message says why, in one line."""


def decode(data: bytes) -> np.ndarray:
    """Pixels uint8 RGB [H, W, 3] of an encoded image in one of `FORMATS`.

    Grey is repeated, alpha dropped, a palette looked up, 16 bits cut to the high 8, CMYK inverted
    by Adobe's convention. Of an animation the first frame counts; EXIF orientation is ignored. The
    content decides the format, not the file's name. JPEGs go through libjpeg-turbo's accurate DCT
    and smooth chroma upsampling: byte for byte Pillow's pixels.

    Raises DecodeError for empty, truncated or unknown content and for more than `MOST_PIXELS`,
    which are counted before they are decoded.
    """
    if not data:
        raise DecodeError("the file is empty")
    if data.startswith(_JPEG):
        image = _decode_plain_jpeg(data)
        if image is not None:
            return image
    return _decode_any(data)


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


def _decode_any(data: bytes) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            return decoded(file)
    except UnidentifiedImageError:
        raise DecodeError(f"not an image of a known format ({', '.join(FORMATS)})") from None
    except (DecodeError, MemoryError):
        raise
    except Exception as error:  # Pillow's plug-ins raise many kinds on broken files
        raise _as_decode_error(error) from error


def decoded(image: Image.Image) -> np.ndarray:
    """Pixels uint8 RGB [H, W, 3] of an image of Pillow's, as `decode` gives them.

    Raises DecodeError for a broken file and for more than `MOST_PIXELS`.
    """
    check_pixels(image.height, image.width)
    try:
        if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip to 255
            grey = np.asarray(image)
            return np.repeat((grey >> 8).clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns of a direct conversion to RGB
        return np.asarray(image.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:
        raise _as_decode_error(error) from error


def _as_decode_error(error: Exception) -> DecodeError:
    return DecodeError(f"{type(error).__name__}: {reason(error)}")
