"""Gradients that differ where the outputs agree: the operation whose backward is another one, its
name or the other side's backward, in both directions."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from twinvit import port

INPUT = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
Forward = Callable[[Any], Any]
Backward = Callable[[Any, Any], Any]


def in_jax(forward: Forward, backward: Backward) -> Forward:
    """A function with a backward of its own, of its operand and the gradient that arrives."""

    @jax.custom_vjp
    def function(x: jax.Array) -> jax.Array:
        return forward(x)

    function.defvjp(lambda x: (forward(x), x), lambda x, g: (backward(x, g),))
    return function


def in_torch(forward: Forward, backward: Backward) -> Forward:
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return forward(x)

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
            return backward(*ctx.saved_tensors, g)

    return Own.apply


class Net(torch.nn.Module):
    """Three linear layers, with something after the first one."""

    def __init__(self, between: Forward) -> None:
        super().__init__()
        self.a, self.m, self.b = (torch.nn.Linear(8, 8) for _ in range(3))
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.tanh(self.m(self.between(self.a(x)))))


def compared(mine: Forward, theirs: Forward, reference: str = "torch") -> port.Report:
    torch.manual_seed(0)
    model = Net(mine)

    def call(p: dict[str, Any], x: jax.Array) -> jax.Array:
        def layer(name: str, x: jax.Array) -> jax.Array:
            return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

        return layer("b", jnp.tanh(layer("m", theirs(layer("a", x)))))

    held = {k: v.numpy() for k, v in model.state_dict().items()}
    return port.explain(
        model, port.Function(call, held), (INPUT,), what=("forward", "grad"), reference=reference
    )


def unit(x: Any, g: Any, sum_: Any, sqrt: Any) -> Any:
    """The derivative of x / |x|, its norm with a larger eps outside of the root."""
    n = sqrt(sum_(x * x) + 1e-5)
    return (g - sum_(g * x) * x / n**2) / (n + 0.1)


def torch_sum(x: torch.Tensor) -> torch.Tensor:
    return x.sum(-1, keepdim=True)


def jax_sum(x: jax.Array) -> jax.Array:
    return x.sum(-1, keepdims=True)


WRONG: dict[str, tuple[Forward, Forward, Backward, Backward, str, str]] = {
    "reversed": (
        lambda x: x.view_as(x), lambda x: x, lambda x, g: -0.3 * g, lambda x, g: -0.3 * g,
        "grad_reversed", r"multiplies the gradient by -0\.3 here",
    ),
    "scaled": (
        torch.tanh, jnp.tanh,
        lambda x, g: 1.7 * g * (1 - x.tanh() ** 2), lambda x, g: 1.7 * g * (1 - jnp.tanh(x) ** 2),
        "grad_scale", r"multiplies the gradient by 1\.7 here",
    ),
    "clipped": (
        lambda x: x.view_as(x), lambda x: x,
        lambda x, g: g.clamp(-0.4, 0.4), lambda x, g: jnp.clip(g, -0.4, 0.4),
        "grad_clip", r"clips the gradient to \[-0\.4, 0\.4\] here",
    ),
    "clipped beyond": (
        lambda x: x.view_as(x), lambda x: x,
        lambda x, g: g.clamp(-40, 40), lambda x, g: jnp.clip(g, -40, 40),
        "grad_clip", r"clips the gradient to \[-40, 40\] here",
    ),
    "norm clipped": (
        lambda x: x.view_as(x), lambda x: x,
        lambda x, g: g * (1 / torch.linalg.vector_norm(g)).clamp(max=1),
        lambda x, g: g * jnp.minimum(1, 1 / jnp.linalg.norm(g)),
        "grad_clip", r"clips the gradient's norm to 1 here",
    ),
    "straight through": (
        lambda x: x.clamp(-0.5, 0.5), lambda x: jnp.clip(x, -0.5, 0.5),
        lambda x, g: g, lambda x, g: g,
        "straight_through", r"passes the gradient straight through this",
    ),
    "one operand": (
        lambda x: x * torch.sigmoid(x), lambda x: x * jax.nn.sigmoid(x),
        lambda x, g: g * torch.sigmoid(x), lambda x, g: g * jax.nn.sigmoid(x),
        "grad_detached|", r"into sigmoid from here in the port|gradient \* sigmoid\(a\)",
    ),
    "slope": (
        torch.relu, jax.nn.relu,
        lambda x, g: g * torch.where(x > 0, 1.0, 0.1), lambda x, g: g * jnp.where(x > 0, 1.0, 0.1),
        "", r"gradient \* where\(.*\b0?\.1\)",
    ),
    "spike": (
        lambda x: (x > 0).to(x.dtype), lambda x: (x > 0).astype(x.dtype),
        lambda x, g: g / (1 + (torch.pi * x) ** 2), lambda x, g: g / (1 + (jnp.pi * x) ** 2),
        "", r"gradient / \((1 \+ )?\(3\.14159 \* a\) \*\* 2",
    ),
    "norm": (
        lambda x: x / (torch_sum(x * x) + 1e-5).sqrt(),
        lambda x: x / jnp.sqrt(jax_sum(x * x) + 1e-5),
        lambda x, g: unit(x, g, torch_sum, torch.sqrt), lambda x, g: unit(x, g, jax_sum, jnp.sqrt),
        "", r"\+ 1e-05\) \+ 0\.1\)",
    ),
}  # fmt: skip


IN_TORCH = ("reversed", "clipped", "norm clipped", "straight through", "spike", "norm")


@pytest.mark.parametrize(
    ("side", "name"), [*(("jax", n) for n in WRONG), *(("torch", n) for n in IN_TORCH)]
)
def test_another_backward_is_told_with_its_place(side, name):
    mine, theirs, own, other, cause, text = WRONG[name]
    if side == "jax":
        report = compared(mine, in_jax(theirs, other))
    else:
        report = compared(in_torch(mine, own), theirs, "jax")
    assert report.verdict == "different" and report.explained, report
    (finding,) = report.findings
    assert finding.what == "grad" and finding.cause in cause.split("|"), report
    assert finding.kind == ("cause" if finding.cause else "expression")
    assert re.search(text, finding.text), report
    assert "test_port_backward.py" in finding.torch_line
    if side == "jax" and finding.cause != "straight_through":
        assert "test_port_backward.py" in finding.jax, report


@pytest.mark.parametrize("name", ["reversed", "clipped beyond", "spike"])
def test_the_same_backward_on_both_sides_is_the_same(name):
    mine, theirs, own, other, *_ = WRONG[name]
    report = compared(in_torch(mine, own), in_jax(theirs, other))
    assert report.same, report


class Repeated(torch.nn.Module):
    """One layer, applied three times."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = x + torch.nn.functional.gelu(self.a(x))
        return x


