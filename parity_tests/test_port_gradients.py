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
    assert [f.cause for f in report.findings] == ["grad_detached"], report
    assert "into first.bias from here" in report.findings[0].text and report.explained


def test_a_gradient_that_is_cut_is_proven_beside_an_unused_parameter():
    report = chained(middle=jax.lax.stop_gradient)
    assert [f.cause for f in report.findings] == ["grad_detached"], report
    assert report.explained


@pytest.mark.parametrize("factor", [3.0, 2.0])
def test_a_gradient_of_another_size_is_not_explained_as_cut(factor):
    report = chained(middle=times(factor))
    assert [f.cause for f in report.findings] == ["grad_scale"] and report.explained
    assert f"multiplies the gradient by {factor:g} here" in report.findings[0].text


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


class Distances(torch.nn.Module):
    """Distances of points from each other, and of each from itself."""

    def __init__(self, guarded: bool) -> None:
        super().__init__()
        self.guarded = guarded
        self.linear = torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        apart = y[:, None] - y[None]
        if not self.guarded:
            return torch.exp(-torch.linalg.norm(apart, dim=-1))
        squares = apart.pow(2).sum(-1)
        safe = torch.where(squares > 0, squares, torch.ones_like(squares))
        return torch.exp(-torch.where(squares > 0, safe.sqrt(), torch.zeros_like(squares)))


@jax.custom_vjp
def never(x: jax.Array) -> jax.Array:
    """The identity, whose gradient is NaN."""
    return x


never.defvjp(lambda x: (x, None), lambda _, g: (g * jnp.nan,))


@pytest.mark.parametrize(
    ("guarded", "kind", "causes"),
    [
        (False, "safe", []),
        (False, "norm", ["norm_grad"]),
        (True, "safe", []),
        (True, "outer", ["unused_nan"]),
        (False, "never", [""]),
    ],
)
def test_a_gradient_that_is_nan_in_the_port_alone_is_no_cut(guarded, kind, causes):
    torch.manual_seed(0)
    model = Distances(guarded)

    def call(p: dict[str, Any], x: jax.Array) -> jax.Array:
        y = x @ p["linear.weight"].T + p["linear.bias"]
        apart = (never(y) if kind == "never" else y)[:, None] - y[None]
        squares = (apart**2).sum(-1)
        safe = jnp.where(squares > 0, squares, 1) if kind in ("safe", "never") else squares
        apart = jnp.where(squares > 0, jnp.sqrt(safe), 0)
        return jnp.exp(-(jnp.sqrt(squares) if kind == "norm" else apart))

    report = port.explain(model, port.Function(call, given(model)), (INPUT,), what=GRAD)
    assert [f.cause for f in report.findings] == causes, report
    assert report.verdict == ("different" if causes else "same")
    assert report.explained == (causes != [""])
    if causes == [""]:
        assert "gradient of linear.weight is NaN" in report.findings[0].text
        assert "test_port_gradients.py" in report.findings[0].text


def test_a_gradient_that_is_nan_on_both_sides_is_undecided():
    class Root(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.b(x) + (y - y).sqrt()

    model = Root()

    def call(p: dict[str, Any], x: jax.Array, cut: bool) -> jax.Array:
        y = x @ p["a.weight"].T + p["a.bias"]
        b = jax.lax.stop_gradient(p["b.weight"]) if cut else p["b.weight"]
        return x @ b.T + p["b.bias"] + jnp.sqrt(y - y)

    for cut, verdict in ((False, "undecided"), (True, "different")):
        ported = port.Function(lambda p, x, cut=cut: call(p, x, cut), given(model))
        report = port.explain(model, ported, (INPUT,), what=GRAD)
        assert report.verdict == verdict, report
