"""Claim: `twinvit predict` and `twinvit.load` name what an evaluation of the weights would, by
either twin, and say it in a stable form."""

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import random_arrays
from PIL import Image
from whole_runs import metrics, train_here

import jax_vit
import torch_vit
import twinvit
from shared_vit import weights
from shared_vit.data import evaluation_input, open_dataset
from shared_vit.errors import UserError
from shared_vit.spec.config import model_config
from twinvit.convert.synthetic_images import drawn_images
from twinvit.predict.command import predict

TWINS = ("torch", "jax")
CFG = model_config("vit_nano2", num_classes=6, image_size=16, depth=2)
NAMES = ["a", "b", "c", "d", "e", "f"]
RUN = ("--batch_size=16", "--steps=4", "--warmup_steps=2", "--workers=0", "--lr=1e-2")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    weights.write(path, CFG, random_arrays(CFG), class_names=NAMES)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images at several depths, in no order of creation."""
    root = tmp_path_factory.mktemp("images")
    names = ("c.png", "a/z.png", "a/b.PNG", "b.bmp")
    for name, image in zip(names, drawn_images(24)):
        (root / name).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(root / name)
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Class folders of noise, so that a model is neither right nor wrong about all of them."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 6)):
        for label, name in enumerate(("ant", "bee", "cat")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 200, (13, 17, 3)) + 20 * label
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory, photos):
    run_dir = tmp_path_factory.mktemp("run") / "run"
    where = ("--data=folder", f"--data_dir={photos}", "--model=vit_nano2", "--image_size=8")
    assert train_here("torch", run_dir, *where, *RUN) == 0
    return run_dir


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("twin", TWINS)
def test_a_runs_validation_split_as_evaluated(twin, run, photos, capsys):
    """Top-1 and the mean loss are those that the run wrote of its newest checkpoint."""
    expected = next(r for r in reversed(metrics(run)) if "val_loss" in r)
    assert predict(str(run), (str(photos / "val"),), json=True, framework=twin, batch_size=7) == 0
    found = lines(capsys)
    truth = [line["image"].split("/")[-2] for line in found]
    assert sorted(set(truth)) == ["ant", "bee", "cat"] and len(truth) == 18
    right = [line["top"][0]["class"] == name for line, name in zip(found, truth)]
    assert np.mean(right) == expected["val_top1"] and 0 < sum(right) < 18
    of_truth = [
        guess["probability"]
        for line, name in zip(found, truth)
        for guess in line["top"]
        if guess["class"] == name
    ]
    assert -np.log(of_truth).mean() == pytest.approx(expected["val_loss"], rel=1e-5)


def test_digits_are_shown_as_they_are_trained_on(tmp_path):
    """Their evaluation takes the pixels as they are, and so the weights say."""
    assert train_here("torch", tmp_path / "run", "--preset=digits", *RUN) == 0
    expected = metrics(tmp_path / "run")[-1]
    val = open_dataset("digits").val
    guesses = twinvit.load(tmp_path / "run").predict(list(val.images), top_k=10, batch_size=128)
    labels = [str(label) for label in val.labels]
    assert np.mean([g[0]["class"] == x for g, x in zip(guesses, labels)]) == expected["val_top1"]
    shares = [{g["class"]: g["probability"] for g in top} for top in guesses]
    losses = [-np.log(share[label]) for share, label in zip(shares, labels)]
    assert np.mean(losses) == pytest.approx(expected["val_loss"], rel=1e-5)


def test_the_twins_agree(file, folder, capsys):
    found = []
    for twin in TWINS:
        assert predict(str(file), (str(folder),), json=True, framework=twin, top_k=6) == 0
        found.append(lines(capsys))
    for a, b in zip(*found):
        assert a["image"] == b["image"]
        for x, y in zip(a["top"], b["top"]):
            assert (x["class"], x["index"]) == (y["class"], y["index"])
            assert x["probability"] == pytest.approx(y["probability"], abs=1e-6)


def test_json(file, folder, capsys):
    """One object an image and line, in a stable form, the likeliest first."""
    assert predict(str(file), (str(folder / "b.bmp"), str(folder)), json=True, top_k=3) == 0
    found = lines(capsys)
    in_order = ["b.bmp", "a/b.PNG", "a/z.png", "b.bmp", "c.png"]
    assert [line["image"] for line in found] == [str(folder / name) for name in in_order]
    for line in found:
        assert list(line) == ["image", "top"] and len(line["top"]) == 3
        shares = [guess["probability"] for guess in line["top"]]
        assert shares == sorted(shares, reverse=True) and 0 < sum(shares) < 1
        for guess in line["top"]:
            assert list(guess) == ["class", "index", "probability"]
            assert NAMES[guess["index"]] == guess["class"]
    assert [g["index"] for g in found[0]["top"]] == [g["index"] for g in found[3]["top"]]
    everything = twinvit.load(file).predict(folder / "b.bmp", top_k=100)
    assert len(everything) == 6
    assert sum(guess["probability"] for guess in everything) == pytest.approx(1)


def test_text(file, folder, capsys):
    assert predict(str(file), (str(folder / "c.png"),), top_k=2) == 0
    name, first, second = capsys.readouterr().out.splitlines()
    best = twinvit.load(file).predict(folder / "c.png")[0]
    assert name == str(folder / "c.png")
    assert first.split() == [f"{100 * best['probability']:.2f}", "%", best["class"],
                             f"({best['index']})"]  # fmt: skip
    assert float(first.split()[0]) >= float(second.split()[0])


@pytest.mark.parametrize("size", [1, 2, 32])
def test_a_broken_image(size, file, folder, tmp_path, capsys):
    good = (folder / "c.png").read_bytes()
    (tmp_path / "a.png").write_bytes(good)
    (tmp_path / "b.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "c.jpg").write_bytes(b"")
    (tmp_path / "d.png").write_bytes(good)
    assert predict(str(file), (str(tmp_path),), json=True, batch_size=size) == 1
    said = capsys.readouterr()
    found = [json.loads(line)["image"] for line in said.out.splitlines()]
    assert found == [str(tmp_path / name) for name in ("a.png", "d.png")]
    first, second = said.err.splitlines()
    assert first.startswith(f"error: cannot decode {tmp_path / 'b.png'}: ")
    assert second == f"error: cannot decode {tmp_path / 'c.jpg'}: the file is empty"


def test_what_is_wrong_is_said_before_any_work(file, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "twinvit.predict.command.open_weights", lambda *_, **__: pytest.fail("opened")
    )
    for images, complaint in (
        ((), "needs images"),
        ((str(folder), str(tmp_path / "no.png")), "no.png is not there"),
        ((str(tmp_path),), "is a folder without images"),
    ):
        with pytest.raises(UserError, match=complaint):
            predict(str(file), images)
    for wrong in ({"top_k": 0}, {"batch_size": 0}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} must be at least 1, not 0"):
            predict(str(file), (str(folder),), **wrong)
    for given, kind in ((folder / "b.bmp", "an image"), (folder, "a folder of images")):
        with pytest.raises(UserError, match=f"is {kind}; the weights come first"):
            predict(str(given), (str(file),))


@pytest.mark.parametrize("twin", TWINS)
def test_every_kind_of_picture(twin, file, folder):
    predictor = twinvit.load(file, framework=twin)
    path = folder / "c.png"
    array = np.asarray(Image.open(path))
    expected = predictor.predict(path, top_k=6)
    for picture in (str(path), Image.open(path), array):
        assert predictor.predict(picture, top_k=6) == expected
    listed = [str(path), Image.open(path), array, path, array, array, array]  # 4 and 3 of them
    several = predictor.predict(listed, top_k=6, batch_size=4)
    assert len(several) == 7
    for found in (*several, *predictor.predict(np.stack([array, array]), top_k=6)):
        assert [g["index"] for g in found] == [g["index"] for g in expected]
        shares = [[g["probability"] for g in guesses] for guesses in (found, expected)]
        np.testing.assert_allclose(*shares, atol=1e-6)
    assert predictor.predict([]) == []
    assert predictor.cfg == CFG and predictor.class_names == NAMES
    assert isinstance(predictor.model, {"torch": torch_vit, "jax": jax_vit}[twin].VisionTransformer)


def test_modes_of_pillow_are_as_in_training(file, tmp_path):
    """Grey of 16 bits, a palette with transparency and alpha: as the decoder takes the files."""
    predictor, grey = twinvit.load(file), np.arange(400, dtype=np.uint16).reshape(20, 20) * 150
    Image.fromarray(grey).save(tmp_path / "16.png")
    color = Image.fromarray(drawn_images(20)[0])
    color.quantize(8).save(tmp_path / "palette.png", transparency=0)
    color.convert("RGBA").save(tmp_path / "alpha.png")
    for name in ("16.png", "palette.png", "alpha.png"):
        image = Image.open(tmp_path / name)
        a, b = (twinvit.preprocess(x, CFG) for x in (image, tmp_path / name))
        assert np.array_equal(a, b) and np.ptp(a) > 100, name
        assert predictor.predict(image) == predictor.predict(tmp_path / name)


@pytest.mark.parametrize("twin", TWINS)
def test_preprocess_and_normalize_are_what_the_model_takes(twin, file, folder):
    paths = [folder / "c.png", folder / "b.bmp"]
    inputs = twinvit.preprocess(paths, CFG)
    assert inputs.shape == (2, 16, 16, 3) and inputs.dtype == np.uint8
    for row, path in zip(inputs, paths):
        assert np.array_equal(row, evaluation_input(np.asarray(Image.open(path)), CFG))
    predictor = twinvit.load(file, framework=twin)
    floats = twinvit.normalize(inputs, CFG)
    if twin == "torch":
        import torch

        floats = torch.from_numpy(floats).permute(0, 3, 1, 2)
    logits = np.asarray(predictor.model(floats).tolist())
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(predictor.probabilities(inputs), shares, rtol=1e-5)


def test_what_is_no_picture_is_an_error_that_says_what_to_do(file, tmp_path):
    predictor = twinvit.load(file)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    for wrong, complaint in (
        (np.zeros((20, 20, 3), np.float32), r"uint8 \[H, W, 3\], not float32 \[20, 20, 3\]"),
        (np.zeros((3, 20, 20), np.uint8), r"uint8 \[H, W, 3\], not uint8 \[3, 20, 20\]"),
        (np.zeros((2, 3, 20, 20), np.uint8), r"uint8 \[H, W, 3\], not uint8 \[(2, )?3, 20, 20\]"),
        (7, "an image is a path, a PIL image or a uint8 array .*, not int"),
        (str(tmp_path / "no.png"), "cannot read .*no.png: it is not there"),
        (tmp_path / "broken.png", "cannot decode .*broken.png: not an image of a known format"),
    ):
        for images in (wrong, [wrong]):
            with pytest.raises(UserError, match=complaint):
                predictor.predict(images)
    with pytest.raises(UserError, match="top_k must be at least 1"):
        predictor.predict([], top_k=0)
    with pytest.raises(UserError, match="from a ModelConfig, not from 'vit_b16'"):
        twinvit.preprocess([], "vit_b16")
    with pytest.raises(UserError, match="framework is one of torch, jax, not 'tf'"):
        twinvit.load(file, framework="tf")
    for twin in TWINS:
        with pytest.raises(UserError, match="device gpu: .* sees no.*; use cpu"):
            twinvit.load(file, framework=twin, device="gpu")


def test_names_where_the_weights_have_none(tmp_path, capsys):
    """ImageNet's for 1,000 classes, with a notice; else numbers. Its folders' become plain."""
    for classes, first in ((1000, "tench"), (6, "0")):
        cfg = model_config("vit_nano2", num_classes=classes, image_size=4, depth=1)
        path = tmp_path / f"{classes}.safetensors"
        weights.write(path, cfg, random_arrays(cfg))
        if classes == 1000:
            with pytest.warns(UserWarning, match="does not name its 1,000 classes: taken to be"):
                predictor = twinvit.load(path)
        else:
            predictor = twinvit.load(path)
        assert predictor.class_names[0] == first and len(predictor.class_names) == classes
    weights.write(path, cfg, random_arrays(cfg), class_names=["n01440764"] * 6)
    assert twinvit.load(path).class_names == ["tench"] * 6


def test_logits_that_overflow_are_an_error(tmp_path):
    arrays = random_arrays(CFG)
    arrays["head.weight"] *= 1e38
    weights.write(tmp_path / "w.safetensors", CFG, arrays)
    with pytest.raises(UserError, match="in fp32: the logits are not finite"):
        twinvit.load(tmp_path / "w.safetensors").predict(drawn_images(20))


@pytest.mark.parametrize("twin, absent", [("torch", "jax flax"), ("jax", "torch")])
def test_the_other_framework_is_not_imported(twin, absent, file, folder):
    code = (
        f"import sys\nfor name in {absent.split()!r}: sys.modules[name] = None\n"
        f"import twinvit\nassert not {{'jax', 'torch', 'PIL', 'wandb'}} & "
        f"{{n for n, m in sys.modules.items() if m}}\n"
        f"print(twinvit.load({str(file)!r}, {twin!r}).predict({str(folder / 'c.png')!r})[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("{'class': "), done.stderr
