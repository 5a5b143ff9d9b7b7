"""Two mistakes that meet, of which neither alone brings back a value of the port."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from twinvit import port

WIDTH, TOKENS, LAYERS = 12, 7, 2


class Layer(torch.nn.Module):
    """A norm, then causal attention of one head."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(WIDTH, eps=1e-6)
        self.qkv = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.register_buffer("later", torch.ones(TOKENS, TOKENS).triu(1).bool())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        scores = (q @ k.transpose(-1, -2) / WIDTH**0.5).masked_fill(self.later, -torch.inf)
        return x + torch.softmax(scores, -1) @ v


def made(wrong: frozenset[str]):
    """The port, with these mistakes."""

    def norm(p: dict, x: jax.Array) -> jax.Array:
        variance = x.var(-1, keepdims=True, ddof="ddof" in wrong)
        y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(
            variance + (1e-3 if "eps" in wrong else 1e-6)
        )
        return y * p["weight"] + p["bias"]

    def forward(params: list, x: jax.Array) -> jax.Array:
        for p in params:
            qkv = norm(p["norm"], x) @ p["qkv"]["weight"].T
            q, k, v = jnp.split(qkv + p["qkv"]["bias"], 3, -1)
            scores = q @ jnp.swapaxes(k, -1, -2)
            if "scale" not in wrong:
                scores = scores / WIDTH**0.5
            if "mask" not in wrong:
                scores = jnp.where(jnp.tril(jnp.ones((TOKENS, TOKENS), bool)), scores, -jnp.inf)
            weights = jax.nn.softmax(scores, -1)
            if "outside" in wrong:
                weights = weights * (1.7 + jnp.cos(weights))
            x = x + weights @ v
        return x

    return forward


def modelled(layers: int):
    """A reference of so many layers, and its parameters."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(Layer() for _ in range(layers)))
    for layer in model:
        torch.nn.init.normal_(layer.norm.weight, 1, 0.3)
        torch.nn.init.normal_(layer.norm.bias, 0, 0.3)
    params = [
        {k: {n: p.detach().numpy() for n, p in getattr(layer, k).named_parameters()}
         for k in ("norm", "qkv")}
        for layer in model
    ]  # fmt: skip
    return model, params


@pytest.fixture(scope="module")
def reference():
    return modelled(LAYERS)


def explained(reference, *wrong: str) -> port.Report:
    model, params = reference
    x = 0.3 * np.random.default_rng(0).standard_normal((2, TOKENS, WIDTH)).astype(np.float32)
    return port.explain(model, port.Function(made(frozenset(wrong)), params), (x,))


@pytest.mark.parametrize(
    ("wrong", "causes"),
    [
        (("scale", "mask"), {"attention_scale", "mask_missing"}),
        (
            ("eps", "ddof", "scale", "mask"),
            {"norm_eps", "norm_ddof", "attention_scale", "mask_missing"},
        ),
    ],
)
def test_both_are_named_in_every_layer(reference, wrong, causes):
    report = explained(reference, *wrong)
    assert {f.cause for f in report.findings} == causes, report
    assert all(len(f.places) == LAYERS for f in report.findings), report
    assert report.explained and report.remaining < 1e-12


def test_each_of_two_is_needed(reference):
    report = explained(reference, "eps", "outside")
    assert [f.cause for f in report.findings] == ["norm_eps", ""], report
    assert report.findings[1].kind == "expression" and "cos(softmax)" in report.findings[1].text
    assert report.explained


def test_weights_exchanged_with_a_layer_far_behind_are_named_beside_another_mistake():
    model, params = modelled(4)
    first, last = params[0]["norm"], params[3]["norm"]
    first["weight"], last["weight"] = last["weight"], first["weight"]
    report = explained((model, params), "eps")
    assert {f.cause for f in report.findings} == {"norm_eps", "weights_swapped"}, report
    assert report.explained and report.remaining < 1e-12
