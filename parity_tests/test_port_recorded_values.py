"""Claim: what was recorded by its value stands for no other numbers, and vouches for nothing."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from laws import pairs
from torch import nn

from twinvit import port
from twinvit.port.recording.alike import alike

X = pairs.draws(12, 5)


@torch.library.custom_op("recorded_values::square", mutates_args=())
def square(x: torch.Tensor) -> torch.Tensor:
    """An operation that no other environment has."""
    return x * x


def told(folder: Path, reference: Any, fn: Any, inputs: Any) -> port.Report:
    theirs = port.Function(fn, pairs.held(reference))
    for name, model in (("torch", reference), ("jax", theirs)):
        port.record_model(folder / name, model, inputs, framework=name)
    return port.explain_recordings(folder / "torch", folder / "jax")


def test_a_callback_on_tokens_is_not_replayed_for_the_same_tokens_in_another_order(tmp_path):
    """Drawn tokens are the first ones in another order: the port is right, and not "different"."""
    parts = {"e": nn.Embedding(11, 6), "fc": nn.Linear(6, 7)}
    reference = pairs.net(lambda m, ids: m.fc(m.e(ids)), **parts)
    ids = np.random.default_rng(1).integers(0, 11, (2, 6))

    def theirs(p: dict[str, Any], ids: jax.Array) -> jax.Array:
        kind = jax.ShapeDtypeStruct(ids.shape, ids.dtype)
        return pairs.dense(p, "fc", p["e.weight"][jax.pure_callback(np.asarray, kind, ids)])

    report = told(tmp_path, reference, theirs, (ids,))
    assert report.verdict == "undecided" and "pure_callback" in report.reasons[0]


def test_weights_that_are_not_read_are_not_the_same_beside_a_recorded_value(tmp_path):
    """The port leaves out a norm's weights, which are one here: other weights would show it."""
    parts = {"fc1": nn.Linear(5, 9), "norm": nn.LayerNorm(9), "fc2": nn.Linear(9, 6)}
    reference = pairs.net(lambda m, x: m.fc2(square(m.norm(m.fc1(x)))), **parts)
    with torch.no_grad():
        reference.norm.weight.fill_(1.0)
        reference.norm.bias.zero_()

    def theirs(p: dict[str, Any], x: jax.Array) -> jax.Array:
        h = pairs.dense(p, "fc1", x)
        h = h - h.mean(-1, keepdims=True)
        h = h / jnp.sqrt((h * h).mean(-1, keepdims=True) + 1e-5)
        return pairs.dense(p, "fc2", h * h)

    report = told(tmp_path, reference, theirs, (X,))
    assert report.verdict == "undecided" and "square" in report.reasons[0]


MASKED = np.where(np.tri(5, dtype=bool), pairs.draws(5, 5).astype(np.float64), -3.4e38)


@pytest.mark.parametrize(
    ("given", "same"),
    [
        (MASKED * (1 + 1e-13), True),
        (np.where(MASKED > -1e38, 1.001 * MASKED, MASKED), False),  # what masks would hide
        (MASKED[::-1], False),
        (np.where(MASKED < -1e38, np.inf, MASKED), False),
        (MASKED[:4], False),
    ],
)
def test_operands_are_the_recorded_ones_number_by_number(given, same):
    assert alike(given, MASKED) == same
    assert alike(given + 1j, MASKED + 1j) == same


def test_whole_numbers_are_compared_exactly():
    numbers = np.arange(6)
    assert alike(numbers, numbers.copy()) and not alike(numbers, numbers[::-1])
