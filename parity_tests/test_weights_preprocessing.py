"""Claim: what a conversion writes makes the target's own code turn an image into the same pixels.

The libraries' own transforms run on synthetic images; ours is `evaluation_input`.
"""

import dataclasses
import json
import math
import warnings

import numpy as np
import peers  # noqa: F401 - makes torchvision importable
import pytest
from helpers import SMALL, random_arrays

from shared_vit import weights
from shared_vit.data.preprocess import evaluation_input, normalize
from shared_vit.weights.formats import FOREIGN, huggingface, resize, timm
from shared_vit.weights.formats.base import Hints, Notes
from twinvit.convert import certificate
from twinvit.convert.libraries import preprocess
from twinvit.convert.synthetic_images import drawn_images

COLOURS = dict(mean=(0.4, 0.45, 0.5), std=(0.2, 0.25, 0.3))
# Resizes whose margins are even, so that no library rounds the offset of the short side's crop.
RESIZES = {
    "historical": dict(image_size=56),
    "no margin": dict(eval_resize=1.0),
    "bicubic": dict(image_size=56, interpolation="bicubic"),
    "squashed": dict(eval_resize=0.0, interpolation="bicubic"),
    "squashed, bilinear": dict(eval_resize=0.0),
    "timm's 0.9": dict(image_size=40, eval_resize=44 / 40, interpolation="bicubic"),
}
SUFFIX = {"timm": "", "torchvision": ".pth", "huggingface": ""}


def model(changes: dict):
    return dataclasses.replace(SMALL, depth=1, norm_eps=1e-6, **COLOURS, **changes)


def written(format: str, cfg, folder):
    path = folder / f"x{SUFFIX[format]}"
    weights.write(path, cfg, random_arrays(cfg), format)
    return path


def distances(format: str, path, cfg) -> list[tuple[tuple[int, int], float]]:
    """`(shift of the crop, largest difference in levels of 255)` of each image."""
    run, out = preprocess(format, path, cfg), []
    for image in drawn_images(cfg.image_size):
        theirs = (run(image) * np.array(cfg.std) + np.array(cfg.mean)) * 255
        out.append(certificate._shift(image, theirs, cfg))
    return out


@pytest.mark.parametrize("case", RESIZES)
@pytest.mark.parametrize("format", SUFFIX)
def test_the_targets_own_preprocessing_gives_our_pixels(format, case, tmp_path):
    cfg = model(RESIZES[case])
    found = distances(format, written(format, cfg, tmp_path), cfg)
    assert all(gap <= certificate.LEVELS for _, gap in found)
    if format != "huggingface":  # it rounds the offset of a crop with an odd margin down
        assert all(shift == (0, 0) and gap < 0.01 for shift, gap in found)


@pytest.mark.parametrize("case", RESIZES)
@pytest.mark.parametrize("format", ["timm", "huggingface"])
def test_the_fields_are_read_back(format, case, tmp_path):
    """From the JSON files alone, without the ModelConfig that this project adds."""
    cfg = model(RESIZES[case])
    path = written(format, cfg, tmp_path)
    if format == "timm":
        from safetensors.numpy import load_file, save_file

        save_file(load_file(path / "model.safetensors"), path / "model.safetensors")
    found = weights.open_weights(path, num_heads=cfg.num_heads)
    assert not found.notices and found.cfg == cfg


@pytest.mark.parametrize("size", [8, 24, 32, 48, 64, 224, 384, 518])
@pytest.mark.parametrize("eval_resize", [1.0, 256 / 224, 1.1, 1 / 0.9, 1 / 0.95, 1.25, 1.5, 8.0])
def test_crop_pct_means_the_same_pixels_at_every_size(size, eval_resize):
    cfg = dataclasses.replace(SMALL, image_size=size, patch_size=1, eval_resize=eval_resize)
    short, part = round(size * eval_resize), resize.crop_pct(cfg)
    assert math.floor(size / part) == short
    if part >= 0.1:
        back, _ = resize.from_timm({"crop_pct": part}, size, 0.9, True, Hints("x"), Notes())
        assert round(size * back) == short


