"""Steps whose operand lies at their edge, beside another mistake."""

import math

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
