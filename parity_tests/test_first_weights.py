"""Claim: both twins start from the same weights, bit for bit, and these are distributed as Google's are."""

import dataclasses
import math

import numpy as np
import pytest
from helpers import SMALL, VARIANTS

import jax_vit
import torch_vit
from shared_vit import model_config
from shared_vit.spec import init
from shared_vit.spec.init import TRUNCATED_STD


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_bit_for_bit(variant, precision):
    cfg = VARIANTS[variant]
    (_, a), (_, b) = (
        package.to_arrays(package.create(cfg, seed=7, precision=precision)) for package in (jax_vit, torch_vit)
    )
    drawn = init.draw(cfg, 7)
    assert list(a) == list(b) == list(drawn)
    for name in drawn:
        assert np.array_equal(a[name], b[name]) and np.array_equal(a[name].astype(np.float32), drawn[name]), name


def test_seeds_differ_and_repeat():
    a, b, again = (init.draw(SMALL, seed)["blocks.0.attn.qkv.weight"] for seed in (0, 1, 0))
    assert np.array_equal(a, again) and not np.array_equal(a, b)


def test_frozen():
    """A seed means the same weights in every version: these numbers never change."""
    weight = init.draw(SMALL, 0)["blocks.1.mlp.fc1.weight"]
    assert weight[0, :3].tolist() == pytest.approx(FROZEN, rel=1e-6)


FROZEN = [0.016589595, 0.089188375, -0.09601818]


def test_distributions():
    cfg = dataclasses.replace(model_config("vit_s16"), pre_logits=384)
    drawn = init.draw(cfg, 0)
    d, m = cfg.width, cfg.mlp_dim
    for i in (0, 11):
        for third in np.split(
            drawn[f"blocks.{i}.attn.qkv.weight"], 3
        ):  # Xavier over each of q, k, v, not the fused matrix
            _uniform(third, math.sqrt(6 / (d + d)))
        _uniform(drawn[f"blocks.{i}.attn.proj.weight"], math.sqrt(6 / (d + d)))
        _uniform(drawn[f"blocks.{i}.mlp.fc1.weight"], math.sqrt(6 / (d + m)))
        _uniform(drawn[f"blocks.{i}.mlp.fc2.weight"], math.sqrt(6 / (d + m)))
        _normal(drawn[f"blocks.{i}.mlp.fc1.bias"], 1e-6)
        assert (drawn[f"blocks.{i}.norm1.weight"] == 1).all() and not drawn[f"blocks.{i}.attn.qkv.bias"].any()
    for name, fan_in in (("patch_embed.proj.weight", 3 * 16 * 16), ("pre_logits.weight", d)):
        std = math.sqrt(1 / fan_in)
        _normal(drawn[name], std)
        bound = 2 * std / TRUNCATED_STD
        assert 0.97 * bound < np.abs(drawn[name]).max() <= bound * (1 + 1e-6)
    _normal(drawn["pos_embed"], 0.02)
    for name in ("cls_token", "head.weight", "head.bias", "patch_embed.proj.bias", "pre_logits.bias", "norm.bias"):
        assert not drawn[name].any(), name


def test_sincos_positions():
    cfg = dataclasses.replace(SMALL, pos_embed="sincos2d")
    table = init.sincos2d(cfg)[0]
    assert not table[0].any()  # the class token's
    quarter = cfg.width // 4
    x, y = 2, 1
    row = table[1 + y * 3 + x]
    omega = 10_000.0 ** -(np.arange(quarter) / (quarter - 1))
    expected = np.concatenate([np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)])
    np.testing.assert_allclose(row, expected, atol=1e-7)


def _uniform(values, bound):
    assert 0.999 * bound < np.abs(values).max() <= bound * (1 + 1e-6)
    assert values.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert abs(values.mean()) < 5 * values.std() / math.sqrt(values.size)


def _normal(values, std):
    assert values.std() == pytest.approx(std, rel=0.06)
    assert abs(values.mean()) < 5 * std / math.sqrt(values.size)
