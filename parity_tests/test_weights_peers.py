"""Claim: timm's, torchvision's and transformers' own models compute the twins' logits.

Whichever side wrote the file.
"""

import argparse
import dataclasses

import numpy as np
import peers
import pytest
import torch
from helpers import SMALL, random_arrays, random_images, to_torch
from safetensors.torch import load_file, save_file

import jax_vit
import torch_vit
from shared_vit import model_config, weights
from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig
from shared_vit.weights.formats import torchvision
from shared_vit.weights.formats.huggingface import kinds, layouts
from shared_vit.weights.table import Piece
from twinvit.parity.noise_rule import relative_l2
from twinvit.predict import predictor
from twinvit.programs.write import export

LIMIT = {"fp32": 5e-6, "fp64": 1e-12}
HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
# What each library does with an image where nothing is said.
DEFAULTS = {
    "timm": HALF | dict(interpolation="bicubic"),
    "torchvision": dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "huggingface": HALF | dict(eval_resize=0.0),
}


def by_default(peer: str, cfg: ModelConfig) -> ModelConfig:
    """The model with the library's default preprocessing; timm's crops 0.9 of floor(size / 0.9)."""
    if peer == "timm":
        cfg = dataclasses.replace(cfg, eval_resize=int(cfg.image_size / 0.9) / cfg.image_size)
    return dataclasses.replace(cfg, **DEFAULTS[peer])


ODD = ModelConfig(
    image_size=48, patch_size=8, width=80, depth=2, num_heads=5, mlp_dim=240, num_classes=7
)
SIZES = {
    "odd": ODD,
    "ti16": model_config("vit_ti16"),
    **{name: model_config(f"vit_{name}") for name in ("s16", "b16", "b32")},
}
SLOW = ("s16", "b16", "b32")
PEERS = ("timm", "torchvision", "huggingface")
SUFFIX = {"timm": ".safetensors", "torchvision": ".pth", "huggingface": ""}
# Functions beyond each library's default, and what of them its bare file does not say.
FUNCTIONS = {
    ("timm", "tanh"): dict(gelu="tanh"),
    ("timm", "eps"): dict(norm_eps=1e-4),
    ("timm", "mean, fc_norm"): dict(pool="mean", norm_after_pool=True),
    ("timm", "mean, norm"): dict(pool="mean"),
    ("timm", "mean with token"): dict(pool="mean", pool_class_token=True, norm_after_pool=True),
    ("timm", "mean without token"): dict(pool="mean", class_token=False),
    ("timm", "mean without token, fc_norm"): dict(
        pool="mean", class_token=False, norm_after_pool=True
    ),
    ("timm", "sincos"): dict(pos_embed="sincos2d"),
    ("torchvision", "tanh"): dict(gelu="tanh"),
    ("torchvision", "eps"): dict(norm_eps=1e-4),
    ("torchvision", "pre-logits"): dict(pre_logits=28),
    ("huggingface", "tanh"): dict(gelu="tanh"),
    ("huggingface", "eps"): dict(norm_eps=1e-4),
}


def twins(cfg, arrays, images, precision) -> dict[str, np.ndarray]:
    images = images.astype(np.float64 if precision == "fp64" else np.float32)
    with torch.no_grad():
        b = torch_vit.from_arrays(cfg, arrays, precision)(to_torch(images)).double().numpy()
    a = np.asarray(jax_vit.from_arrays(cfg, arrays, precision)(images)).astype(np.float64)
    return {"jax": a, "torch": b}


def check_equal(cfg, arrays, theirs: np.ndarray, images, precision):
    assert np.ptp(theirs) > 0.1
    for twin, ours in twins(cfg, arrays, images, precision).items():
        assert relative_l2(ours, theirs) <= LIMIT[precision], twin


def save(peer: str, model, path):
    """As the library's users do."""
    if peer == "timm":
        save_file(model.state_dict(), path)
    elif peer == "torchvision":
        torch.save(model.state_dict(), path)
    else:
        model.save_pretrained(path)


def load(peer: str, cfg, path):
    """Into the library's own model, every name matched."""
    if peer == "huggingface":
        model, report = peers.transformers.ViTForImageClassification.from_pretrained(
            path, output_loading_info=True
        )
        assert not any(report.values()), report
        return model
    model = peers.BUILD[peer](cfg)
    state = (
        load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    )
    model.load_state_dict(state, strict=True)
    return model


