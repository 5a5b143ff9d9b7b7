"""Claim: `convert --verify` calls a conversion the same only where function, names and numbers are.

The processes of the certificate run in this one, but for the JAX twin's.
"""

import argparse
import dataclasses
import json
from types import SimpleNamespace

import certificates
import numpy as np
import pytest
import torch
from helpers import random_arrays

from shared_vit import weights
from shared_vit.spec.config import ModelConfig
from shared_vit.weights import open_weights
from shared_vit.weights.formats import huggingface, timm
from twinvit.convert import certificate
from twinvit.convert.command import convert

# Crops without a margin, so that no library moves them by a pixel.
CFG = ModelConfig(
    image_size=16,
    patch_size=8,
    width=16,
    depth=1,
    num_heads=2,
    mlp_dim=24,
    num_classes=5,
    eval_resize=1.0,
)
CLASSES = ["ant", "bee", "cat", "dog", "eel"]
NOTHING = dict(image_size=None, num_classes=None, dtype=None)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch, tmp_path):
    """The PyTorch twin and the libraries."""
    certificates.in_this_process(monkeypatch, tmp_path, twins=["torch"])


@pytest.fixture
def certified(tmp_path_factory, capsys):
    """`certified(to, arrays=..., edit=...)`: a conversion of which `edit(target)` changes files
    between writing and the certificate."""

    def run(to="huggingface", arrays=None, edit=None, suffix="", cfg=CFG, **flags):
        tmp_path = tmp_path_factory.mktemp("files")
        source, target = tmp_path / "a.safetensors", tmp_path / f"b{suffix}"
        mine = random_arrays(cfg) if arrays is None else arrays
        weights.write_weights(source, cfg, mine, class_names=CLASSES)
        assert convert(str(source), str(target), to, **flags) == 0
        if edit is not None:
            edit(target)
        changes = NOTHING | flags
        status = certificate.certify(
            open_weights(source), source, target, to, None, changes
        ).exit_status
        page = json.loads((tmp_path / f"b{suffix}.parity.json").read_text())
        assert page["verdict"] == ("same", "different", "undecided")[status]
        reasons = " | ".join(page["reasons"])
        return SimpleNamespace(status=status, page=page, reasons=reasons, said=capsys.readouterr())

    return run


def edited(name, change):
    """A change of a JSON file of the target."""

    def edit(folder):
        path = folder / name
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return edit


def rewritten(arrays, names=CLASSES):
    """The target written again from other arrays."""

    def edit(target):
        weights.write_weights(target, CFG, arrays, class_names=names)

    return edit


@pytest.mark.parametrize("to, suffix", [("huggingface", ""), ("timm", ""), ("torchvision", ".pth")])
def test_a_right_conversion_is_the_same(certified, to, suffix):
    found = certified(to, suffix=suffix)
    assert found.status == 0 and not found.page["reasons"], found.reasons
    assert {r["who"] for r in found.page["preprocessing"]} == {
        "torch twin, target",
        f"{to}, target",
    }
    assert all(not row["wrong"] and not row["open"] for row in found.page["rows"])
    assert found.said.out.splitlines()[-1].startswith("same: ")


def test_a_mean_that_is_a_level_off_is_different(certified, monkeypatch):
    """0.97 of a level: less than two right resizes differ by."""
    moved = [m + 0.0038 for m in CFG.mean]
    config = edited("preprocessor_config.json", lambda c: c | {"image_mean": moved})
    found = certified(edit=config)
    assert (
        found.status == 1 and "mean: (0.485," in found.reasons and "another mean" in found.reasons
    )
    # In timm's folder our own field is right, and what timm reads is wrong.
    right = timm.data_config
    monkeypatch.setattr(timm, "data_config", lambda cfg: right(cfg) | {"mean": moved})
    found = certified("timm", suffix="")
    assert found.status == 1 and found.reasons.startswith("timm, target: "), found.reasons


@pytest.mark.parametrize(
    "change",
    [
        {"image_std": [s * 1.004 for s in CFG.std]},
        {"image_mean": [m + 1 / 255 for m in CFG.mean]},  # pixels are whole levels again
    ],
    ids=["std", "a whole level"],
)
def test_small_errors_of_what_the_library_reads_are_different(certified, monkeypatch, change):
    """Our reader is told the same error, so that the library alone sees it."""
    right = huggingface.processor_args
    monkeypatch.setattr(huggingface, "processor_args", lambda cfg: right(cfg) | change)
    monkeypatch.setattr(certificate, "settings_apart", lambda a, b: [])
    opened = open_weights

    def blind(path, *args, **kwargs):
        source = opened(path, *args, **kwargs)
        source.cfg = CFG
        return source

    monkeypatch.setattr(certificate, "open_weights", blind)
    found = certified()
    assert found.status == 1 and found.reasons.startswith("huggingface, target: "), found.reasons


