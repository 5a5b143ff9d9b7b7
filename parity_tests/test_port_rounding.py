"""Constants that one side rounds to a narrower type are a matter of precision, never a cause."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from twinvit import port


class Net(torch.nn.Module):
    """Attention, LayerNorm and GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(12, 36)
        self.norm = torch.nn.LayerNorm(12, eps=1e-3)
        self.out = torch.nn.Linear(12, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        # Made without a dtype, as transformers makes its masks.
        mask = torch.full((x.shape[1],) * 2, torch.finfo(x.dtype).min).triu(1)
        x = torch.softmax(q @ k.transpose(1, 2) * 12**-0.5 + mask, dim=-1) @ v
        return self.out(torch.nn.functional.gelu(self.norm(x)))


def compute(p: dict, x: jax.Array, scale: float, eps: float, half: float) -> jax.Array:
    q, k, v = jnp.split(x @ p["qkv.weight"].T + p["qkv.bias"], 3, axis=-1)
    n = x.shape[1]
    scores = jnp.where(jnp.tril(jnp.ones((n, n), bool)), q @ k.swapaxes(1, 2) * scale, -jnp.inf)
    x = jax.nn.softmax(scores, axis=-1) @ v
    x = x - x.mean(-1, keepdims=True)
    x = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + eps) * p["norm.weight"] + p["norm.bias"]
    x = 0.5 * x * jax.lax.erfc(-x * half)
    return x @ p["out.weight"].T + p["out.bias"]


EXACT = {"scale": 12**-0.5, "eps": 1e-3, "half": 0.5**0.5}


def explained(**changes: float) -> port.Report:
    torch.manual_seed(0)
    model = Net()
    for tensor in (model.norm.weight, model.norm.bias):
        torch.nn.init.normal_(tensor)
    params = {k: v.numpy() for k, v in model.state_dict().items()}
    x = np.random.default_rng(0).standard_normal((2, 7, 12)).astype(np.float32)
    call = port.Function(lambda p, x: compute(p, x, **(EXACT | changes)), params)
    return port.explain(model, call, (x,))


def test_a_mask_of_the_lowest_float64_is_run_again():
    report = explained()
    assert report.same, report


@pytest.mark.parametrize("name", list(EXACT))
def test_a_rounded_scalar_is_no_cause(name):
    report = explained(**{name: float(np.float32(EXACT[name]))})
    assert [(f.kind, f.cause) for f in report.findings] == [("precision", "")], report
    assert report.explained and report.remaining < 1e-13


@pytest.mark.parametrize(("name", "cause"), [("scale", "attention_scale"), ("eps", "norm_eps")])
def test_a_wrong_scalar_is_a_cause(name, cause):
    report = explained(**{name: EXACT[name] * (1 + 1e-4)})
    assert [(f.kind, f.cause) for f in report.findings] == [("cause", cause)], report


class Rotated(torch.nn.Module):
    """Pairs of channels, turned as complex numbers; `narrow` makes those complex64."""

    def __init__(self, narrow: bool) -> None:
        super().__init__()
        self.narrow = narrow
        self.fc = torch.nn.Linear(12, 12)
        angles = torch.linspace(0.1, 3, 42, dtype=torch.float64).reshape(7, 6)
        self.register_buffer("turn", torch.polar(torch.ones_like(angles), angles))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.view_as_complex(self.fc(x).unflatten(-1, (6, 2)).contiguous())
        x = (x.to(torch.complex64) if self.narrow else x) * self.turn
        return torch.view_as_real(x).flatten(-2) ** 2


@pytest.mark.parametrize("side", ["", "torch", "jax"])
def test_complex_numbers_are_widened(side):
    torch.manual_seed(0)
    model = Rotated(side == "torch")

    def call(p, x):
        x = (x @ p["fc.weight"].T + p["fc.bias"]).reshape(2, 7, 6, 2)
        x = jax.lax.complex(x[..., 0], x[..., 1])
        x = (x.astype(jnp.complex64) if side == "jax" else x) * p["turn"]
        return jnp.stack([x.real, x.imag], -1).reshape(2, 7, 12) ** 2

    x = np.random.default_rng(0).standard_normal((2, 7, 12))
    params = {k: v.numpy() for k, v in model.state_dict().items()}
    report = port.explain(model, port.Function(call, params), x)
    assert report.same, report
    assert [(n.side, n.dtype) for n in report.narrowings] == [(side, "complex64")] * bool(side)
    assert all(1e-9 < n.cost < 1e-6 for n in report.narrowings), report


def test_each_narrowing_of_either_side_is_measured_alone():
    torch.manual_seed(0)
    a, b, c = (torch.nn.Linear(9, 9, bias=False) for _ in range(3))

    class Downcast(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.tanh(a(x)).bfloat16().double()
            return c(torch.tanh(b(x)).float().double())

    def narrowing(p, x):
        x = jnp.tanh(x @ p[0].T).astype(jnp.bfloat16).astype(x.dtype)
        return jnp.tanh(x @ p[1].T).astype(jnp.float32).astype(x.dtype) @ p[2].T

    x = np.random.default_rng(0).standard_normal((5, 9))
    params = [layer.double().weight.detach().numpy() for layer in (a, b, c)]
    report = port.explain(Downcast(), port.Function(narrowing, params), x)
    assert report.same, report
    costs = {(n.side, n.dtype): n.cost for n in report.narrowings}
    for dtype, size in (("bfloat16", 1e-3), ("float32", 1e-8)):
        assert costs["jax", dtype] == pytest.approx(costs["torch", dtype], rel=1e-6)
        assert size / 10 < costs["jax", dtype] < size * 10
