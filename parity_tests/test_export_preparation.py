"""The card of an exported program has the preprocessing as code, which makes an image file into
what the program takes, pixel by pixel as an evaluation does."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
from data_helpers import encoded, photo
from helpers import random_arrays
from PIL import Image

import twinvit
from shared_vit import weights
from shared_vit.data import evaluation_input
from shared_vit.data.decode import decode
from shared_vit.spec.config import model_config
from twinvit.programs.preparation import code_of

CFG = model_config("vit_nano2", num_classes=5, image_size=24, depth=1)
CONFIGS = {
    "cropped": CFG,
    "no margin": dataclasses.replace(CFG, eval_resize=1.0, interpolation="bicubic"),
    "squashed": dataclasses.replace(CFG, eval_resize=0.0),
    "turned": dataclasses.replace(CFG, exif="turn", eval_resize=1.3),
}
SHAPES = ((40, 61), (61, 40), (24, 24), (25, 31), (9, 200), (500, 333))


def prepared(code, path):
    space = {"path": path, "torch": torch, "jax": jax}
    exec("\n".join(code), space)
    return space["images"]


@pytest.mark.parametrize("target", ["torch", "jax", "onnx"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_code_makes_the_pixels_of_an_evaluation(tmp_path, name, target):
    cfg, kinds = CONFIGS[name], {"torch": torch.Tensor, "jax": jax.Array, "onnx": np.ndarray}
    code = code_of(cfg, target)
    assert len(code) <= 6
    exif = Image.Exif()
    exif[0x0112] = 6
    for shape in SHAPES:
        data = encoded(photo(sum(shape), *shape), "PNG", exif=exif.tobytes())
        (tmp_path / "a.png").write_bytes(data)
        made = prepared(code, tmp_path / "a.png")
        assert isinstance(made, kinds[target]) and np.asarray(made).dtype == np.uint8
        expected = evaluation_input(decode(data, cfg.exif == "turn"), cfg)
        assert np.array_equal(np.asarray(made)[0], expected), shape


@pytest.mark.parametrize("target, suffix", [("torch", "pt2"), ("jax", "jax")])
def test_a_program_takes_what_its_card_s_code_makes(tmp_path, target, suffix):
    weights.write(tmp_path / "w.safetensors", CFG, random_arrays(CFG))
    out = tmp_path / f"program.{suffix}"
    twinvit.export(tmp_path / "w.safetensors", out, to=target)
    card = json.loads((tmp_path / f"program.{suffix}.json").read_text())
    (tmp_path / "a.jpg").write_bytes(encoded(photo(1, 40, 60)))
    images = prepared(card["preprocessing"]["before_the_program"]["code"], tmp_path / "a.jpg")
    if target == "torch":
        found = torch.export.load(out).module()(images).detach().numpy()
    else:
        found = np.asarray(jax.export.deserialize(bytearray(out.read_bytes())).call(images))
    predictor = twinvit.load(tmp_path / "w.safetensors", target)
    expected = predictor.probabilities(twinvit.preprocess(str(tmp_path / "a.jpg"), predictor.cfg))
    assert np.allclose(found, expected, atol=1e-5) and np.ptp(expected) > 0.01


def test_what_the_weights_leave_open_can_be_set_and_is_said(tmp_path, capsys):
    import safetensors.numpy

    weights.write_weights(tmp_path / "w.safetensors", CFG, random_arrays(CFG), format="timm")
    arrays = safetensors.numpy.load_file(tmp_path / "w.safetensors")
    safetensors.numpy.save_file(arrays, tmp_path / "bare.safetensors")
    flags = dict(num_heads=4, verify=False, mean="0.1,0.2,0.3", eval_resize=0)
    card = twinvit.export(tmp_path / "bare.safetensors", tmp_path / "a.pt2", to="torch", **flags)
    said = capsys.readouterr().err
    assert "does not say, taken as usual" in said and "mean 0.1 0.2 0.3" in said
    assert card["model_config"]["mean"] == [0.1, 0.2, 0.3]
    assert card["preprocessing"]["before_the_program"]["shorter_side"] is None
    assert "exif_transpose" in card["preprocessing"]["before_the_program"]["code"][1]
