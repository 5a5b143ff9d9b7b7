"""Claim: what only resembles a named mistake is told as an expression, and not by that name."""

from typing import Any

import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F
from laws import pairs

from twinvit import port

X = pairs.draws(12, 5)


def told(body: Any, fn: Any) -> port.Report:
    """The report on a perceptron with `body` between its layers, and a port with `fn` there."""
    reference = pairs.net(lambda m, x: m.fc2(body(m.fc1(x))), **pairs.perceptron())

    def theirs(p: dict[str, Any], x: jax.Array) -> jax.Array:
        return pairs.dense(p, "fc2", fn(pairs.dense(p, "fc1", x)))

    report = port.explain(reference, port.Function(theirs, pairs.held(reference)), (X,))
    assert report.verdict == "different"
    return report


def test_a_divisor_that_is_squared_is_no_activation():
    """A norm is positive, so that its square is squared ReLU's number, too."""
    report = told(lambda h: F.normalize(h, dim=-1), lambda h: h / (h * h).sum(-1, keepdims=True))
    assert [f.kind for f in report.findings] == ["expression"]


def test_an_imaginary_part_is_no_other_token():
    report = told(lambda h: torch.fft.fft(h, dim=-1).real, lambda h: jnp.fft.fft(h, axis=-1).imag)
    assert "token_order" not in [f.cause for f in report.findings]
    assert report.explained
