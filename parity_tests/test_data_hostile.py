"""Files that are hostile, or no images at all, cost a message: not memory, not time, no program."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from data_helpers import encoded, folder_run, image_folder, photo, take
from PIL import EpsImagePlugin

from shared_vit.data import decode as decode_module
from shared_vit.data.check import check_folder
from shared_vit.data.decode import MOST_PIXELS, DecodeError, check_pixels, decode
from shared_vit.errors import UserError

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


def ribbon(height: int, width: int) -> bytes:
    """A PNG of black pixels, 157 bytes for 1 x 40,000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 1) * height), 9)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def jpeg_that_claims(height: int, width: int) -> bytes:
    """A JPEG with another size in its header."""
    data = bytearray(encoded(photo(0, 16, 16)))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def test_postscript_is_given_to_no_program(monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    monkeypatch.setattr(
        EpsImagePlugin, "Ghostscript", lambda *args, **options: pytest.fail("gs was started")
    )
    with pytest.raises(DecodeError, match="not an image of a known format"):
        decode(POSTSCRIPT)


@pytest.mark.parametrize("name", ["simplejpeg", "pillow"])
def test_a_jpeg_of_900_megapixels_is_refused_by_its_header(monkeypatch, name):
    import simplejpeg
    from PIL import ImageFile

    def used(*arguments, **options):
        pytest.fail("its pixels were decoded")

    data = jpeg_that_claims(30_000, 30_000)
    if name == "simplejpeg":
        monkeypatch.setattr(simplejpeg, "decode_jpeg", used)
    else:
        monkeypatch.setattr(decode_module, "_decode_plain_jpeg", lambda data: None)
        monkeypatch.setattr(ImageFile.ImageFile, "load", used)
    with pytest.raises(DecodeError):
        decode(data)


def test_the_bound_is_on_pixels():
    check_pixels(1, MOST_PIXELS)
    with pytest.raises(DecodeError, match="it has 2 x 89,478,486 pixels, more than 178,956,970"):
        check_pixels(MOST_PIXELS // 2 + 1, 2)


def test_a_ribbon_is_replaced_or_stops_the_run(tmp_path):
    image_folder(tmp_path)
    path = tmp_path / "val/n01/n01_2.JPEG"
    path.write_bytes(ribbon(40_000, 1))
    assert path.stat().st_size < 200
    run = folder_run(tmp_path, image_size=224, patch_size=16, batch_size=4)
    with pytest.raises(UserError, match="cannot decode .*n01_2.JPEG: 1 x 40,000 pixels would"):
        take(run, 1, split="val")
    dataset = run.dataset()
    batch = take(run.but(on_bad_image="skip"), 1, split="val", dataset=dataset)[0]
    assert np.array_equal(batch.images[2], batch.images[3]) and dataset.bad_images.count == 1


@pytest.mark.parametrize("size", [(40_000, 1), (1, 40_000), (40_000, 40)])
def test_a_ribbon_can_be_trained_on(tmp_path, size):
    for place in ("train/a", "train/b", "val/a"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "1.png").write_bytes(ribbon(*size))
    assert not take(folder_run(tmp_path, batch_size=1), 1)[0].images.any()


@pytest.mark.parametrize("skip", ["stop", "skip"])
def test_a_shortage_of_memory_stops_the_run_and_replaces_nothing(tmp_path, monkeypatch, skip):
    """It says nothing of the image; another start would not replace it and draw another curve."""
    from shared_vit.data import examples

    def decode(data, turn):
        raise MemoryError

    image_folder(tmp_path)
    monkeypatch.setattr(examples, "decode", decode)
    with pytest.raises(UserError, match="out of memory while decoding .*n01_0.JPEG"):
        take(folder_run(tmp_path, on_bad_image=skip, batch_size=1), 1, split="val")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [fifo, endless])
def test_what_is_no_file_is_found_before_the_run(tmp_path, make):
    image_folder(tmp_path)
    for split in ("train", "val"):
        make(tmp_path / split / "n02/odd.jpg")
        with pytest.raises(UserError, match="not regular files.*: .*/n02/odd.jpg") as caught:
            folder_run(tmp_path).dataset()
        assert f"{tmp_path}/{split}/n02/odd.jpg" in str(caught.value)
        with pytest.raises(UserError, match="not regular files"):
            check_folder(tmp_path)
        (tmp_path / split / "n02/odd.jpg").unlink()
    assert len(folder_run(tmp_path).dataset().train) == 21


@pytest.mark.parametrize("skip", ["stop", "skip"])
@pytest.mark.parametrize("make", [fifo, endless])
def test_what_becomes_no_file_stops_the_run(tmp_path, make, skip):
    image_folder(tmp_path)
    run = folder_run(tmp_path, on_bad_image=skip)
    dataset = run.dataset()
    path = tmp_path / "val/n02/n02_1.JPEG"
    path.unlink()
    make(path)
    with pytest.raises(UserError, match="n02_1.JPEG: it is not a regular file"):
        take(run, 2, split="val", dataset=dataset)


def test_a_file_of_more_bytes_than_any_image_is_not_read(tmp_path):
    image_folder(tmp_path)
    path = tmp_path / "val/n01/n01_0.JPEG"
    with open(path, "ab") as file:
        file.truncate(2 << 30)  # takes no room on the disk
    with pytest.raises(UserError, match="n01_0.JPEG: it has more than"):
        take(folder_run(tmp_path), 1, split="val")
