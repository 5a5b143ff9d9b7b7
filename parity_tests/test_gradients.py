"""Claim: both twins give the same gradient for every tensor."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SMALL, VARIANTS, random_arrays, worst

from benchmarks.twin_pairs import gradients
from jax_vit import ops
from shared_vit import model_config
from shared_vit.spec.precision import PRECISIONS

LIMIT = {"fp32": 1e-5, "fp64": 1e-11}


def check(cfg, precision, batch_size=3):
    a, b = gradients(cfg, random_arrays(cfg), precision, batch_size)
    for i in range(cfg.depth):
        # The key bias has no true gradient (softmax does not see it): what is there is rounding,
        # judged by its size.
        name, d = f"blocks.{i}.attn.qkv.bias", cfg.width
        for side in (a, b):
            assert np.abs(side[name][d : 2 * d]).max() < LIMIT[precision] * np.abs(side[name]).max()
            side[name] = np.delete(side[name], np.s_[d : 2 * d])
    assert all(np.linalg.norm(g) > 1e-4 for g in b.values())  # there is something to compare
    distance, name = worst(a, b)
    assert distance <= LIMIT[precision], name


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_gradient(variant, precision):
    check(VARIANTS[variant], precision)


@pytest.mark.parametrize(
    "name", ["vit_ti16", *(pytest.param(n, marks=pytest.mark.slow) for n in ("vit_s16", "vit_b16"))]
)
def test_published_sizes_at_224(name, x64):
    check(model_config(name), "fp64", batch_size=1)


def test_mutation_is_caught(x64):
    """An eps of 1e-5 in one twin shows in the gradients."""
    arrays = random_arrays(SMALL)
    a, _ = gradients(SMALL, arrays, "fp64")
    _, b = gradients(dataclasses.replace(SMALL, norm_eps=1e-5), arrays, "fp64")
    assert worst(a, b)[0] > LIMIT["fp32"]


@pytest.mark.quick
def test_gradients_written_by_hand_are_the_derivatives(x64):
    """The gradients that `jax_vit.ops` writes out, against JAX's derivatives of plain formulas."""
    rng = np.random.default_rng(0)
    policy = PRECISIONS["fp64"]

    def norm(x, scale, bias):
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / jnp.sqrt(variance + 1e-6) * scale + bias

    def attention(q, k, v):
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
        return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), v)

    def product(x, kernel, bias=None):
        return ops.product(x, kernel, bias, policy)

    for own, plain, shapes in (
        (product, lambda x, kernel, bias: x @ kernel + bias, [(2, 5, 12), (12, 7), (7,)]),
        (product, lambda x, kernel: x @ kernel, [(2, 5, 12), (12, 7)]),
        (partial(ops._layer_norm, eps=1e-6), norm, [(2, 5, 12), (12,), (12,)]),
        (partial(ops.attention, policy=policy), attention, [(2, 5, 3, 4)] * 3),
        (partial(ops.attention, policy=policy), attention, [(2, 1, 3, 4), *[(2, 5, 3, 4)] * 2]),
    ):
        arrays = [rng.standard_normal(shape) for shape in shapes]
        value, pull_back = jax.vjp(own, *arrays)
        expected, expected_pull_back = jax.vjp(plain, *arrays)
        g = rng.standard_normal(value.shape)
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-13)
        for a, b in zip(pull_back(g), expected_pull_back(g)):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