@pytest.mark.parametrize(
    "size", [pytest.param(s, marks=pytest.mark.slow) if s in SLOW else s for s in SIZES]
)
@pytest.mark.parametrize("peer", PEERS)
def test_their_file(peer, size, precision, tmp_path):
    cfg = by_default(peer, SIZES[size])
    path = tmp_path / f"theirs{SUFFIX[peer]}"
    model = peers.randomize(peers.BUILD[peer](cfg))
    save(peer, model, path)
    found, arrays = weights.read(path, num_heads=5 if size == "odd" else None)
    assert found == cfg
    images = random_images(cfg, 1 if size != "odd" else 3)
    check_equal(found, arrays, peers.logits(model, images, precision), images, precision)


@pytest.mark.parametrize(
    "size", [pytest.param(s, marks=pytest.mark.slow) if s in SLOW else s for s in SIZES]
)
@pytest.mark.parametrize("peer", PEERS)
def test_our_file(peer, size, precision, tmp_path):
    cfg = SIZES[size]
    path = tmp_path / f"ours{SUFFIX[peer]}"
    arrays = random_arrays(cfg)
    weights.write(path, cfg, arrays, peer)
    images = random_images(cfg, 1 if size != "odd" else 3)
    check_equal(
        cfg, arrays, peers.logits(load(peer, cfg, path), images, precision), images, precision
    )


@pytest.mark.parametrize("peer, function", FUNCTIONS)
def test_function_comes_along(peer, function, x64, tmp_path):
    """Both directions; the file that the library wrote is told what its names do not say."""
    cfg = dataclasses.replace(SMALL, **FUNCTIONS[peer, function])
    images = random_images(cfg)
    arrays = random_arrays(cfg)
    path = tmp_path / f"ours{SUFFIX[peer]}"
    told = weights.write_weights(path, cfg, arrays, peer)
    default = peer == "huggingface" or function in ("pre-logits", "sincos")
    assert bool(told) != default
    theirs = load(peer, cfg, path)
    check_equal(cfg, arrays, peers.logits(theirs, images, "fp64"), images, "fp64")
    again, back = weights.read(path)
    assert again == cfg
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)


def test_timm_folder_is_loaded_by_name(x64, tmp_path):
    """`create_model("local-dir:...")` takes the function from the folder's config.json."""
    cfg = dataclasses.replace(
        ODD, gelu="tanh", pool="mean", norm_after_pool=True, class_token=False
    )
    arrays, images = random_arrays(cfg), random_images(cfg)
    assert weights.write_weights(tmp_path / "folder", cfg, arrays, "timm") == []
    model = peers.timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
    assert tuple(model.pretrained_cfg["mean"]) == cfg.mean
    check_equal(cfg, arrays, peers.logits(model, images, "fp64"), images, "fp64")


@pytest.mark.parametrize("mode", ["no class position", "with ddp's prefix", "training checkpoint"])
def test_timm_variants(mode, x64, tmp_path):
    cfg = by_default("timm", SMALL)
    model = peers.randomize(peers.timm_model(cfg, no_embed_class=mode == "no class position"))
    images = random_images(cfg)
    theirs = peers.logits(model.float(), images, "fp64")
    state = model.float().state_dict()
    if mode == "with ddp's prefix":
        state = {f"module.{name}": value for name, value in state.items()}
    if mode == "training checkpoint":
        state = {
            "state_dict": state,
            "args": argparse.Namespace(lr=0.1),
            "epoch": 3,
            "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
        }
    torch.save(state, tmp_path / "x.pth")
    found, arrays = weights.read(tmp_path / "x.pth", num_heads=5)
    assert found == cfg
    check_equal(found, arrays, theirs, images, "fp64")


def test_torchvision_names_of_version_1(x64, tmp_path):
    cfg = SMALL
    model = peers.randomize(peers.torchvision_model(cfg))
    old = {
        name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): value
        for name, value in model.state_dict().items()
    }
    assert sum("linear_" in name for name in old) == 4 * cfg.depth
    torch.save(old, tmp_path / "v1.pth")
    found, arrays = weights.read(tmp_path / "v1.pth", num_heads=5)
    images = random_images(cfg)
    check_equal(found, arrays, peers.logits(model, images, "fp64"), images, "fp64")


@pytest.mark.parametrize("version", [4, 5])
def test_huggingface_bare_file(version, x64, tmp_path):
    """Version 4's names are those that are saved, version 5's those of its modules."""
    cfg = by_default("huggingface", dataclasses.replace(SMALL, norm_eps=1e-12))
    model = peers.randomize(peers.huggingface_model(cfg))
    if version == 5:
        save_file(model.state_dict(), tmp_path / "bare.safetensors")
    else:
        model.save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").rename(tmp_path / "bare.safetensors")
    names = load_file(tmp_path / "bare.safetensors")
    assert any(
        name.startswith("vit.layers." if version == 5 else "vit.encoder.layer.") for name in names
    )
    found, arrays = weights.read(tmp_path / "bare.safetensors", num_heads=5)
    assert found == cfg
    images = random_images(cfg)
    check_equal(found, arrays, peers.logits(model, images, "fp64"), images, "fp64")


