"""Law 1, on numbers whose rounding is not their own size times eps: tails, denormals, sums that
cancel; and constants inside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from laws import pairs
from laws.pairs import Pair
from torch import nn

FLOAT32_MIN = float(np.finfo(np.float32).min)


def padding_dwarfs() -> Pair:
    """Distances of points, with 1e15 where a point is padding."""

    def body(m, x, real):
        y = m.fc(x)
        d = ((y[:, :, None] - y[:, None]) ** 2).sum(-1)
        return torch.where(real[:, :, None] & real[:, None], d, torch.full_like(d, 1e15))

    def port(p, x, real, wrong):
        y = pairs.dense(p, "fc", x)
        d = ((y[:, :, None] - y[:, None]) ** 2).sum(-1)
        d = jnp.sqrt(d + 1e-9) ** 2 if wrong else d
        return jnp.where(real[:, :, None] & real[:, None], d, 1e15)

    real = np.arange(6)[None] < np.array([[6], [4], [3]])
    return Pair(pairs.net(body, fc=nn.Linear(5, 4)), port, (pairs.draws(3, 6, 5), real))


def attention(constant: float) -> Pair:
    """Causal attention; padded keys are masked by a constant that is added, then a bias by
    distance is, whose sign is wrong in one port, and which another scales."""

    def body(m, x, keep):
        q, k, v = (y.unflatten(-1, (2, 4)).transpose(1, 2) for y in m.qkv(x).chunk(3, -1))
        w = q @ k.transpose(-1, -2) / 4**0.5
        w = w + torch.where(keep[:, None, None], 0.0, constant)
        w = w + 0.1 * torch.arange(6.0)
        return m.out((w.softmax(-1) @ v).transpose(1, 2).flatten(2))

    def port(p, x, keep, wrong):
        y = pairs.dense(p, "qkv", x).reshape(*x.shape[:2], 3, 2, 4)
        q, k, v = y[:, :, 0], y[:, :, 1], y[:, :, 2]
        w = jnp.einsum("bqhd,bkhd->bhqk", q * (8 if wrong == "scale" else 4) ** -0.5, k)
        w = w + jnp.where(keep[:, None, None], 0.0, constant)
        w = w + (-0.1 if wrong == "sign" else 0.1) * jnp.arange(6.0)
        w = jax.nn.softmax(w, -1)
        return pairs.dense(p, "out", jnp.einsum("bhqk,bkhd->bqhd", w, v).reshape(x.shape))

    model = pairs.net(body, qkv=nn.Linear(8, 24), out=nn.Linear(8, 8))
    keep = np.arange(6)[None] < np.array([[6], [4]])
    return Pair(model, port, (pairs.draws(2, 6, 8), keep))


@pytest.mark.parametrize("constant", [-1e9, FLOAT32_MIN])
def test_a_mistake_before_masked_scores_is_named_there(constant):
    """Guard."""
    pair = attention(constant)
    pairs.same(pair.told())
    report = pair.told("scale")
    pairs.different(report)
    assert report.explained and [f.cause for f in report.findings] == ["attention_scale"]


def test_the_tail_of_an_activation_is_no_difference():
    """1 + erf(x) is rounded to eps where erfc(-x) has 16 digits: beyond -6 GELU's own digits go in
    PyTorch, and JAX keeps them. No formula differs."""

    def body(m, x):
        return F.gelu(m.fc(x))

    def port(p, x, wrong):
        return pairs.gelu(pairs.dense(p, "fc", x), wrong)

    model = pairs.net(body, fc=nn.Linear(5, 6))
    pair = Pair(model, port, (pairs.draws(30, 5, scale=4.0),))
    with torch.no_grad():
        assert float(model.fc(torch.tensor(pair.inputs[0])).min()) < -7
    pairs.same(pair.told())
    pairs.different(pair.told(True))


def test_a_sum_that_cancels_is_judged_by_the_rounding_of_its_terms():
    """Terms of 1e4 cancel to one: the port adds them in another order."""

    def body(m, x):
        y = m.fc(x) * 1e4
        return (y + F.gelu(m.fc(x))) - y * 1.0

    def port(p, x, wrong):
        y = pairs.dense(p, "fc", x)
        return (1e4 * y - y * 1e4) + pairs.gelu(y, wrong)

    pair = Pair(pairs.net(body, fc=nn.Linear(5, 6)), port, (pairs.draws(7, 5),))
    pairs.same(pair.told())
    pairs.different(pair.told(True))


def test_padding_that_dwarfs_the_rest_hides_nothing():
    pairs.same(padding_dwarfs().told())
    pairs.different(padding_dwarfs().told(True))


@pytest.mark.parametrize("constant", [-1e9, FLOAT32_MIN])
def test_masked_scores_hide_no_mistake_behind_them(constant):
    """Guard: the sum that differs stands beside the mask's constant, and is the place."""
    report = attention(constant).told("sign")
    pairs.different(report)
    places = [place for f in report.findings for place in (f.torch, *f.places)]
    assert any("add" in place or "mul" in place for place in places), str(report)
    assert not any("softmax" in place for place in places), str(report)