THEIRS = {
    "timm, augreg": (
        "timm",
        {"input_size": [3, 24, 24], "crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.5] * 3},
        (26 / 24, "bicubic"),
        None,
    ),
    "timm, squash": (
        "timm",
        {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear"},
        (0.0, "bilinear"),
        None,
    ),
    "timm, border": ("timm", {"crop_pct": 1.0, "crop_mode": "border"}, (1.0, "bicubic"), "border"),
    "timm, lanczos": (
        "timm",
        {"crop_pct": 1, "interpolation": "lanczos"},
        (1.0, "bicubic"),
        "lanczos",
    ),
    "vit": (
        "huggingface",
        {"do_resize": True, "size": {"height": 24, "width": 24}, "resample": 2},
        (0.0, "bilinear"),
        None,
    ),
    "vit of old": ("huggingface", {"size": 24, "resample": 3}, (0.0, "bicubic"), None),
    "clip": (
        "huggingface",
        {"size": {"shortest_edge": 24}, "do_center_crop": True, "crop_size": 24, "resample": 3},
        (1.0, "bicubic"),
        None,
    ),
    "clip of old": (
        "huggingface",
        {"size": 27, "do_center_crop": True, "crop_size": {"height": 24, "width": 24}},
        (256 / 224, "bilinear"),
        None,
    ),
    "lanczos": ("huggingface", {"size": 24, "resample": 1}, (0.0, "bilinear"), "number 1"),
    "no crop": ("huggingface", {"size": {"shortest_edge": 30}}, (0.0, "bilinear"), "not known"),
    "another crop": (
        "huggingface",
        {"size": {"shortest_edge": 30}, "do_center_crop": True, "crop_size": 28},
        (30 / 24, "bilinear"),
        "crops to 28 px, not 24",
    ),
}


@pytest.mark.parametrize("case", THEIRS)
def test_files_of_others(case):
    format, fields, expected, notice = THEIRS[case]
    notes, hints = Notes(), Hints("x")
    if format == "timm":
        found = resize.from_timm(fields, 24, 0.875, True, hints, notes)
    else:
        found = resize.from_transformers(fields, 24, hints, notes)
    assert found == pytest.approx(expected)
    assert len(notes.notices) == (notice is not None)
    assert notice is None or notice in notes.notices[0]


def squashes(cfg):
    """What version 0.1 wrote."""
    size = {"height": cfg.image_size, "width": cfg.image_size}
    values = huggingface.processor_args(dataclasses.replace(cfg, eval_resize=0.0))
    return values | {"image_processor_type": "ViTImageProcessor", "size": size}


def crops_by_habit(cfg):
    """What version 0.1 wrote."""
    return timm.data_config(cfg) | {"crop_pct": 0.9, "interpolation": "bicubic"}


def test_mutations_are_caught(tmp_path):
    """The files of version 0.1 are other functions, and so are one wrong filter and one size."""
    cfg = model(dict(image_size=56))
    folder = written("huggingface", cfg, tmp_path)
    good = json.loads((folder / "preprocessor_config.json").read_text())
    for wrong in (
        squashes(cfg),
        good | {"resample": 3},
        good | {"size": {"shortest_edge": 62}},
        good | {"image_mean": [0.45, 0.45, 0.5]},
    ):
        (folder / "preprocessor_config.json").write_text(json.dumps(wrong))
        assert max(gap for _, gap in distances("huggingface", folder, cfg)) > 5 * certificate.LEVELS
    (tmp_path / "x").rename(tmp_path / "y")
    folder = written("timm", cfg, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] = crops_by_habit(cfg)
    (folder / "config.json").write_text(json.dumps(config))
    assert max(gap for _, gap in distances("timm", folder, cfg)) > 5 * certificate.LEVELS


def test_a_crop_that_is_a_pixel_off_is_told(tmp_path):
    """A margin of 7: ours is rounded to 4, transformers' down to 3."""
    cfg = model(dict(image_size=48))
    found = distances("huggingface", written("huggingface", cfg, tmp_path), cfg)
    assert all(gap <= certificate.LEVELS for _, gap in found)
    assert any(shift != (0, 0) for shift, _ in found)


@pytest.mark.parametrize("format", [*SUFFIX, "google", "big_vision"])
def test_cards_say_how_to_preprocess(format, tmp_path):
    cfg = model(dict(image_size=56, interpolation="bicubic"))
    suffix = ".npz" if format in ("google", "big_vision") else ".safetensors"
    path = tmp_path / f"x{suffix}"
    weights.write_weights(path, cfg, random_arrays(cfg), format)
    card = json.loads((tmp_path / f"x{suffix}.json").read_text())["preprocessing"]
    code = card["code"]
    assert ("resample=3" if format == "huggingface" else "bicubic") in code.lower()
    assert card["shorter_side"] == 64 and card["interpolation"] == "bicubic"
    squashed = dataclasses.replace(cfg, eval_resize=0.0)
    assert FOREIGN[format].how_to_preprocess(squashed) != code


def test_googles_squash_is_told(tmp_path):
    half = dict(mean=(0.5,) * 3, std=(0.5,) * 3)
    cfg = dataclasses.replace(SMALL, depth=1, gelu="tanh", **half)
    with pytest.warns(UserWarning, match="squashes the full image to a square"):
        weights.write(tmp_path / "x.npz", cfg, random_arrays(cfg), "google")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        squashed = dataclasses.replace(cfg, eval_resize=0.0)
        weights.write(tmp_path / "y.npz", squashed, random_arrays(squashed), "google")


def test_pixels_that_are_trained_on_are_those_of_the_certificate():
    """`normalize` undone gives whole levels: the certificate's measure is that of pixels."""
    cfg = model({})
    for image in drawn_images(cfg.image_size):
        pixels = evaluation_input(image, cfg)
        levels = (normalize(pixels, cfg) * np.array(cfg.std) + np.array(cfg.mean)) * 255
        assert np.abs(levels - pixels).max() < 1e-3
