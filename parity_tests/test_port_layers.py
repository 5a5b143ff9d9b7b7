"""Layers of a stack that a port holds in another order: one finding, before formulas."""

from typing import Any

import jax
import numpy as np
import pytest
import torch

from twinvit import port

WIDTH, DEPTH = 12, 4
X = np.random.default_rng(0).standard_normal((5, 6, WIDTH))


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(0.2 * torch.randn(WIDTH))  # met as 1 + gain
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.up, self.down = torch.nn.Linear(WIDTH, 20), torch.nn.Linear(20, WIDTH)
        torch.nn.init.normal_(self.norm.weight, 1, 0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm((1 + self.gain) * x))))


class Stack(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(Layer() for _ in range(DEPTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def layer(p: dict[str, jax.Array], x: jax.Array, tanh: bool) -> jax.Array:
    z = (1 + p["gain"]) * x
    y = (z - z.mean(-1, keepdims=True)) * jax.lax.rsqrt(z.var(-1, keepdims=True) + 1e-5)
    y = (y * p["norm.weight"] + p["norm.bias"]) @ p["up.weight"].T + p["up.bias"]
    return x + jax.nn.gelu(y, approximate=tanh) @ p["down.weight"].T + p["down.bias"]


def explained(
    order: list[int], form: str = "scan", tanh: bool = False, backwards: bool = False
) -> port.Report:
    """A port that holds the layers in this order: stacked for a scan, or in a list."""
    model = Stack()
    held = [{k: v.numpy() for k, v in model.layers[k].state_dict().items()} for k in order]

    def scanned(p: Any, x: jax.Array) -> jax.Array:
        step = lambda h, w: (layer(w, h, tanh), None)  # noqa: E731
        return jax.lax.scan(step, x, p, reverse=backwards)[0]

    def listed(p: Any, x: jax.Array) -> jax.Array:
        for w in p["blocks"][:: -1 if backwards else 1]:
            x = layer(w, x, tanh)
        return x

    if form == "scan":
        stacked = {k: np.stack([w[k] for w in held]) for k in held[0]}
        return port.explain(model, port.Function(scanned, stacked), X)
    return port.explain(model, port.Function(listed, {"blocks": held}), X)


@pytest.mark.parametrize("form", ["scan", "list"])
@pytest.mark.parametrize(
    ("order", "text"),
    [
        ([0, 2, 1, 3], "layers 1 and 2 of layers are exchanged in the port"),
        ([3, 2, 1, 0], "the port holds the layers of layers in reverse order"),
        ([1, 1, 1, 1], "the port holds layer 1 of layers in the place of each"),
        ([1, 2, 0, 3], "the port holds the layers of layers in another order: 1, 2, 0, 3"),
    ],
)
def test_another_order_is_one_finding(order, text, form):
    report = explained(order, form)
    assert report.verdict == "different" and report.explained, report
    assert [(f.cause, f.kind, f.text) for f in report.findings] == [
        ("layer_order", "weights", text)
    ]
    assert report.distance > 1e-3 and report.verify(1.1 * X)[""] < 1e-12


@pytest.mark.parametrize("form", ["scan", "list"])
def test_a_port_that_runs_its_layers_from_the_end_is_the_same(form):
    assert explained([3, 2, 1, 0], form, backwards=True).same


def test_the_right_order_is_the_same():
    assert explained([0, 1, 2, 3]).same


def test_another_mistake_is_found_behind_the_order():
    report = explained([0, 2, 1, 3], tanh=True)
    assert [f.cause for f in report.findings] == ["layer_order", "gelu_tanh"], report
    assert report.explained


class Experts(torch.nn.Module):
    """Layers side by side, weighted by a router."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router = torch.nn.Linear(WIDTH, DEPTH)
        self.experts = torch.nn.ModuleList(Layer() for _ in range(DEPTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax(self.router(x), -1)
        return sum(e(x) * weights[..., k, None] for k, e in enumerate(self.experts))


@pytest.mark.parametrize("tanh", [False, True])
def test_experts_in_another_order_are_no_stack(tanh):
    model, order = Experts(), [2, 0, 3, 1]
    router = {k: v.numpy()[order] for k, v in model.router.state_dict().items()}
    held = [{k: v.numpy() for k, v in model.experts[k].state_dict().items()} for k in order]

    def call(p: Any, x: jax.Array) -> jax.Array:
        weights = jax.nn.softmax(x @ p["router"]["weight"].T + p["router"]["bias"])
        return sum(layer(w, x, tanh) * weights[..., k, None] for k, w in enumerate(p["experts"]))

    report = port.explain(model, port.Function(call, {"router": router, "experts": held}), X)
    assert report.same is not tanh, report
    assert [f.cause for f in report.findings] == ["gelu_tanh"] * tanh
