"""Ports with caches: of fixed types, written in place, and called token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from twinvit import port
from twinvit.port.record.jax_trace import trace

LENGTH, WIDTH, LAYERS = 6, 16, 12


class Rotated(torch.nn.Module):
    """Tokens times the cosine of their positions' angles, then causal means, layer by layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        frequencies = 1 / 100.0 ** (torch.arange(WIDTH) / WIDTH)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, x):
        length = x.shape[1]
        positions = torch.arange(length).to(x.dtype)
        x = x * torch.cos(positions[:, None] * self.frequencies)
        for layer in self.layers:
            before = torch.cumsum(x, 1) / (positions[:, None] + 1)
            x = x + torch.tanh(layer(before))
        return x


def parameters(model):
    return [tuple(np.array(p.detach()) for p in layer.parameters()) for layer in model.layers]


def cached(base, steps, start=0):
    """A port with a cache of float32 that is written at an index of int32, in these steps."""

    def part(params, x, caches, index):
        frequencies = 1 / base ** (jnp.arange(0, 2 * WIDTH, 2, dtype=jnp.float32) / (2 * WIDTH))
        positions = index + jnp.arange(x.shape[1], dtype=jnp.int32)
        x = x * jnp.cos(positions[:, None] * frequencies)
        for k, (weight, bias) in enumerate(params):
            caches[k] = jax.lax.dynamic_update_slice(caches[k], x, (0, index, 0))
            causal = jnp.arange(LENGTH)[None] <= positions[:, None]
            before = jnp.einsum("ts,bsd->btd", causal.astype(x.dtype), caches[k])
            before = before / (positions[:, None] + 1).astype(x.dtype)
            x = x + jnp.tanh(before @ weight.T + bias)
        return x

    def fn(params, x):
        caches = [jnp.zeros((len(x), LENGTH, WIDTH), jnp.float32) for _ in params]
        index, found = jnp.zeros((), jnp.int32) + start, []
        for first, last in zip((0, *steps), (*steps, LENGTH)):
            found.append(part(params, x[:, first:last], caches, index))
            index = index + (last - first)
        return jnp.concatenate(found, 1)

    return fn


@pytest.fixture
def tokens():
    return np.random.default_rng(0).normal(size=(2, LENGTH, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("steps", [(), (4, 5)], ids=["whole", "token by token"])
def test_a_cache_of_its_own_types_is_no_reason_to_refuse(tokens, steps):
    """The reference's frequencies are rounded when it is built, the port's as they are used."""
    model = Rotated()
    report = port.explain(model, port.Function(cached(100.0, steps), parameters(model)), (tokens,))
    assert report.explained, str(report)
    assert [f.kind for f in report.findings] == ["precision"]
    wrong = port.Function(cached(90.0, steps), parameters(model))
    report = port.explain(model, wrong, (tokens,))
    assert report.verdict == "different" and {f.kind for f in report.findings} != {"precision"}


def test_numbers_that_are_counted_in_float32_are_traced_in_float64():
    def fn(leaves, x):
        steps = jnp.arange(0, 8, 2, dtype=jnp.float32) / 8
        return jax.lax.add(x, jax.lax.mul(steps, jnp.eye(4, dtype=jnp.float32)[1]))

    traced = trace(fn, [], [np.zeros(4)])
    floats = [v.aval.dtype for e in traced.closed.jaxpr.eqns for v in e.outvars]
    assert np.dtype(np.float32) not in floats
    with jax.enable_x64(True):
        found = jax.core.eval_jaxpr(traced.closed.jaxpr, traced.closed.consts, np.zeros(4))[0]
        drawn = jax.make_jaxpr(lambda x: jnp.arange(3, dtype=jnp.float32) + x)(np.float32(0))
    np.testing.assert_array_equal(found, [0, 0.25, 0, 0])
    assert drawn.out_avals[0].dtype == np.float32  # JAX is as before


def test_numbers_that_are_asked_for_while_it_is_traced_are_known():
    """A port that is run without jax.jit may count on the values of its own positions."""
    model = Rotated()

    def fn(params, x):
        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        length = int(jnp.max(positions[0])) + 1
        order = np.asarray(jnp.argsort(positions[0]))
        return cached(100.0, ())(params, x[:, order][:, :length])

    x = np.random.default_rng(0).normal(size=(2, LENGTH, WIDTH)).astype(np.float32)
    report = port.explain(model, port.Function(fn, parameters(model)), (x,))
    assert report.explained and [f.kind for f in report.findings] == ["precision"], str(report)

    def asks(params, x):
        return x * (1 if float(x.max()) > 0 else 2)

    with pytest.raises(port.PortError, match="Concretization"):
        port.explain(model, port.Function(asks, parameters(model)), (x,))
