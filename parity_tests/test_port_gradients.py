"""Gradients of small models: what is compared with what, and which causes are proven."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from twinvit import port

INPUT = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
GRAD = ("forward", "grad")


def given(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {k: v.numpy() for k, v in model.state_dict().items()}


class Chain(torch.nn.Module):
    """Two linear layers of one width, and a parameter that nothing uses."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, width)
        self.second = torch.nn.Linear(width, width)
        self.unused = torch.nn.Parameter(torch.randn(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def chained(
    width: int = 8,
    model: type[Chain] = Chain,
    middle: Callable[[jax.Array], jax.Array] = lambda y: y,
    **changed: Callable[[jax.Array], jax.Array],
) -> port.Report:
    """The chain against a port in which `middle` and some parameters, by name, pass gradients
    otherwise."""
    torch.manual_seed(0)
    reference = model(width)

    def call(p: dict[str, Any], x: jax.Array) -> jax.Array:
        p = {k: changed.get(k.replace(".", "_"), lambda w: w)(w) for k, w in p.items()}
        y = middle(jnp.tanh(x @ p["first.weight"].T + p["first.bias"]))
        return y @ p["second.weight"].T + p["second.bias"]

    return port.explain(reference, port.Function(call, given(reference)), (INPUT,), what=GRAD)


def times(factor: float) -> Callable[[jax.Array], jax.Array]:
    """The identity, with the gradient times a factor."""
    return lambda y: y * factor + jax.lax.stop_gradient(y * (1 - factor))


@pytest.mark.parametrize("width", [8, 12, 28])
def test_a_detached_bias_of_few_numbers_is_seen(width):
    assert chained(width).same
    report = chained(width, first_bias=jax.lax.stop_gradient)
    assert not report.same
    assert [f.torch for f in report.findings] == ["first.bias"], report


def test_a_gradient_that_is_cut_is_proven_beside_an_unused_parameter():
    report = chained(middle=jax.lax.stop_gradient)
    assert [f.cause for f in report.findings] == ["grad_detached"], report
    assert report.explained


def test_a_gradient_of_another_size_is_not_explained_as_cut():
    report = chained(middle=times(3.0))
    assert not report.same and not report.explained
    assert {f.cause for f in report.findings} == {""}, report
    report = chained(middle=times(2.0))
    assert [f.cause for f in report.findings] == ["grad_scale"] and report.explained


def test_a_gradient_that_the_port_scales_behind_the_right_one_is_seen():
    report = chained(first_weight=times(0.5))
    assert [f.cause for f in report.findings] == ["grad_scale"], report
    assert report.findings[0].torch == "first: t" and report.explained


class Detached(Chain):
    """No gradient reaches the first layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)).detach())


def test_a_gradient_that_only_the_reference_cuts_is_proven():
    assert chained(model=Detached, middle=jax.lax.stop_gradient).same
    report = chained(model=Detached)
    assert [f.cause for f in report.findings] == ["grad_detached"], report
    assert "the reference detaches this" in report.findings[0].text and report.explained


class Fused(torch.nn.Module):
    """Three projections of few numbers in one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(8, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return torch.tanh(q) * torch.sigmoid(k) + v.exp()


@pytest.mark.parametrize("detached", [None, "q", "v"])
def test_a_fused_bias_is_compared_with_its_parts(detached):
    torch.manual_seed(0)
    model = Fused()
    held = {}
    for k, name in enumerate("qkv"):
        held[f"{name}.weight"] = model.qkv.weight.detach().numpy()[4 * k : 4 * k + 4].T
        held[f"{name}.bias"] = model.qkv.bias.detach().numpy()[4 * k : 4 * k + 4]

    def call(p: dict[str, Any], x: jax.Array) -> jax.Array:
        p = dict(p)
        if detached:
            p[f"{detached}.bias"] = jax.lax.stop_gradient(p[f"{detached}.bias"])
        q, k, v = (x @ p[f"{n}.weight"] + p[f"{n}.bias"] for n in "qkv")
        return jnp.tanh(q) * jax.nn.sigmoid(k) + jnp.exp(v)

    report = port.explain(model, port.Function(call, held), (INPUT,), what=GRAD)
    assert report.same == (detached is None), report
    assert all("qkv.bias" in f.torch for f in report.findings)


class Two(torch.nn.Module):
    """Two outputs of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(8, 8)
        self.b = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        first = self.a(x)
        return {"first": first, "second": torch.tanh(self.b(first))}


@pytest.mark.parametrize("output", ["first", "second"])
@pytest.mark.parametrize("turned", [False, True])
def test_gradients_are_those_of_the_output_that_is_compared(output, turned):
    torch.manual_seed(0)
    model = Two()

    def call(p: dict[str, Any], x: jax.Array) -> dict[str, jax.Array]:
        first = x @ p["a.weight"].T + p["a.bias"]
        second = jnp.tanh(first @ p["b.weight"].T + p["b.bias"])
        made = {"first": first, "second": second}
        return {k: y.reshape(1, *y.shape) for k, y in made.items()} if turned else made

    ported = port.Function(call, given(model))
    report = port.explain(model, ported, (INPUT,), what=GRAD, output=output)
    assert report.same, report
