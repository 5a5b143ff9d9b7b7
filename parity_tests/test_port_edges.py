"""Steps whose operand lies at their edge, beside another mistake."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import torch

from twinvit import port

TOKENS, CHANNELS = 24, 8


class Buckets(torch.nn.Module):
    """Scores of positions by the logarithm of their distance, whole at 2 and 4."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(16, CHANNELS)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(CHANNELS, CHANNELS) for _ in range(3))

    def forward(self, x):
        steps = torch.arange(1, TOKENS + 1).to(x.dtype)
        bucket = (torch.log(steps) / math.log(2.0)).to(torch.long)
        x = x + self.table(bucket)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x * CHANNELS**-0.5


def bucketed(scale):
    def fn(p, x):
        steps = jnp.arange(1, TOKENS + 1).astype(x.dtype)
        bucket = (jnp.log(steps) / math.log(2.0)).astype(jnp.int32)
        x = x + p["table.weight"][bucket]
        for k in range(3):
            x = x + jnp.tanh(x @ p[f"layers.{k}.weight"].T + p[f"layers.{k}.bias"])
        return x * scale

    return fn


def test_a_step_is_not_turned_for_another_mistake():
    """A wrong scale moves all numbers: one of many turned steps is nearer by chance."""
    model = Buckets()
    params = {k: np.array(v) for k, v in model.state_dict().items()}
    x = np.random.default_rng(0).normal(size=(2, TOKENS, CHANNELS)).astype(np.float32)
    right = port.explain(model, port.Function(bucketed(CHANNELS**-0.5), params), (x,))
    assert right.same, str(right)
    report = port.explain(model, port.Function(bucketed(1.0), params), (x,))
    assert report.explained, str(report)
    assert [f.cause for f in report.findings] == ["scale"] and "of its edge" not in str(report)


class Masked(torch.nn.Module):
    """Attention under a mask that may hide all positions of a row: zeros then."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out = torch.nn.Linear(8, 24), torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        attention = torch.nn.functional.scaled_dot_product_attention
        return self.out(attention(q, k, v, attn_mask=seen[:, None]))


def test_a_report_of_rows_that_are_masked_whole_is_verified_where_none_is():
    def call(p, x, seen):
        q, k, v = jnp.split(x @ p["qkv.weight"].T + p["qkv.bias"], 3, -1)
        scores = jnp.where(seen[:, None], jnp.einsum("bqd,bkd->bqk", q, k) / 8**0.5, -1e9)
        return jax.nn.softmax(scores) @ v @ p["out.weight"].T + p["out.bias"]

    model = Masked()
    params = {k: v.numpy() for k, v in model.state_dict().items()}
    x = np.random.default_rng(0).standard_normal((3, 5, 8))
    seen = np.ones((3, 5), bool)
    seen[0] = seen[1, 3:] = False
    report = port.explain(model, port.Function(call, params), (x, seen))
    assert report.explained and not report.same, report
    other = seen.copy()
    other[0, 2:] = True
    assert report.verify((x, other))[""] < 1e-12


class Attending(torch.nn.Module):
    """Attention of one head; `padded` zeroes the weights of the last query after its softmax."""

    def __init__(self, padded: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.padded = padded
        self.qkv = torch.nn.Linear(6, 18)

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if not self.padded:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, seen)
        weights = (q @ k.mT / 6**0.5).softmax(-1)
        return weights.masked_fill(~seen.any(-1, keepdim=True), 0.0) @ v


def attending(kind: str) -> port.Function:
    params = {k: v.numpy() for k, v in Attending(False).state_dict().items()}

    def call(p: dict, x: jax.Array, seen: jax.Array) -> jax.Array:
        q, k, v = jnp.split(x @ p["qkv.weight"].T + p["qkv.bias"], 3, -1)
        scores = q @ k.mT / 6**0.5
        if kind != "padded":
            scores = jnp.where(seen, scores, -1e9 if kind == "finite" else -jnp.inf)
        weights = jax.nn.softmax(scores, -1)
        if kind == "right":
            weights = jnp.where(seen.any(-1, keepdims=True), weights, 0)
        return weights @ v

    return port.Function(call, params)


def test_rows_without_any_key_are_named():
    x = np.random.default_rng(0).standard_normal((2, 5, 6)).astype(np.float32)
    seen = np.tril(np.ones((2, 5, 5), bool))
    seen[:, 0] = False
    for kind, count in (("right", 0), ("nan", 1), ("finite", 2)):
        report = port.explain(Attending(False), attending(kind), (x, seen))
        assert report.same == (kind == "right") and report.explained, report
        assert [f.cause for f in report.findings] == ["mask_value"] * count, report
        assert not count or "rows without any key" in report.findings[-1].text
    report = port.explain(Attending(True), attending("padded"), (x, seen))
    assert [f.cause for f in report.findings] == ["mask_missing"], report
