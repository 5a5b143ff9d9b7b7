"""Bytes of an image file to RGB pixels, the same on every machine; the fastest decoder first."""

import io

import numpy as np

_FAST_COLORS = {"YCbCr", "RGB", "Gray"}
_JPEG = b"\xff\xd8\xff"


class DecodeError(Exception):
    """The bytes are no image that can be decoded; the message says why."""


def decode(data: bytes) -> np.ndarray:
    """Pixels uint8 RGB [H, W, 3] of an encoded image: JPEG, PNG, WebP, BMP, TIFF and whatever else Pillow opens.

    Grey is repeated, alpha dropped, a palette looked up, 16 bits cut to the high 8, CMYK inverted as Adobe does,
    an animation's first frame taken, EXIF's orientation ignored. The content decides, not the file's name.
    libjpeg-turbo's accurate DCT and smooth chroma upsampling: byte for byte what Pillow gives.

    Raises DecodeError for what is empty, truncated or no image.
    """
    if not data:
        raise DecodeError("the file is empty")
    if data.startswith(_JPEG):
        image = _decode_plain_jpeg(data)
        if image is not None:
            return image
    return _decode_any(data)


def _decode_plain_jpeg(data: bytes) -> np.ndarray | None:
    """None where libjpeg-turbo has the least complaint, or for inks: the slower decoder then judges."""
    import simplejpeg

    try:
        if simplejpeg.decode_jpeg_header(data)[2] in _FAST_COLORS:
            return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        pass
    return None


def _decode_any(data: bytes) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode.startswith(
                "I"
            ):  # 16 bits of grey; Pillow's own conversion would clip them to 255
                grey = np.asarray(image)
                return np.repeat((grey >> 8).clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")  # Pillow warns of going to RGB at once
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        raise DecodeError("not an image of a known format") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plug-ins raise many kinds on broken files
        raise DecodeError(f"{type(error).__name__}: {error}") from error
