"""Claim: Google's and big_vision's `.npz` files give the original function's logits (tanh GELU).

The reference is a forward pass in NumPy, float64, written here from the documented names; timm's
own reader of these files is a second witness.
"""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import peers
import pytest
import torch
from helpers import random_arrays, random_images, to_torch

import jax_vit
import torch_vit
from shared_vit import weights
from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.init import sincos2d
from shared_vit.weights.formats import FOREIGN, google_layout
from shared_vit.weights.table import Piece
from twinvit.parity.noise_rule import relative_l2

HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
ODD = ModelConfig(
    image_size=48,
    patch_size=8,
    width=80,
    depth=2,
    num_heads=5,
    mlp_dim=240,
    num_classes=7,
    gelu="tanh",
    **HALF,
)
# Eight heads of eight: no check of shapes tells [D, H, d] and [H, d, D] kernels apart.
SQUARE = dataclasses.replace(ODD, width=64, num_heads=8)
GAP = dataclasses.replace(ODD, class_token=False, pool="mean")
PRE_LINEN = ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
LINEN = ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
CASES = {
    "google": (ODD, "google", PRE_LINEN, {}),
    "google, square heads": (SQUARE, "google", PRE_LINEN, {}),
    "google, linen": (ODD, "google", LINEN, {}),
    "google, opt/target": (ODD, "google", PRE_LINEN, dict(prefix="opt/target/")),
    "google, pre-logits": (dataclasses.replace(ODD, pre_logits=28), "google", PRE_LINEN, {}),
    "google, 21843 classes": (
        dataclasses.replace(ODD, num_classes=21_843),
        "google",
        PRE_LINEN,
        {},
    ),
    "google, 1000 classes": (dataclasses.replace(ODD, num_classes=1000), "google", PRE_LINEN, {}),
    "google, gap": (GAP, "google", PRE_LINEN, {}),
    "big_vision, tok": (ODD, "big_vision", LINEN, dict(prefix="params/")),
    "big_vision, square heads": (SQUARE, "big_vision", LINEN, {}),
    "big_vision, gap": (GAP, "big_vision", LINEN, dict(prefix="opt/target/")),
    "big_vision, rep_size": (dataclasses.replace(GAP, pre_logits=28), "big_vision", LINEN, {}),
    "big_vision, image tower": (ODD, "big_vision", LINEN, dict(prefix="params/img/")),
    "big_vision, scanned": (ODD, "big_vision", LINEN, dict(scan=True, prefix="params/")),
    "big_vision, bf16": (ODD, "big_vision", LINEN, dict(bf16=True, prefix="params/")),
}


def evaluated(cfg: ModelConfig, kind: str) -> ModelConfig:
    """With the preprocessing of the original code: Google's squashes the image to a square."""
    return dataclasses.replace(cfg, eval_resize=0.0) if kind == "google" else cfg


