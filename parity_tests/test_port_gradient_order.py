"""Gradients are compared number by number, not as numbers in any order."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch

from twinvit import port

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Linear(6, 8), torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.tanh(self.a(x)))


@jax.custom_vjp
def turned(x):
    """The gradient in the opposite order of features."""
    return x


turned.defvjp(lambda x: (x, None), lambda _, g: (g[:, ::-1],))


def told(model: Net, wrong: bool, transposed: bool = False) -> port.Report:
    held = {n: p.detach().numpy() for n, p in model.named_parameters()}
    params = {n: x.T if transposed else x for n, x in held.items()}

    def forward(p, x):
        a, b = p["a.weight"], p["b.weight"]
        a, b = (a, b) if transposed else (a.T, b.T)
        y = x @ a + p["a.bias"]
        return jnp.tanh(turned(y) if wrong else y) @ b + p["b.bias"]

    return port.explain(model, port.Function(forward, params), X, what=("forward", "grad"))


def test_a_gradient_of_the_same_numbers_in_another_order_is_another():
    report = told(Net(), wrong=True)
    assert report.verdict == "different" and "the gradient of a.weight" in str(report), report


def test_a_parameter_in_another_layout_has_its_own():
    report = told(Net(), wrong=False, transposed=True)
    assert report.verdict == "same", report


def test_equal_numbers_of_a_parameter_may_change_places():
    model = Net()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((8 * p).round() / 8)  # many weights are equal
        model.a.bias.copy_(torch.arange(8) / 8)
    assert told(model, wrong=False, transposed=True).verdict == "same"
    assert told(model, wrong=True, transposed=True).verdict == "different"
