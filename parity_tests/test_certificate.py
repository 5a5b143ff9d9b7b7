"""Claim: `convert --verify` calls different whatever differs: pieces of the certificate on outputs
made for it, without a model."""

import json

import numpy as np
import pytest
from helpers import TINY, random_arrays

from shared_vit import weights
from shared_vit.data.preprocess import evaluation_input
from shared_vit.weights.read import open_weights
from twinvit.convert import certificate
from twinvit.convert.synthetic_images import drawn_images

pytestmark = pytest.mark.quick

MODULES = ("", *(f"blocks.{i}" for i in range(TINY.depth)), "norm")


def in_pixels(levels: float) -> np.ndarray:
    """The four images as this project makes inputs of them, `levels` of 255 brighter."""
    made = np.stack([evaluation_input(image, TINY) for image in drawn_images(TINY.image_size)])
    return (((made + levels) / 255) - TINY.mean) / TINY.std


def certified(tmp_path, monkeypatch, module="", precision="fp64", share=0.0, levels=0.0, head=None):
    """A certificate on outputs of which the JAX twin's of the target are off by `share`."""
    rng = np.random.default_rng(0)
    sound = {name: rng.standard_normal((2, 10)) for name in MODULES}
    if head is not None:
        sound[""] = np.full((2, 10), head)
    images = {certificate._PIXELS: in_pixels(0), certificate._ON_IMAGES: np.ones((4, 10))}

    def run(task):
        who = {"torch": "torch twin", "jax": "jax twin"}[task["run"]]
        found = {}
        for side in task["files"]:
            for p in task["precisions"]:
                outputs = {name: value.copy() for name, value in sound.items()}
                if (who, side, p) == ("jax twin", "target", precision):
                    outputs[module] *= 1 + share
                found[f"{who}, {side}, {p}"] = outputs
            if who == "torch twin":
                own = {certificate._PIXELS: in_pixels(levels if side == "target" else 0)}
                found[f"{who}, {side}, images"] = images | own
        return found

    monkeypatch.setattr(certificate, "_run", run)
    path = tmp_path / "w.safetensors"
    weights.write(path, TINY, random_arrays(TINY))
    status = certificate.certify(open_weights(path), path, path, "torch", None, {}).exit_status
    found = json.loads((tmp_path / "w.safetensors.parity.json").read_text())
    assert found["verdict"] == ("same", "different", "undecided")[status]
    return status, found


@pytest.mark.parametrize("precision, limit", [("fp64", 1e-12), ("fp32", 5e-6)])
@pytest.mark.parametrize("module", ["", "blocks.1", "norm"])
@pytest.mark.parametrize("share, status", [(0.5, 0), (2, 1)])
def test_every_output_is_within_the_limit(
    tmp_path, monkeypatch, precision, limit, module, share, status
):
    found, page = certified(tmp_path, monkeypatch, module, precision, share * limit)
    assert found == status and page["limits"][precision] == limit


@pytest.mark.parametrize("levels, verdict", [(0, "same"), (0.02, "different"), (2, "different")])
def test_pixels_differ_by_a_level_at_most(tmp_path, monkeypatch, levels, verdict):
    """By a whole one: what lies between is of another mean."""
    status, page = certified(tmp_path, monkeypatch, levels=levels)
    assert [row["verdict"] for row in page["preprocessing"]] == [verdict]
    assert status == (verdict == "different")


def test_constant_logits_are_said(tmp_path, monkeypatch, capsys):
    status, page = certified(tmp_path, monkeypatch, head=0.0)
    assert page["logits_are_constant"] and "not run: a test of the head" in capsys.readouterr().out
    assert not certified(tmp_path, monkeypatch)[1]["logits_are_constant"]
