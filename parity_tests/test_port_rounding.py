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