def flax_arrays(cfg: ModelConfig, kind: str, names, seed: int = 0) -> dict[str, np.ndarray]:
    """Random arrays under the names and in the shapes that the original code saves."""
    rng = np.random.default_rng(seed)
    d, h, m, p = cfg.width, cfg.num_heads, cfg.mlp_dim, cfg.patch_size
    ln1, attention, ln2, mlp = names
    shapes = {"embedding/kernel": (p, p, 3, d), "embedding/bias": (d,)}
    if cfg.class_token:
        shapes["cls"] = (1, 1, d)
    if kind == "google":
        shapes["Transformer/posembed_input/pos_embedding"] = (1, cfg.num_tokens, d)
    else:
        shapes["pos_embedding"] = (1, cfg.num_patches, d)
    for i in range(cfg.depth):
        block = f"Transformer/encoderblock_{i}/"
        for norm in (ln1, ln2):
            shapes |= {f"{block}{norm}/scale": (d,), f"{block}{norm}/bias": (d,)}
        for part in ("query", "key", "value"):
            shapes[f"{block}{attention}/{part}/kernel"] = (d, h, d // h)
            shapes[f"{block}{attention}/{part}/bias"] = (h, d // h)
        shapes |= {
            f"{block}{attention}/out/kernel": (h, d // h, d),
            f"{block}{attention}/out/bias": (d,),
        }
        shapes |= {f"{block}{mlp}/Dense_0/kernel": (d, m), f"{block}{mlp}/Dense_0/bias": (m,)}
        shapes |= {f"{block}{mlp}/Dense_1/kernel": (m, d), f"{block}{mlp}/Dense_1/bias": (d,)}
    shapes |= {"Transformer/encoder_norm/scale": (d,), "Transformer/encoder_norm/bias": (d,)}
    if cfg.pre_logits:
        shapes |= {"pre_logits/kernel": (d, cfg.pre_logits), "pre_logits/bias": (cfg.pre_logits,)}
    shapes |= {
        "head/kernel": (cfg.pre_logits or d, cfg.num_classes),
        "head/bias": (cfg.num_classes,),
    }
    arrays = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape)
        if name.endswith("kernel"):
            fan_in = np.prod(shape[:-1]) if "/out/" in name or "embedding" in name else shape[0]
            values *= 1.5 / np.sqrt(fan_in)
        else:
            values = values * 0.2 + name.endswith("scale")
        arrays[name] = values.astype(np.float32)
    return arrays


def forward(
    arrays: dict[str, np.ndarray], images: np.ndarray, names, depth: int, eps: float = 1e-6
) -> np.ndarray:
    """Logits float64 [B, classes] of the original function; images [B, H, W, 3]."""
    w = {name: np.asarray(array).astype(np.float64) for name, array in arrays.items()}
    ln1, attention, ln2, mlp = names

    def norm(x, at):
        centred = x - x.mean(-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * w[f"{at}/scale"]
            + w[f"{at}/bias"]
        )

    kernel = w["embedding/kernel"]
    p, n = kernel.shape[0], images.shape[1] // kernel.shape[0]
    patches = images.reshape(len(images), n, p, n, p, 3)
    x = (
        np.einsum("bypxqc,pqcd->byxd", patches, kernel).reshape(len(images), n * n, -1)
        + w["embedding/bias"]
    )
    if "pos_embedding" in w:
        x = x + w["pos_embedding"]
    if "cls" in w:
        x = np.concatenate([np.broadcast_to(w["cls"], (len(x), 1, x.shape[-1])), x], axis=1)
    if "Transformer/posembed_input/pos_embedding" in w:
        x = x + w["Transformer/posembed_input/pos_embedding"]
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}"
        y = norm(x, f"{block}/{ln1}")
        q, k, v = (
            np.einsum("bnd,dhe->bhne", y, w[f"{block}/{attention}/{part}/kernel"])
            + w[f"{block}/{attention}/{part}/bias"][None, :, None]
            for part in ("query", "key", "value")
        )
        scores = np.einsum("bhne,bhme->bhnm", q, k) / np.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        y = np.einsum("bhnm,bhme->bhne", scores / scores.sum(-1, keepdims=True), v)
        x = (
            x
            + np.einsum("bhne,hed->bnd", y, w[f"{block}/{attention}/out/kernel"])
            + w[f"{block}/{attention}/out/bias"]
        )
        y = (
            norm(x, f"{block}/{ln2}") @ w[f"{block}/{mlp}/Dense_0/kernel"]
            + w[f"{block}/{mlp}/Dense_0/bias"]
        )
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        x = x + y @ w[f"{block}/{mlp}/Dense_1/kernel"] + w[f"{block}/{mlp}/Dense_1/bias"]
    x = norm(x, "Transformer/encoder_norm")
    x = x[:, 0] if "cls" in w else x.mean(1)
    if "pre_logits/kernel" in w:
        x = np.tanh(x @ w["pre_logits/kernel"] + w["pre_logits/bias"])
    return x @ w["head/kernel"] + w["head/bias"]


def save(path, arrays, prefix: str = "", scan: bool = False, bf16: bool = False):
    if bf16:
        arrays = {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()}
    if scan:
        first = [name for name in arrays if "encoderblock_0/" in name]
        depth = len({name.split("/")[1] for name in arrays if "encoderblock_" in name})
        stacks = {
            name.replace("_0/", "/", 1): np.stack(
                [arrays[name.replace("block_0", f"block_{i}")] for i in range(depth)]
            )
            for name in first
        }
        arrays = {
            name: array for name, array in arrays.items() if "encoderblock_" not in name
        } | stacks
    np.savez(path, **{prefix + name: array for name, array in arrays.items()})
    return arrays


def twins(cfg, arrays, images):
    """Float64 logits of both twins; needs x64."""
    with torch.no_grad():
        b = torch_vit.from_arrays(cfg, arrays, "fp64")(to_torch(images)).numpy()
    return {"jax": np.asarray(jax_vit.from_arrays(cfg, arrays, "fp64")(images)), "torch": b}


@pytest.mark.parametrize("case", CASES)
def test_their_file(case, x64, tmp_path):
    cfg, kind, names, how = CASES[case]
    arrays = flax_arrays(cfg, kind, names)
    save(tmp_path / "x.npz", arrays, **how)
    if how.get("bf16"):
        arrays = {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()}
    images = random_images(cfg, dtype=np.float64)
    reference = forward(arrays, images, names, cfg.depth)
    assert np.ptp(reference) > 0.1
    source = weights.open_weights(tmp_path / "x.npz")
    assert (source.format, source.cfg) == (kind, evaluated(cfg, kind))
    for twin, ours in twins(cfg, weights.read(tmp_path / "x.npz")[1], images).items():
        assert relative_l2(ours, reference) <= 1e-12, twin


@pytest.mark.parametrize(
    "case",
    ["google", "google, gap", "google, pre-logits", "big_vision, tok", "big_vision, rep_size"],
)
def test_our_file(case, x64, tmp_path):
    """What we write holds the original's names and shapes, and its function on them is ours."""
    cfg, kind, names, _ = CASES[case]
    cfg = evaluated(cfg, kind)
    arrays = random_arrays(cfg)
    weights.write(tmp_path / "x.npz", cfg, arrays, kind)
    with np.load(tmp_path / "x.npz") as file:
        written = dict(file)
    expected = flax_arrays(cfg, kind, names)
    assert {name: array.shape for name, array in written.items()} == {
        n: a.shape for n, a in expected.items()
    }
    images = random_images(cfg, dtype=np.float64)
    reference = forward(written, images, names, cfg.depth)
    for twin, ours in twins(cfg, arrays, images).items():
        assert relative_l2(ours, reference) <= 1e-12, twin
    for twin, ours in twins(*weights.read(tmp_path / "x.npz"), images).items():
        assert relative_l2(ours, reference) <= 1e-12, twin


@pytest.mark.parametrize("kind", ["google", "big_vision"])
def test_timm_reads_our_file(kind, x64, tmp_path):
    """timm's reader is another program that knows these layouts; it is told to use tanh."""
    cfg = evaluated(ODD, kind)
    arrays = random_arrays(cfg)
    if kind == "big_vision":
        arrays["pos_embed"][:, 0] = (
            0  # timm takes big_vision's file only into a model without that row
        )
    weights.write(tmp_path / "x.npz", cfg, arrays, kind)
    model = peers.timm_model(cfg, no_embed_class=kind == "big_vision")
    model.load_pretrained(str(tmp_path / "x.npz"))
    images = random_images(cfg, dtype=np.float64)
    reference = peers.logits(model, images, "fp64")
    for twin, ours in twins(cfg, arrays, images).items():
        assert relative_l2(ours, reference) <= 1e-12, twin


def test_float32(tmp_path):
    cfg, kind, names, how = CASES["google"]
    arrays = flax_arrays(cfg, kind, names)
    save(tmp_path / "x.npz", arrays, **how)
    images = random_images(cfg)
    reference = forward(arrays, images.astype(np.float64), names, cfg.depth)
    ours = jax_vit.load(tmp_path / "x.npz")(images)
    assert relative_l2(ours, reference) <= 5e-6
    with torch.no_grad():
        ours = torch_vit.load(tmp_path / "x.npz")(to_torch(images)).numpy()
    assert relative_l2(ours, reference) <= 5e-6
    assert not jax.config.jax_enable_x64


def test_big_vision_with_fixed_positions(x64, tmp_path):
    arrays = flax_arrays(GAP, "big_vision", LINEN)
    del arrays["pos_embedding"]
    save(tmp_path / "x.npz", arrays)
    source = weights.open_weights(tmp_path / "x.npz", image_size=48)
    assert source.cfg == dataclasses.replace(GAP, pos_embed="sincos2d")
    images = random_images(GAP, dtype=np.float64)
    reference = forward(arrays | {"pos_embedding": sincos2d(source.cfg)}, images, LINEN, GAP.depth)
    for twin, ours in twins(
        source.cfg, {n: np.asarray(a) for n, a in source.arrays.items()}, images
    ).items():
        assert relative_l2(ours, reference) <= 1e-12, twin


def test_map_head_is_refused_by_name(tmp_path):
    """Of Google's ViT, which has none; big_vision's is read in test_authors.py."""
    arrays = flax_arrays(GAP, "google", LINEN) | {
        "MAPHead_0/probe": np.ones((1, 1, 80), np.float32)
    }
    save(tmp_path / "x.npz", arrays)
    with pytest.raises(UserError, match=r"attention-pooling \(MAP\) head \(MAPHead_0/probe\)"):
        weights.read(tmp_path / "x.npz")


def _wrong_heads(name, width, heads):
    shape = (width, heads, width // heads)
    return Piece(name, shape, lambda a: a.reshape(width, width), lambda a: a.reshape(shape))


def _wrong_out(name, width, heads):
    shape = (heads, width // heads, width)
    return Piece(name, shape, lambda a: a.transpose(1, 0, 2).reshape(width, width).T, None)


def _wrong_bias(name, width, heads):
    return Piece(name, (heads, width // heads), lambda a: a.T.ravel(), None)


def _wrong_convolution(name, shape):
    o, i, h, w = shape
    return Piece(name, (h, w, i, o), lambda a: a.transpose(3, 2, 1, 0), None)


@pytest.mark.parametrize(
    "function, wrong",
    [
        ("split_heads", _wrong_heads),
        ("joined_heads", _wrong_out),
        ("split_heads_bias", _wrong_bias),
        ("channels_last", _wrong_convolution),
    ],
)
@pytest.mark.parametrize("case", ["google, square heads", "big_vision, square heads"])
def test_mutations_are_caught(case, function, wrong, x64, tmp_path, monkeypatch):
    """A wrong transpose loads without an error, and only numbers show it."""
    cfg, kind, names, how = CASES[case]
    arrays = flax_arrays(cfg, kind, names)
    save(tmp_path / "x.npz", arrays, **how)
    images = random_images(cfg, dtype=np.float64)
    reference = forward(arrays, images, names, cfg.depth)
    monkeypatch.setattr(google_layout, function, wrong)
    for ours in twins(*weights.read(tmp_path / "x.npz"), images).values():
        assert relative_l2(ours, reference) > 1e-3


def test_a_forgotten_position_is_caught(x64, tmp_path, monkeypatch):
    """big_vision's class token has no position: dropping the row is another function."""
    arrays, images = random_arrays(ODD), random_images(ODD, dtype=np.float64)
    big_vision = FOREIGN["big_vision"]
    monkeypatch.setattr(type(big_vision), "prepare", lambda self, cfg, arrays: arrays)
    weights.write(tmp_path / "x.npz", ODD, arrays, "big_vision")
    with np.load(tmp_path / "x.npz") as file:
        reference = forward(file, images, LINEN, ODD.depth)
    for ours in twins(ODD, arrays, images).values():
        assert relative_l2(ours, reference) > 1e-3