def test_labels_go_by_name(certified):
    def reversed_labels(config):
        names = CLASSES[::-1]
        return config | {
            "id2label": {str(i): n for i, n in enumerate(names)},
            "label2id": {n: i for i, n in enumerate(names)},
        }

    found = certified(edit=edited("config.json", reversed_labels))
    assert found.status == 1 and "class 0 is 'ant', 'eel'" in found.reasons
    lost = certified("timm", suffix=".pth", edit=rewritten_as_timm(None))
    assert lost.status == 1 and "the target has none" in lost.reasons


def rewritten_as_timm(names):
    def edit(target):
        weights.write_weights(target, CFG, random_arrays(CFG), "timm", class_names=names)

    return edit


@pytest.mark.parametrize("hidden", ["q and k", "head", "behind a dead GELU"])
def test_what_a_zero_hides_is_compared_as_arrays(certified, hidden):
    arrays = random_arrays(CFG)
    zeros = {
        "q and k": ["blocks.0.attn.proj.weight"],
        "head": ["head.weight"],
        "behind a dead GELU": ["blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc1.bias"],
    }[hidden]
    for name in zeros:
        arrays[name][:] = 0
    other = {n: a.copy() for n, a in arrays.items()}
    if hidden == "q and k":
        q, k, v = np.split(arrays["blocks.0.attn.qkv.weight"], 3)
        other["blocks.0.attn.qkv.weight"] = np.concatenate([k, q, v])
        name = "blocks.0.attn.qkv.weight"
    elif hidden == "head":
        other["head.weight"][0, 0] = 1e-30
        name = "head.weight"
    else:
        other["blocks.0.mlp.fc2.weight"] *= 2
        name = "blocks.0.mlp.fc2.weight"
    sound = certified("torch", arrays, suffix=".safetensors")
    assert sound.status == 0, sound.reasons
    assert sound.page["logits_are_constant"] or hidden == "behind a dead GELU"
    found = certified("torch", arrays, rewritten(other), suffix=".safetensors")
    assert found.status == 1 and name in found.reasons, found.reasons


def test_weights_that_are_all_zero_are_nothing_to_compare(certified):
    zeros = {n: np.zeros_like(a) for n, a in random_arrays(CFG).items()}
    found = certified("torch", zeros, suffix=".safetensors")
    assert found.status == 2 and "nothing to compare" in found.reasons


def test_sums_of_token_and_position_are_the_same(certified):
    """big_vision holds the sum, exactly; with a new head the old names are dropped."""
    gelu = dataclasses.replace(CFG, gelu="tanh", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert certified("big_vision", suffix=".npz", cfg=gelu).status == 0
    assert certified("timm", suffix=".pth", num_classes=3).status == 0


@pytest.mark.parametrize("form", ["model", "prefix", "namespace"])
def test_a_checkpoint_of_a_training_script_is_given_to_its_library(form, tmp_path, capsys):
    from shared_vit.weights.read import file_arrays

    weights.write_weights(tmp_path / "plain.pth", CFG, random_arrays(CFG), "timm")
    state = {
        n: torch.from_numpy(np.array(a))
        for n, a in file_arrays(tmp_path / "plain.pth", "timm").items()
    }
    content = {
        "model": {"model": state, "epoch": 3},
        "prefix": {f"module.{n}": t for n, t in state.items()},
        "namespace": {"state_dict": state, "args": argparse.Namespace(lr=0.1)},
    }[form]
    torch.save(content, tmp_path / "x.pth")
    made = str(tmp_path / "y.safetensors")
    assert convert(str(tmp_path / "x.pth"), made, "torch", verify=True, num_heads=2) == 0
    assert "timm, source" in capsys.readouterr().out


def test_a_library_that_refuses_a_file_is_said(certified, monkeypatch):
    from twinvit.convert import libraries

    def refuses(*args):
        raise RuntimeError("no such layer today")

    monkeypatch.setattr(libraries, "load", refuses)
    found = certified()
    assert found.status == 2 and "no such layer today" in found.reasons


@pytest.mark.parametrize("size, status", [(0.0, 0), (1e-10, 1)])
def test_float64_is_exact_number_by_number(certified, monkeypatch, size, status):
    """One number of one block, 1e-10 of it: 1e-11 of the block's norm, and 1e-12 in the logits."""
    from twinvit.convert import libraries

    right = libraries.trace

    def off(*args):
        found = right(*args)
        found["blocks.0"] = found["blocks.0"].clone()
        found["blocks.0"][0, 0, 0] *= 1 + size
        return found

    monkeypatch.setattr(libraries, "trace", off)
    found = certified()
    assert found.status == status, found.reasons
    assert status == 0 or "huggingface, target, fp64: blocks.0" in found.reasons


def test_a_replaced_file_has_no_old_certificate(tmp_path):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.pth"
    weights.write_weights(source, CFG, random_arrays(CFG))
    assert convert(str(source), str(target), "timm", verify=True) == 0
    assert certificate.certificate_path(target).exists()
    weights.write_weights(source, CFG, random_arrays(CFG, 1))
    assert convert(str(source), str(target), "timm", overwrite=True) == 0
    assert not certificate.certificate_path(target).exists()
