"""What becomes of a photograph's EXIF orientation is chosen, counted, and goes with the weights."""

import io
import sys

import numpy as np
import pytest
from data_helpers import encoded, folder_run, image_folder, photo, take
from helpers import random_arrays
from PIL import Image, ImageOps
from whole_runs import train_here

import twinvit
from shared_vit import weights
from shared_vit.data import open_dataset, orientation
from shared_vit.data.decode import decode
from shared_vit.spec.config import ModelConfig, model_config
from shared_vit.weights import open_weights
from twinvit.predict.command import predict

PIXELS = photo(0, 37, 53)
TINY = ("--model=vit_nano2", "--image_size=8", "--batch_size=8", "--steps=1", "--workers=0")


def photograph(number: int, pixels=PIXELS, kind: str = "JPEG", **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = number
    return encoded(pixels, kind, exif=exif.tobytes(), **options)


def turned_folder(root):
    """21 training and 12 validation images, of which 2 lie on their sides."""
    image_folder(root)
    for name in ("train/n01/n01_0.JPEG", "val/n02/n02_1.JPEG"):
        (root / name).write_bytes(photograph(6, photo(9, 40, 60), quality=90))
    return root


@pytest.mark.parametrize("number", range(1, 9))
def test_each_orientation_is_turned_as_pillow_turns_it(number):
    data = photograph(number, quality=90)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(decode(data, turn=True), expected)
    assert np.array_equal(decode(data), decode(photograph(1, quality=90)))
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        other = photograph(number, kind=kind, **options)
        expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(other))))
        assert np.array_equal(decode(other, turn=True), expected)
        assert np.array_equal(decode(other), PIXELS)


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\xff", b"\xff" * 99])
def test_broken_exif_leaves_the_image_as_it_is(exif):
    data = encoded(PIXELS, exif=exif, quality=90)
    assert np.array_equal(decode(data, turn=True), decode(data))
    assert orientation.jpeg_orientation(photograph(9)) == 1


def test_they_are_counted_at_the_start(tmp_path, capsys):
    root = turned_folder(tmp_path / "photos")
    flags = ("--data=folder", f"--data_dir={root}", *TINY)
    assert train_here("torch", tmp_path / "ignored", *flags) == 0
    said = capsys.readouterr().out
    assert (
        "notice: 2 of the 33 images have an EXIF orientation other than upright, which is ignored; "
        "--exif=turn turns them upright"
    ) in said
    assert train_here("torch", tmp_path / "turned", *flags, "--exif=turn") == 0
    assert "2 of the 33 images have an EXIF orientation other than upright, which is obeyed" in (
        capsys.readouterr().out
    )
    image_folder(tmp_path / "plain")
    assert orientation.notice(open_dataset("folder", str(tmp_path / "plain")), "ignore") == ""


def test_batches_of_both_splits_follow_the_choice(tmp_path):
    root = turned_folder(tmp_path)
    for split in ("train", "val"):
        one, other = (
            np.concatenate([b.images for b in take(folder_run(root, exif=e), 2, split=split)])
            for e in ("ignore", "turn")
        )
        changed = (one != other).any(axis=(1, 2, 3)).sum()
        assert changed == 1 if split == "val" else changed <= 1


def test_the_choice_goes_with_the_weights_and_predict_follows_it(tmp_path):
    root = turned_folder(tmp_path / "photos")
    flags = ("--data=folder", f"--data_dir={root}", *TINY, "--exif=turn")
    assert train_here("torch", tmp_path / "run", *flags) == 0
    assert open_weights(tmp_path / "run").cfg.exif == "turn"
    path = root / "val/n02/n02_1.JPEG"
    upright = ImageOps.exif_transpose(Image.open(path))
    predictor = twinvit.load(tmp_path / "run", "torch")
    for picture in (str(path), Image.open(path)):
        assert predictor.predict(picture) == predictor.predict(np.asarray(upright))
    lying = np.asarray(Image.open(path))
    plain = twinvit.load(tmp_path / "run", "torch", exif="ignore")
    assert plain.predict(str(path)) == plain.predict(lying)
    assert predictor.predict(str(path)) != plain.predict(str(path))
    again = ("--data=folder", f"--data_dir={root}", "--batch_size=8", "--steps=1", "--workers=0")
    assert train_here("torch", tmp_path / "next", f"--init_from={tmp_path}/run", *again) == 0
    assert open_weights(tmp_path / "next").cfg.exif == "turn"


def test_weights_from_elsewhere_are_shown_pictures_upright_with_a_notice(tmp_path, capsys):
    cfg = model_config("vit_nano2", num_classes=3, image_size=8)
    file, card = tmp_path / "w.safetensors", tmp_path / "w.safetensors.json"
    weights.write(file, cfg, random_arrays(cfg), format="torchvision")
    import safetensors.numpy

    arrays = safetensors.numpy.load_file(file)
    own = twinvit.load(file, "torch", num_heads=4)  # with its card
    card.unlink()
    safetensors.numpy.save_file(arrays, file)
    path = tmp_path / "lying.jpg"
    path.write_bytes(photograph(6, quality=90))
    with pytest.warns(UserWarning, match="images are turned upright by their EXIF"):
        other = twinvit.load(file, "torch", num_heads=4)
    assert (own.cfg.exif, other.cfg.exif) == ("ignore", "turn")
    assert own.predict(str(path)) != other.predict(str(path))
    assert predict(str(file), (str(path),), num_heads=4) == 0
    assert "turned upright by their EXIF" in capsys.readouterr().err
    assert predict(str(file), (str(path),), num_heads=4, exif="ignore") == 0
    assert "turned upright" not in capsys.readouterr().err


@pytest.mark.parametrize("format", ["huggingface", "timm"])
def test_it_survives_a_model_folder_and_is_a_note_where_the_target_ignores_it(tmp_path, format):
    cfg = model_config("vit_nano2", num_classes=3, image_size=8, exif="turn")
    with pytest.warns(UserWarning, match="exif_transpose"):
        weights.write(tmp_path / "folder", cfg, random_arrays(cfg), format=format)
    assert open_weights(tmp_path / "folder").cfg.exif == "turn"


def test_files_older_than_the_field_ignore_it():
    import dataclasses

    values = dataclasses.asdict(ModelConfig())
    del values["exif"]
    assert ModelConfig.from_dict(values).exif == "ignore"


def test_heic_is_read_where_its_package_is(tmp_path, monkeypatch):
    """By a stand-in of pillow-heif that registers a reader as it does."""
    (tmp_path / "pillow_heif.py").write_text(
        "from PIL import Image, PngImagePlugin\nimport io\n"
        "def register_heif_opener():\n"
        "    def opened(file, name=''):\n"
        "        file.seek(64)\n"
        "        return PngImagePlugin.PngImageFile(io.BytesIO(file.read()))\n"
        "    Image.register_open('HEIF', opened, lambda head: head[4:8] == b'ftyp')\n"
    )
    content = b"\0\0\0\x18ftypheic".ljust(64, b"\0") + encoded(PIXELS, "PNG")
    with pytest.raises(Exception, match="pip install pillow-heif"):
        decode(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    from shared_vit.data.sources import left_out

    assert left_out.heic_is_read()
    assert np.array_equal(decode(content), PIXELS)
    monkeypatch.delitem(sys.modules, "pillow_heif")
    Image.OPEN.pop("HEIF")
