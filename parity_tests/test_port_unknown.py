"""A mistake outside the catalogue ends no search: what comes after it is found and named."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

from twinvit import port

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import port_zoo  # noqa: E402

WIDTH, STRANGE = 10, 4


def test_causes_behind_what_is_outside_the_catalogue_are_named():
    case = port_zoo.build("vit", "linen", 0, ["gelu_tanh", "norm_eps", "abs_values"])
    report = port.explain(case.torch_model, case.explainable(), case.inputs)
    named = {f.cause: f for f in report.findings}
    assert set(named) == {"gelu_tanh", "norm_eps", ""}, report
    assert len(named["norm_eps"].places) == 7 and len(named["gelu_tanh"].places) == 3
    assert named[""].kind == "expression" and "attn" in named[""].torch
    assert "abs(" in named[""].text and len(named[""].places) == 3
    assert report.explained and report.remaining < 1e-12


class Chain(torch.nn.Module):
    """Linear layers, each with a tanh, then one with GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(STRANGE))
        self.last = torch.nn.Linear(WIDTH, 2 * WIDTH)
        self.head = torch.nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(torch.nn.functional.gelu(self.last(x)))


def strange(params: dict, x: jax.Array) -> jax.Array:
    """No operation of the chain as in the reference, and GELU's tanh form after it."""
    for i in range(STRANGE):
        x = (1.3 * x**2) @ params[f"layers.{i}.weight"].T + 2 * params[f"layers.{i}.bias"]
        x = x * (1 + 0.3 * jnp.cos(5 * x))
        x = jnp.sin(2 * x) + 0.1 * x**2
    x = jax.nn.gelu(x @ params["last.weight"].T + params["last.bias"], approximate=True)
    return x @ params["head.weight"].T + params["head.bias"]


def test_the_search_begins_again_behind_a_stretch_of_unknowns():
    torch.manual_seed(0)
    model = Chain()
    params = {k: v.numpy() for k, v in model.state_dict().items()}
    x = np.random.default_rng(0).standard_normal((5, WIDTH)).astype(np.float32)
    report = port.explain(model, port.Function(strange, params), (x,))
    assert {f.cause for f in report.findings} == {"", "gelu_tanh"}, report
    assert not report.explained


def test_numbers_that_the_port_does_not_have_are_said():
    torch.manual_seed(0)
    model = torch.nn.Linear(WIDTH, 6)
    params = {k: v.numpy() for k, v in model.state_dict().items()}
    x = np.random.default_rng(0).standard_normal((5, WIDTH)).astype(np.float32)

    def hollow(p: dict, x: jax.Array) -> jax.Array:
        y = x @ p["weight"].T + p["bias"]
        return jnp.where((jnp.arange(5) == 2)[:, None], jnp.nan, y)

    report = port.explain(model, port.Function(hollow, params), (x,))
    assert "the port returns NaN in 6 of the 30 numbers" in report.findings[0].text
    assert "another order" not in report.findings[0].text


def masked_from(first: int) -> port.Function:
    """The linear layer of `Masked` with -inf from a column on."""
    torch.manual_seed(0)
    params = {k: v.numpy() for k, v in torch.nn.Linear(WIDTH, 6).state_dict().items()}

    def call(p: dict, x: jax.Array) -> jax.Array:
        y = x @ p["weight"].T + p["bias"]
        return jnp.where(jnp.arange(6) >= first, -jnp.inf, y)

    return port.Function(call, params)


class Masked(torch.nn.Linear):
    """A linear layer whose last outputs are -inf; none with 6."""

    first = 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).masked_fill(torch.arange(6) >= self.first, -torch.inf)


def test_infinities_that_the_port_has_elsewhere_are_explained():
    torch.manual_seed(0)
    model = Masked(WIDTH, 6)
    x = (np.random.default_rng(0).standard_normal((5, WIDTH)).astype(np.float32),)
    assert port.explain(model, masked_from(4), x).same
    for first in (2, 5):
        report = port.explain(model, masked_from(first), x)
        (finding,) = report.findings
        assert report.explained and finding.kind == "expression", report
        assert f">= {first}, -inf" in finding.text
        assert len(report.verified) == 2 and all(d.rounding for d in report.verified)
    model.first = 6
    assert port.explain(model, masked_from(4), x).explained
