"""Rotary frequencies as tables of NumPy: which are scaled for longer texts, and how."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from twinvit import port

WIDTH, HEADS, LENGTH = 32, 2, 20
X = np.random.default_rng(0).standard_normal((2, LENGTH, WIDTH))


def table(base: float = 5e5, factor: float = 0.0, old: int = 8192) -> np.ndarray:
    """Frequencies; with a factor scaled as Llama 3.1 scales them."""
    n = WIDTH // HEADS // 2
    frequencies = base ** (-np.arange(n) / n)
    if not factor:
        return frequencies
    long, short = old / 1.0, old / 4.0
    waves = 2 * np.pi / frequencies
    between = (old / waves - 1.0) / 3.0
    mixed = (1 - between) * frequencies / factor + between * frequencies
    return np.where(waves > long, frequencies / factor, np.where(waves < short, frequencies, mixed))


class Rotary(torch.nn.Module):
    """Attention with rotary positions; the frequencies are a buffer."""

    def __init__(self, frequencies: np.ndarray) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out = torch.nn.Linear(WIDTH, 3 * WIDTH), torch.nn.Linear(WIDTH, WIDTH)
        self.register_buffer("frequencies", torch.tensor(frequencies, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, _ = x.shape
        angles = torch.arange(t, dtype=x.dtype)[:, None] * self.frequencies
        angles = torch.cat([angles, angles], -1)
        cos, sin = angles.cos(), angles.sin()
        q, k, v = (y.view(b, t, HEADS, -1).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        q, k = (
            y * cos + torch.cat([-y.chunk(2, -1)[1], y.chunk(2, -1)[0]], -1) * sin for y in (q, k)
        )
        weights = torch.softmax(q @ k.mT / 4, -1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, t, -1))


def make(frequencies: np.ndarray) -> Any:
    def turn(y: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        a, b = jnp.split(y, 2, -1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def call(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        b, t, _ = x.shape
        angles = jnp.arange(t)[:, None, None] * jnp.asarray(frequencies, jnp.float32)
        qkv = (x @ p["qkv.weight"].T + p["qkv.bias"]).reshape(b, t, 3, HEADS, -1)
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        q, k = turn(qkv[:, :, 0], cos, sin), turn(qkv[:, :, 1], cos, sin)
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / 4)
        out = jnp.einsum("bhqk,bkhd->bqhd", weights, qkv[:, :, 2]).reshape(b, t, -1)
        return out @ p["out.weight"].T + p["out.bias"]

    return call


def explained(mine: np.ndarray, theirs: np.ndarray) -> port.Report:
    model = Rotary(mine)
    params = {k: v.numpy() for k, v in model.state_dict().items() if k != "frequencies"}
    return port.explain(model, port.Function(make(theirs), params), X)


@pytest.mark.parametrize("factor", [0.0, 8.0])
def test_the_same_table_is_the_same(factor):
    frequencies = table(factor=factor, old=64)
    assert explained(frequencies, frequencies).same


@pytest.mark.parametrize(
    ("mine", "theirs", "cause", "text"),
    [
        ((5e5, 8.0, 64), (5e5,), "rope_scaling", "does not scale its rotary frequencies, of base"),
        ((5e5, 8.0), (5e5, 32.0), "rope_scaling", "as Llama 3 does, with a factor of 32"),
        ((1e4,), (1e4, 8.0), "rope_scaling", "frequencies of base 10000 as Llama 3 does, with"),
        ((5e5,), (1e4,), "rope_base", "the port's rotary base is 10000; the reference's 500000"),
    ],
)
def test_another_scaling_is_named(mine, theirs, cause, text):
    report = explained(table(*mine), table(*theirs))
    assert [f.cause for f in report.findings if f.kind == "cause"] == [cause], report
    assert report.explained and {f.kind for f in report.findings} <= {"cause", "precision"}
    assert text in report.findings[0].text
    assert report.findings[0].torch == "mul"


def test_numbers_that_nobody_scales_by_have_no_name():
    frequencies = table() * (1 + 0.1 * np.random.default_rng(1).random(WIDTH // HEADS // 2))
    report = explained(table(factor=8.0, old=64), frequencies)
    assert report.verdict == "different" and not report.explained, report
    assert "rope_scaling" not in {f.cause for f in report.findings}
