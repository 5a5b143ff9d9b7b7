"""What `port.explain` is given besides the models: inputs, an output to compare, weights."""

import sys
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import twinvit
from twinvit import port
from twinvit.port.weight_map import Rule

X = np.random.default_rng(0).standard_normal((5, 9))


class Tokens(torch.nn.Module):
    """Two layers; returns every position and another array."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.a = torch.nn.Linear(9, 9, bias=False)
        self.b = torch.nn.Linear(9, 9, bias=False)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"tokens": self.b(torch.nn.functional.gelu(self.a(x))), "input": x}


def params(model: Tokens) -> dict[str, np.ndarray]:
    return {k: v.numpy() for k, v in model.state_dict().items()}


def call(p: dict[str, Any], x: jax.Array, approximate: bool = False) -> dict[str, jax.Array]:
    y = jax.nn.gelu(x @ p["a.weight"].T, approximate=approximate) @ p["b.weight"].T
    return {"input": x, "tokens": y}


def doubled(out: dict[str, Any]) -> Any:
    return out["tokens"][:, :4] * 2


def test_a_function_picks_the_output_on_both_sides():
    model = Tokens()
    report = port.explain(
        model, port.Function(call, params(model)), X, output=doubled, what=("forward", "grad")
    )
    assert report.same, report
    wrong = port.Function(lambda p, x: call(p, x, approximate=True), params(model))
    report = port.explain(model, wrong, X, output=doubled)
    assert report.explained and [f.cause for f in report.findings] == ["gelu_tanh"], report


def test_a_function_that_fails_is_named_with_its_side():
    model = Tokens()
    exact = port.Function(call, params(model))
    with pytest.raises(port.PortError, match="output= fails on what the PyTorch model returns"):
        port.explain(model, exact, X, output=lambda out: out["logits"])
    bare = port.Function(lambda p, x: call(p, x)["tokens"], params(model))
    with pytest.raises(port.PortError, match="output= fails on what the JAX model returns"):
        port.explain(model, bare, X, output=lambda out: out["tokens"])


@pytest.mark.parametrize("make", [np.asarray, torch.tensor, jnp.asarray, lambda x: [x]])
def test_an_array_alone_is_the_only_input(make):
    model, other = Tokens(), port.Function(call, params(Tokens(seed=1)))
    assert port.explain(model, port.Function(call, params(model)), make(X), output="tokens").same
    found = port.map_weights(model, other, make(X))
    assert {r.jax: r.torch for r in found.rules} == {n: [n] for n in ("a.weight", "b.weight")}


def test_weights_are_transferred_with_the_ports_own_inputs():
    model = Tokens()
    columns = port.Function(lambda p, x: call(p, x.T), params(Tokens(seed=1)))
    report = port.explain(model, columns, (X,), jax_inputs=X.T, weights="transfer", output="tokens")
    assert report.same, report


def test_a_map_is_applied_as_a_whole_or_not_at_all():
    model = Tokens()
    other = port.Function(call, params(Tokens(seed=1)))
    a = Rule("a.weight", ["a.weight"], (9, 9), (9, 9), (0, 1))
    b = Rule("b.weight", ["b.weight"], (9, 9), (9, 9), (0, 1))
    report = port.explain(model, other, X, weights=port.WeightMap([a, b]), output="tokens")
    assert report.same, report
    with pytest.raises(port.PortError, match="makes c.weight, which the port does not have"):
        port.explain(model, other, X, weights=port.WeightMap([a, replace(b, jax="c.weight")]))
    flat = replace(b, shape=(81,))
    with pytest.raises(port.PortError, match=r"b.weight of shape \(81,\); the port's is \(9, 9\)"):
        port.explain(model, other, X, weights=port.WeightMap([a, flat]))
    report = port.explain(model, other, X, weights=port.WeightMap([a]), output="tokens")
    assert not report.same and any("left as they were: b.weight" in n for n in report.notes)
    with pytest.raises(port.PortError, match="weights= is a dict"):
        port.explain(model, other, X, weights=params(model))


def test_blind_spots_need_no_jax(monkeypatch):
    # The package is imported anew; what there was is put back afterwards.
    monkeypatch.setattr(twinvit, "port", port)
    for name in [n for n in sys.modules if n.startswith("twinvit.port")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jax", None)
    from twinvit.port.audit import blind_spots

    assert blind_spots(Tokens(), X, output=lambda out: out["tokens"][0], limit=20).spots
