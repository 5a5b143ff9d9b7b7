"""Claim: images need not be square, from decoding to export, in both twins.

A model for images of 32 x 96 px is trained, resumed by either twin, evaluated, converted, exported
and asked for predictions.
"""

import dataclasses
import itertools
import json
import warnings
from pathlib import Path

import jax
import numpy as np
import peers
import pytest
import torch
from helpers import SMALL, random_arrays, random_images, relative_l2, to_torch, traces, worst
from PIL import Image
from whole_runs import metrics, train_here

import jax_vit
import torch_vit
from shared_vit import model_config, weights
from shared_vit.data.augment import NUM_UNIFORMS, padded_crop_flip, random_crop_flip
from shared_vit.data.mixing import draw_mix
from shared_vit.data.preprocess import evaluation_input
from shared_vit.errors import UserError
from shared_vit.run.command_line import parse
from shared_vit.spec.init import sincos2d
from shared_vit.spec.sides import sides
from shared_vit.weights.adapt import adapt
from shared_vit.weights.formats import timm as timm_format
from twinvit.convert.command import convert
from twinvit.predict import predictor
from twinvit.programs.target import target_of
from twinvit.programs.write import export

WIDE = dataclasses.replace(SMALL, image_size=24, image_width=40, norm_eps=1e-5)  # 3 x 5 patches
TALL = dataclasses.replace(WIDE, image_size=40, image_width=24, pos_embed="sincos2d")


@pytest.mark.quick
def test_sizes_are_said_in_one_way():
    assert (WIDE.image_shape, WIDE.grid, WIDE.num_tokens) == ((24, 40), (3, 5), 16)
    assert dataclasses.replace(SMALL, image_width=24) == SMALL  # a square
    assert model_config("vit_b16", image_size=(32, 96)).image_shape == (32, 96)
    assert parse(["--image_size=32,96"], "train").image_size == (32, 96)
    assert parse(["--image_size=32"], "train").image_size == 32
    for wrong in ("32,", "32,96,1", "x", "-1", ""):
        with pytest.raises(UserError, match="as in 32,96"):
            sides(wrong)
    with pytest.raises(UserError, match="8 px do not divide an image of 24 x 41 px"):
        dataclasses.replace(WIDE, image_width=41)


@pytest.mark.quick
@pytest.mark.parametrize("cfg", [WIDE, TALL], ids=["wide", "tall"])
def test_every_output(cfg, precision):
    distance, layer = worst(*traces(cfg, random_arrays(cfg), precision))
    assert distance <= {"fp32": 5e-6, "fp64": 1e-12}[precision], layer
    for model, images in (
        (jax_vit.from_arrays(cfg, random_arrays(cfg)), random_images(cfg)[:, :24, :24]),
        (torch_vit.from_arrays(cfg, random_arrays(cfg)), to_torch(random_images(cfg)[:, :24, :24])),
    ):
        with pytest.raises(UserError, match="takes (24 x 40|40 x 24)"):
            model(images)


@pytest.mark.quick
def test_positions_follow_the_grid():
    """Row by row: a patch's first half depends on its column, the second on its row."""
    table = sincos2d(TALL)[0, 1:].reshape(5, 3, -1)
    half = TALL.width // 2
    assert np.ptp(table[..., :half], axis=0).max() == 0 < np.ptp(table[..., :half], axis=1).max()
    assert np.ptp(table[..., half:], axis=1).max() == 0 < np.ptp(table[..., half:], axis=0).max()
    cfg, arrays = adapt(WIDE, random_arrays(WIDE), "40,24")
    assert cfg.image_shape == (40, 24) and arrays["pos_embed"].shape == (1, 16, WIDE.width)
    back, _ = adapt(cfg, arrays, 24)
    assert back == dataclasses.replace(WIDE, image_width=0)


@pytest.mark.parametrize("resize", [1.0, 256 / 224, 0.0])
@pytest.mark.parametrize("shape", [(50, 70), (70, 50), (30, 200), (24, 40), (90, 31), (81, 137)])
def test_evaluation_shows_what_timm_shows(resize, shape):
    """Resized until it covers the crop, then cropped: byte for byte."""
    from timm.data import create_transform

    cfg = dataclasses.replace(WIDE, eval_resize=resize, mean=(0, 0, 0), std=(1, 1, 1))
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    ours = evaluation_input(image, cfg)
    assert ours.shape == (24, 40, 3)
    transform = create_transform(**timm_format.data_config(cfg))
    theirs = transform(Image.fromarray(image)).numpy().transpose(1, 2, 0) * 255
    np.testing.assert_array_equal(ours, theirs.round())


@pytest.mark.quick
def test_training_crops_have_the_shape():
    image = np.random.default_rng(0).integers(0, 256, (50, 61, 3), dtype=np.uint8)
    uniforms = np.random.default_rng(1).random(NUM_UNIFORMS)
    assert random_crop_flip(image, (24, 40), uniforms).shape == (24, 40, 3)
    assert padded_crop_flip(image, (24, 40), 4, "bilinear", uniforms).shape == (24, 40, 3)
    boxes = [draw_mix(3, t, (24, 40), 0, 1.0) for t in range(200)]
    for mix in boxes:
        top, left, bottom, right = mix.box
        assert 0 <= top <= bottom <= 24 and 0 <= left <= right <= 40
        assert mix.lam == 1 - (bottom - top) * (right - left) / 960
    assert max(m.box[2] for m in boxes) == 24 and max(m.box[3] for m in boxes) == 40


