"""Claim: what people have met has its name, and what only resembles it has not.

Of each name a wrong port that is to get it, and a neighbour that must not.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from twinvit import port

W = 8
X = np.random.default_rng(0).standard_normal((2, 6, W))
SQUARE = {name: (W, W) for name in "qkvo"}


class Written(nn.Module):
    """A function of parameters and an input."""

    def __init__(self, fn: Callable[..., Any], shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.fn = fn
        for name, shape in shapes.items():
            size = shape[-1] ** -0.5 if len(shape) > 1 else 0.3
            value = size * torch.randn(shape, generator=generator)
            self.register_parameter(name, nn.Parameter(value + (len(shape) == 1)))

    def forward(self, x: torch.Tensor) -> Any:
        return self.fn(self, x)


class Weights(dict):
    __getattr__ = dict.__getitem__


def explained(reference, ported, shapes, x=X, **kwargs):
    model = Written(reference, shapes).eval()
    params = {n: p.detach().numpy() for n, p in model.named_parameters()}
    return port.explain(
        model, port.Function(lambda p, x: ported(Weights(p), x), params), (x,), **kwargs
    )


def softmax(x):
    return x.softmax(-1) if isinstance(x, torch.Tensor) else jax.nn.softmax(x, -1)


def attention(score):
    """One head; `score` changes its scores."""

    def fn(p, x):
        q, k, v = x @ p.q, x @ p.k, x @ p.v
        k = k.mT
        return x + (softmax(score(q @ k * W**-0.5)) @ v) @ p.o

    return fn


def capped(cap, scale=None):
    def fn(s):
        tanh = torch.tanh if isinstance(s, torch.Tensor) else jnp.tanh
        return (cap if scale is None else scale) * tanh(s / cap)

    return fn


def plain(s):
    return s


GROUPED = {"q": (W, W), "k": (W, W // 2), "v": (W, W // 2), "o": (W, W)}


def grouped(p, x):
    b, t, _ = x.shape
    q = (x @ p.q).view(b, t, 4, 2).transpose(1, 2)
    k, v = ((x @ w).view(b, t, 2, 2).transpose(1, 2) for w in (p.k, p.v))
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    y = (q @ k.mT * 2**-0.5).softmax(-1) @ v
    return x + y.transpose(1, 2).reshape(b, t, W) @ p.o


def heads(repeat, count=4, merge=(0, 2, 1, 3)):
    def fn(p, x):
        b, t, _ = x.shape
        q = (x @ p.q).reshape(b, t, count, -1).swapaxes(1, 2)
        k, v = ((x @ w).reshape(b, t, count // 2, -1).swapaxes(1, 2) for w in (p.k, p.v))
        k, v = repeat(k), repeat(v)
        y = softmax(q @ k.mT * q.shape[-1] ** -0.5) @ v
        return x + y.transpose(merge).reshape(b, t, W) @ p.o

    return fn


def each(k):
    return jnp.repeat(k, 2, 1)


def tiled(k):
    return jnp.concatenate([k, k], 1)


ROUTER = {"r": (W, 6), "e": (W, 6 * W)}


def router(kind, count=2):
    def fn(p, x):
        scores = x @ p.r
        values, chosen = torch.topk(scores if kind == "chosen" else softmax(scores), count)
        values = softmax(values) if kind == "chosen" else values
        if kind == "normalised":
            values = values / values.sum(-1, keepdim=True)
        share = torch.zeros(*x.shape[:-1], 6, dtype=x.dtype).scatter(-1, chosen, values)
        return ((x @ p.e).unflatten(-1, (6, W)) * share[..., None]).sum(-2)

    return fn


def jax_router(kind, count=2):
    def fn(p, x):
        scores = x @ p.r
        values, chosen = jax.lax.top_k(scores if kind == "chosen" else softmax(scores), count)
        values = softmax(values) if kind in ("chosen", "twice") else values
        if kind == "normalised":
            values = values / values.sum(-1, keepdims=True)
        if kind == "largest":
            values = values / values.max(-1, keepdims=True)
        share = (jax.nn.one_hot(chosen, 6, dtype=x.dtype) * values[..., None]).sum(-2)
        return ((x @ p.e).reshape(*x.shape[:-1], 6, W) * share[..., None]).sum(-2)

    return fn


def rotated(np_, x, part, base=1e4):
    angles = np_.arange(6)[:, None] / base ** (np_.arange(0, part, 2) / part)
    join = torch.cat if np_ is torch else jnp.concatenate
    angles = join([angles, angles], -1)
    kept, half = x[..., :part], part // 2
    turned = join([-kept[..., half:], kept[..., :half]], -1)
    y = kept * np_.cos(angles) + turned * np_.sin(angles)
    return join([y, x[..., part:]], -1)


def rotary(np_, part, base=1e4):
    def fn(p, x):
        q, k = rotated(np_, x @ p.q, part, base), rotated(np_, x @ p.k, part, base)
        return softmax(q @ k.mT) @ (x @ p.v)

    return fn


def rms(x, g, eps=1e-6):
    mean = (x**2).mean(-1, keepdims=True)
    return x / (mean + eps) ** 0.5 * g


def torch_rms(x, g):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * g


def length(x):
    return jnp.sqrt((x**2).sum(-1, keepdims=True))


def convolved(x, w):
    return jax.lax.conv_general_dilated(x, w, (1, 1), ((1, 1), (1, 1)))


def shuffled(order):
    def fn(p, x):
        y = convolved(x, p.w)[:, ::-1] if order is None else convolved(x, p.w)
        if order == "channels last":
            y = y.reshape(2, 2, 2, 2, 4, 4).transpose(0, 3, 4, 1, 5, 2)
        else:
            y = y.reshape(2, 2, 2, 2, 4, 4).transpose(0, 1, 4, 2, 5, 3)
        return convolved(y.reshape(2, 2, 8, 8), p.z)

    return fn


IMAGE = np.random.default_rng(0).standard_normal((2, 3, 4, 4))
TOKENS = np.random.default_rng(0).integers(0, 10, (3, 7))


def next_token(p, ids):
    logits = p.e[ids] @ p.o
    return F.cross_entropy(logits[:, :-1].reshape(-1, 10), ids[:, 1:].reshape(-1))


def jax_loss(shift, scale=1):
    def fn(p, ids):
        logits = scale * p.e[ids] @ p.o
        a, b = (logits[:, :-1], ids[:, 1:]) if shift else (logits, ids)
        return -jnp.take_along_axis(jax.nn.log_softmax(a), b[..., None], -1).mean()

    return fn


MLP = {"u": (W, W), "w": (W, W), "d": (W, W)}
NORMED = {"g": (W,), "u": (W, W), "d": (W, W)}
VECTOR = {"g": (W, 1), "v": (W, W), "d": (W, W)}
future = np.triu(np.ones((6, 6), bool), 1)
causal = attention(lambda s: s.masked_fill(torch.tensor(future), -np.inf))


def ported_mask(mask):
    return attention(lambda s: jnp.where(mask, -jnp.inf, s))


def before(p, x):
    return x + F.silu(torch_rms(x, p.g) @ p.u) @ p.d


NAMES = {
    "softcap_missing": (
        (attention(capped(1.5)), attention(plain), SQUARE),
        (attention(torch.tanh), attention(plain), SQUARE),
    ),
    "softcap_added": (
        (attention(plain), attention(capped(1.5)), SQUARE),
        (attention(plain), attention(capped(1.5, scale=2)), SQUARE),
    ),
    "softcap_value": (
        (attention(capped(1.5)), attention(capped(1.9)), SQUARE),
        (attention(capped(1.5)), attention(capped(1.5, scale=1.9)), SQUARE),
    ),
    "kv_repeat": (
        (grouped, heads(tiled), GROUPED),
        (grouped, heads(each, merge=(0, 2, 3, 1)), GROUPED),
    ),
    "head_count": (
        (grouped, heads(each, count=2), GROUPED),
        (grouped, heads(lambda k: each(k)[:, ::-1]), GROUPED),
    ),
    "router_norm": (
        (router("normalised"), jax_router(""), ROUTER),
        (router(""), jax_router("largest"), ROUTER),
    ),
    "router_order": (
        (router(""), jax_router("chosen"), ROUTER),
        (router(""), jax_router("twice"), ROUTER),
    ),
    "router_k": (
        (router("normalised"), jax_router("normalised", 3), ROUTER),
        (router(""), jax_router("normalised"), ROUTER),
    ),
    "rope_partial": (
        (rotary(torch, 4), rotary(jnp, 8), SQUARE),
        (rotary(torch, 8), rotary(jnp, 8, 1e3), SQUARE),
    ),
    "norm_order": (
        (before, lambda p, x: rms(x + jax.nn.silu(x @ p.u) @ p.d, p.g), NORMED),
        (before, lambda p, x: x + jax.nn.silu(x @ p.u) @ p.d, NORMED),
    ),
    "normalize_eps": (
        (
            lambda p, x: F.normalize(x @ p.u, dim=-1) @ p.d,
            lambda p, x: (x @ p.u) / (length(x @ p.u) + 1e-6) @ p.d,
            NORMED,
        ),
        (
            lambda p, x: F.normalize(x @ p.u, dim=-1) @ p.d,
            lambda p, x: (x @ p.u) / jnp.abs(x @ p.u).sum(-1, keepdims=True) @ p.d,
            NORMED,
        ),
    ),
    "clip_missing": (
        (lambda p, x: (x @ p.u).clamp(-0.5, 0.5) @ p.d, lambda p, x: x @ p.u @ p.d, NORMED),
        (
            lambda p, x: (x @ p.u).clamp(-0.5, 0.5) @ p.d,
            lambda p, x: (x @ p.u).clip(-0.5, 0.7) @ p.d,
            NORMED,
        ),
    ),
    "mask_missing": (
        (causal, attention(plain), SQUARE),
        (causal, ported_mask(np.triu(np.ones((6, 6), bool), 2)), SQUARE),
    ),
    "fft_norm": (
        (
            lambda p, x: torch.fft.fft(x @ p.u, norm="ortho").real @ p.d,
            lambda p, x: jnp.fft.fft(x @ p.u).real @ p.d,
            NORMED,
        ),
        (
            lambda p, x: torch.fft.fft(x @ p.u).real @ p.d,
            lambda p, x: 3 * jnp.fft.fft(x @ p.u).real @ p.d,
            NORMED,
        ),
    ),
    "pixel_shuffle": tuple(
        (
            lambda p, x: F.conv2d(F.pixel_shuffle(F.conv2d(x, p.w, padding=1), 2), p.z, padding=1),
            shuffled(order),
            {"w": (8, 3, 3, 3), "z": (4, 2, 3, 3)},
            IMAGE,
        )
        for order in ("channels last", None)
    ),
    "weight_norm": (
        (
            lambda p, x: x @ torch._weight_norm(p.v, p.g, 0).T @ p.d,
            lambda p, x: x @ (p.g * p.v).T @ p.d,
            VECTOR,
        ),
        (
            lambda p, x: F.silu(x @ torch._weight_norm(p.v, p.g, 0).T) @ p.d,
            lambda p, x: jax.nn.relu(x @ (p.g * p.v / length(p.v)).T) @ p.d,
            VECTOR,
        ),
    ),
    "target_shift": (
        (next_token, jax_loss(False), {"e": (10, W), "o": (W, 10)}, TOKENS),
        (next_token, jax_loss(True, 2), {"e": (10, W), "o": (W, 10)}, TOKENS),
    ),
    "gate_missing": (
        (
            lambda p, x: (F.silu(x @ p.w) * (x @ p.u)) @ p.d,
            lambda p, x: (x @ p.u) @ p.d,
            MLP,
        ),
        (
            lambda p, x: (F.silu(x @ p.w) * (x @ p.u)) @ p.d,
            lambda p, x: (jax.nn.silu(x @ p.u) * (x @ p.w)) @ p.d,
            MLP,
        ),
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_what_has_a_name_gets_it(name):
    report = explained(*NAMES[name][0])
    assert report.verdict == "different" and report.explained, report
    assert [f.cause for f in report.findings] == [name], report
    assert report.findings[0].fix


@pytest.mark.parametrize("name", NAMES)
def test_a_neighbour_does_not_get_it(name):
    report = explained(*NAMES[name][1])
    assert report.verdict == "different" and report.explained, report
    assert name not in [f.cause for f in report.findings], report


def test_the_softmax_of_the_chosen_is_theirs_of_all_over_its_sum():
    assert explained(router("normalised"), jax_router("chosen"), ROUTER).same
    report = explained(router(""), jax_router("normalised"), ROUTER)
    assert [f.cause for f in report.findings] == ["router_norm"], report


def test_a_weight_that_is_normalised_by_hand_has_the_name_too():
    report = explained(
        lambda p, x: x @ (p.g * p.v / p.v.norm(dim=1, keepdim=True)).T @ p.d,
        lambda p, x: x @ p.v.T @ p.d,
        VECTOR,
    )
    assert [f.cause for f in report.findings] == ["weight_norm"], report


def test_a_named_expression_says_what_to_write():
    report = explained(*NAMES["softcap_added"][0])
    (found,) = report.findings
    assert found.kind == "expression" and found.fix == f"compute {found.formulas['torch']}"
