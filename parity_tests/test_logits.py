"""Claim: both twins give the same logits and the same output of every module."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import SMALL, VARIANTS, random_arrays, random_images, to_torch, traces, worst

import jax_vit
import torch_vit
from shared_vit import model_config
from shared_vit.weights.adapt import adapt
from twinvit.parity.noise_rule import relative_l2

LIMIT = {"fp32": 5e-6, "fp64": 1e-12}


@pytest.mark.quick
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_output(variant, precision):
    cfg = VARIANTS[variant]
    a, b = traces(cfg, random_arrays(cfg), precision)
    assert np.ptp(a[""], axis=0).min() > 0.1  # there is something to compare
    distance, layer = worst(a, b)
    assert distance <= LIMIT[precision], layer
    in_block = (
        "",
        ".norm1",
        ".attn",
        ".attn.qkv",
        ".attn.proj",
        ".norm2",
        ".mlp",
        ".mlp.fc1",
        ".mlp.fc2",
    )
    expected = {f"blocks.{i}{name}" for i in range(cfg.depth) for name in in_block}
    assert set(a) - {"pre_logits"} == expected | {"patch_embed", cfg.norm_name, "head", ""}


@pytest.mark.quick
@pytest.mark.parametrize("variant", ["token", "mean without token, fc_norm"])
def test_a_model_without_a_head_gives_what_its_head_would_take(variant, precision):
    cfg = VARIANTS[variant]
    arrays = random_arrays(cfg)
    whole, _ = traces(cfg, arrays, precision)
    bare, body = adapt(cfg, arrays, num_classes=0)
    assert set(arrays) - set(body) == {"head.weight", "head.bias"}
    features, same = traces(bare, body, precision)
    distance, _ = worst(features, same)
    assert distance <= LIMIT[precision] and "head" not in features
    assert features[""].shape == (3, cfg.width)
    logits = features[""] @ arrays["head.weight"].T + arrays["head.bias"]
    assert relative_l2(logits, whole[""]) <= LIMIT[precision]
    again, zeros = adapt(bare, body, num_classes=cfg.num_classes)
    assert again == cfg and not zeros["head.weight"].any()


@pytest.mark.parametrize(
    "name", ["vit_ti16", *(pytest.param(n, marks=pytest.mark.slow) for n in ("vit_s16", "vit_b16"))]
)
def test_published_sizes_at_224(name, precision):
    cfg = model_config(name)
    a, b = traces(cfg, random_arrays(cfg), precision, random_images(cfg, batch_size=1))
    distance, layer = worst(a, b)
    assert distance <= LIMIT[precision], layer


@pytest.mark.parametrize(
    "change",
    [
        dict(norm_eps=1e-5),
        dict(gelu="tanh"),
        dict(pool="mean"),
        "swap q and k",
        "no last norm",
        "heads",
    ],
    ids=str,
)
def test_mutations_are_caught(change, x64):
    """One formula wrong in one twin is far beyond the limit, in float32's as well."""
    arrays = random_arrays(SMALL)
    a, _ = traces(SMALL, arrays, "fp64")
    if change == "swap q and k":
        wrong = dict(arrays)
        for name in (n for n in arrays if ".attn.qkv." in n):
            # Swapped in one block only: softmax(q k') and softmax(k q') differ.
            q, k, v = np.split(arrays[name], 3)
            wrong[name] = np.concatenate([k, q, v])
        _, b = traces(SMALL, wrong, "fp64")
    elif change == "no last norm":
        wrong = arrays | {"norm.weight": np.ones_like(arrays["norm.weight"])}
        _, b = traces(SMALL, wrong, "fp64")
    elif change == "heads":
        _, b = traces(dataclasses.replace(SMALL, num_heads=4), arrays, "fp64")
    else:
        _, b = traces(dataclasses.replace(SMALL, **change), arrays, "fp64")
    assert relative_l2(a[""], b[""]) > 5 * LIMIT["fp32"]


def test_transposed_square_weight_is_caught(x64):
    """attn.proj is square: a wrong transpose loads without an error, and only numbers show it."""
    arrays = random_arrays(SMALL)
    name = "blocks.1.attn.proj.weight"
    a, _ = traces(SMALL, arrays, "fp64")
    _, b = traces(SMALL, arrays | {name: np.ascontiguousarray(arrays[name].T)}, "fp64")
    first = next(n for n in a if relative_l2(a[n], b[n]) > LIMIT["fp64"])
    assert first == "blocks.1.attn.proj"


def test_the_last_norm_of_the_class_token_alone_changes_no_logits(x64):
    """`trace` shows it of every token; a call takes it of the one that is pooled."""
    arrays, images = random_arrays(SMALL), random_images(SMALL, dtype=np.float64)
    for model, x in (
        (jax_vit.from_arrays(SMALL, arrays, "fp64"), images),
        (torch_vit.from_arrays(SMALL, arrays, "fp64"), to_torch(images)),
    ):
        traced = model.trace(x)
        assert traced["norm"].shape == (len(images), SMALL.num_tokens, SMALL.width)
        with torch.no_grad():
            np.testing.assert_allclose(np.asarray(model(x)), np.asarray(traced[""]), rtol=1e-13)