def folder(path: Path) -> None:
    """Two classes of images of several shapes, bright on the left or on the right."""
    rng = np.random.default_rng(0)
    for split, name, i in itertools.product(("train", "val"), ("left", "right"), range(4)):
        height, width = 40 + 7 * i, 130 - 9 * i
        image = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        half = slice(None, width // 2) if name == "left" else slice(width // 2, None)
        image[:, half] += 150
        target = path / split / name / f"{i}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(target)


FLAGS = (
    "--image_size=32,96", "--patch_size=16", "--width=32", "--depth=1", "--num_heads=2",
    "--data=folder", "--epochs=3", "--batch_size=4", "--warmup_steps=1", "--checkpoint_every=2",
    "--eval_every=2", "--mixup=0.2", "--cutmix=1", "--workers=0", "--model=vit_ti16",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A run of each twin, stopped half way and resumed by the other one."""
    root = tmp_path_factory.mktemp("sides")
    folder(root / "data")
    for first, other in (("jax", "torch"), ("torch", "jax")):
        flags = (*FLAGS, f"--data_dir={root / 'data'}")
        assert train_here(first, root / first, *flags, "--stop_at=4") == 0
        assert train_here(other, root / first, "--resume") == 0
        assert train_here(first, root / f"{first}_alone", *flags) == 0
    return root


@pytest.mark.parametrize("twin", ["jax", "torch"])
def test_runs_are_trained_resumed_and_switched(twin, runs):
    config = json.loads((runs / twin / "config.json").read_text())
    assert config["recipe"]["model"]["image_width"] == 96
    switched, alone = metrics(runs / twin), metrics(runs / f"{twin}_alone")
    assert [line["step"] for line in switched] == [line["step"] for line in alone]
    for a, b in zip(switched, alone):
        for name in {"loss", "grad_norm", "val_loss"} & a.keys():
            assert a[name] == pytest.approx(b[name], rel=1e-4), name
    cfg, _ = weights.read(runs / twin)
    assert cfg.image_shape == (32, 96) and cfg.grid == (2, 6)


@pytest.mark.parametrize("twin", ["jax", "torch"])
def test_weights_are_converted_exported_and_predict(twin, runs, tmp_path):
    (cfg, arrays), pictures = weights.read(runs / twin), sorted((runs / "data").rglob("*.png"))[:4]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not convert(str(runs / twin), str(tmp_path / "timm"), "timm", verify=True)
        with pytest.raises(UserError, match="torchvision cannot hold .*image_width=96"):
            convert(str(runs / twin), str(tmp_path / "a.pth"), "torchvision")
        (tmp_path / "timm" / "model.safetensors").rename(tmp_path / "bare.safetensors")
    bare = weights.open_weights(tmp_path / "bare.safetensors")
    assert bare.cfg == dataclasses.replace(cfg, dropout=bare.cfg.dropout)
    found = predictor.load(runs / twin, twin)
    guesses = found.predict([str(p) for p in pictures])
    inputs = predictor.preprocess([str(p) for p in pictures], cfg)
    assert inputs.shape == (4, 32, 96, 3)
    file = tmp_path / f"a{target_of(twin).suffix}"
    card = export(runs / twin, file, twin)
    assert card["input"]["shape"][1:] == [32, 96, 3] and card["check"]
    with file.open("rb") as stream:
        program = target_of(twin).code().load(stream)
    expected = found.probabilities(inputs)
    assert relative_l2(np.asarray(program(inputs)), expected) < 1e-5
    for path, row in zip(pictures, inputs):
        names = {"path": path, "jax": jax, "torch": torch}
        exec("\n".join(card["preprocessing"]["before_the_program"]["code"]), names)
        np.testing.assert_array_equal(np.asarray(names["images"])[0], row)
    assert [g[0]["probability"] for g in guesses] == pytest.approx(expected.max(1))
    with torch.no_grad():
        logits = torch_vit.from_arrays(cfg, arrays)(torch.zeros(1, 3, 32, 96))
    assert logits.shape == (1, 2)


def test_timm_computes_the_same(x64, tmp_path):
    """Its own file with its config.json, image and positions not square."""
    import timm

    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=(24, 40), patch_size=8, embed_dim=60, depth=2,
        num_heads=5, num_classes=7,
    )  # fmt: skip
    model = peers.randomize(model)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    args = dict(img_size=[24, 40], patch_size=8, embed_dim=60, depth=2, num_heads=5, num_classes=7)
    pretrained = {"input_size": [3, 24, 40], "crop_pct": 0.9}
    config = {"architecture": "vit_tiny_patch16_224", "model_args": args}
    (tmp_path / "config.json").write_text(json.dumps(config | {"pretrained_cfg": pretrained}))
    cfg, arrays = weights.read(tmp_path)
    assert cfg.image_shape == (24, 40) and cfg.grid == (3, 5)
    images = random_images(cfg, dtype=np.float64)
    theirs = peers.logits(model, images, "fp64")
    ours = jax_vit.from_arrays(cfg, arrays, "fp64")(images)
    assert relative_l2(np.asarray(ours), theirs) < 1e-12