@pytest.mark.parametrize(
    ("backward", "cause"),
    [
        (lambda x, g: g * jnp.where(x > 0, 1.0, 0.1), ""),
        (lambda x, g: jax.vjp(jax.nn.gelu, x)[1](g)[0], "grad_activation"),
    ],
)
def test_a_layer_that_is_used_again_is_told_once(backward, cause):
    torch.manual_seed(0)
    model = Repeated()
    gelu = in_jax(lambda x: jax.nn.gelu(x, approximate=False), backward)

    def call(p: dict[str, Any], x: jax.Array) -> jax.Array:
        for _ in range(3):
            x = x + gelu(x @ p["a.weight"].T + p["a.bias"])
        return x

    held = {k: v.numpy() for k, v in model.state_dict().items()}
    report = port.explain(model, port.Function(call, held), (INPUT,), what=("forward", "grad"))
    assert report.explained and [f.cause for f in report.findings] == [cause], report


def test_a_stable_backward_that_is_the_derivative_is_the_same():
    def softplus(x: Any) -> Any:
        return jnp.log1p(jnp.exp(-jnp.abs(x))) + jnp.maximum(x, 0)

    fused = in_jax(softplus, lambda x, g: g * jax.nn.sigmoid(x))
    report = compared(lambda x: torch.nn.functional.softplus(x, threshold=1e9), fused)
    assert report.same, report


def test_an_edit_that_the_first_inputs_alone_show_is_no_explanation():
    def random_looking(x: jax.Array, g: jax.Array) -> jax.Array:
        return g * (1 + 1e-3 * jnp.sum(jnp.cos(jnp.cumsum(g * 1e3))))

    report = compared(lambda x: x.view_as(x), in_jax(lambda x: x, random_looking))
    assert report.verdict == "different" and report.findings, report
    assert not (report.explained and report.findings[0].cause), report


class Codes(torch.nn.Module):
    """The nearest rows of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.table = torch.nn.Linear(8, 8), torch.nn.Embedding(6, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        return torch.tanh(self.table(torch.cdist(y, self.table.weight).argmin(-1)))


def test_a_gradient_passed_over_a_choice_is_straight_through():
    torch.manual_seed(0)
    model = Codes()

    def call(p: dict[str, Any], x: jax.Array) -> jax.Array:
        y = x @ p["a.weight"].T + p["a.bias"]
        far = ((y[:, None] - p["table.weight"]) ** 2).sum(-1)
        code = p["table.weight"][far.argmin(-1)]
        return jnp.tanh(y + jax.lax.stop_gradient(code - y))

    held = {k: v.numpy() for k, v in model.state_dict().items()}
    report = port.explain(model, port.Function(call, held), (INPUT,), what=("forward", "grad"))
    assert report.explained and [f.cause for f in report.findings] == ["straight_through"], report
    assert report.findings[0].torch == "table: embedding"