def test_huggingface_shards(x64, tmp_path):
    cfg = by_default("huggingface", dataclasses.replace(SMALL, norm_eps=1e-12))
    model = peers.randomize(peers.huggingface_model(cfg))
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    found, arrays = weights.read(tmp_path)
    assert found == cfg
    images = random_images(cfg)
    check_equal(found, arrays, peers.logits(model, images, "fp64"), images, "fp64")


def test_huggingface_body_gets_a_head_of_zeros(tmp_path):
    body = peers.randomize(peers.transformers.ViTModel(peers.huggingface_config(SMALL)))
    body.save_pretrained(tmp_path)
    assert weights.read(tmp_path)[0].num_classes == 0
    found, arrays = weights.read(tmp_path, num_classes=9)
    assert found.num_classes == 9 and found.pre_logits == 0
    assert arrays["head.weight"].shape == (9, SMALL.width) and not arrays["head.weight"].any()
    kernel = body.layers[1].mlp.fc1.weight.detach().numpy()
    assert np.array_equal(arrays["blocks.1.mlp.fc1.weight"], kernel)


def test_preprocessing_comes_along(tmp_path):
    cfg = dataclasses.replace(SMALL, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    weights.write(tmp_path / "hf", cfg, random_arrays(cfg), "huggingface")
    processor = peers.transformers.ViTImageProcessor.from_pretrained(tmp_path / "hf")
    assert tuple(processor.image_mean) == cfg.mean and tuple(processor.image_std) == cfg.std
    assert weights.read(tmp_path / "hf")[0] == cfg


@pytest.mark.parametrize(
    "peer, change",
    [
        ("timm", dict(gelu="tanh")),
        ("timm", dict(num_heads=4)),
        ("torchvision", dict(norm_eps=1e-5)),
        ("torchvision", "swap norms"),
        ("huggingface", dict(norm_eps=1e-5)),
        ("huggingface", "swap q and k"),
        ("huggingface", "transpose a square weight"),
    ],
)
def test_mutations_are_caught(peer, change, x64, tmp_path, monkeypatch):
    """A converter with one fault gives logits far beyond the limits."""
    cfg = dataclasses.replace(SMALL, norm_eps=1e-12 if peer == "huggingface" else 1e-6)
    path = tmp_path / f"theirs{SUFFIX[peer]}"
    model = peers.randomize(peers.BUILD[peer](cfg))
    save(peer, model, path)
    if change == "swap norms":
        modules = torchvision._MODULES
        monkeypatch.setitem(modules, "norm1", "ln_2")
        monkeypatch.setitem(modules, "norm2", "ln_1")
    elif change == "swap q and k":
        q, k, v = kinds.VIT.modules["attn.qkv"]
        monkeypatch.setitem(kinds.VIT.modules, "attn.qkv", (k, q, v))
    elif change == "transpose a square weight":
        monkeypatch.setattr(layouts, "plain", _transposing_plain)
    found, arrays = weights.read(path, num_heads=5)
    if isinstance(change, dict):
        found = dataclasses.replace(found, **change)
    images = random_images(cfg)
    theirs = peers.logits(model, images, "fp64")
    distance = min(
        relative_l2(ours, theirs) for ours in twins(found, arrays, images, "fp64").values()
    )
    assert distance > 5 * LIMIT["fp32"]


def _transposing_plain(name: str, shape: tuple[int, ...]) -> Piece:
    wrong = len(shape) == 2 and shape[0] == shape[1]
    return Piece(name, shape, np.transpose, np.transpose) if wrong else Piece(name, shape)


def test_a_timm_file_without_a_head_gives_its_pooled_features(tmp_path, x64):
    """In both directions; other formats, predictions and programs want a head, and say so."""
    cfg = dataclasses.replace(by_default("timm", SMALL), num_classes=0)
    model = peers.randomize(peers.BUILD["timm"](cfg))
    save("timm", model, tmp_path / "a.safetensors")
    found, arrays = weights.read(tmp_path / "a.safetensors", num_heads=5)
    assert found == cfg and "head.weight" not in arrays
    images = random_images(cfg)
    check_equal(found, arrays, peers.logits(model, images, "fp64"), images, "fp64")
    weights.write(tmp_path / "b.safetensors", found, arrays, format="timm")
    load("timm", cfg, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="num_classes=0: torch, jax, timm, .*; --num"):
        weights.write(tmp_path / "c.pth", found, arrays, format="torchvision")
    with pytest.raises(UserError, match="no head.*names no classes"):
        predictor.load(tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="no head.*probabilities"):
        export(tmp_path / "b.safetensors", tmp_path / "c.pt2", "torch")
