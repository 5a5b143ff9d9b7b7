"""Ports that are written for several devices, on one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import PartitionSpec as P

from twinvit import port
from twinvit.port.record.jax_interpreter import Interpreter
from twinvit.port.record.jax_trace import evaluate, trace


def mesh(size=1):
    return jax.make_mesh((size,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))


def sharded(fn, count):
    return jax.shard_map(fn, mesh=mesh(), in_specs=(P(),) * count, out_specs=P(), check_vma=False)


class Reference(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = torch.nn.Linear(6, 16), torch.nn.Linear(16, 5)

    def forward(self, x):
        return self.down(torch.nn.functional.gelu(self.up(x)))


def tensor_parallel(approximate):
    """The MLP with its hidden layer split among devices, as it is written for many."""

    def block(x, up, bias, down):
        hidden = jax.nn.gelu(x @ up + bias, approximate=approximate)
        hidden = jax.lax.all_gather(hidden, "model", axis=1, tiled=True)
        part = jax.lax.axis_index("model") * hidden.shape[1]
        hidden = jax.lax.dynamic_slice_in_dim(hidden, part, hidden.shape[1], 1)
        return jax.lax.psum(hidden @ down, "model")

    def fn(params, x):
        return sharded(block, 4)(x, *params[:3]) + params[3]

    return fn


def port_of(reference, approximate=False):
    tensors = (reference.up.weight.T, reference.up.bias, reference.down.weight.T,
               reference.down.bias)  # fmt: skip
    return port.Function(
        tensor_parallel(approximate), [jnp.asarray(t.detach().numpy()) for t in tensors]
    )


def test_a_port_in_shard_map_is_entered():
    reference = Reference().eval()
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    report = port.explain(reference, port_of(reference), (x,))
    assert report.verdict == "same", str(report)
    report = port.explain(reference, port_of(reference, approximate=True), (x,))
    assert [f.cause for f in report.findings] == ["gelu_tanh"] and report.explained
    assert report.findings[0].jax.startswith("parity_tests/test_port_shard_map.py:")


def collectives(x):
    y = jax.lax.psum(2 * x, "model")
    gathered = jax.lax.all_gather(y, "model")
    return (
        jax.lax.pmean(y, "model") + jax.lax.ppermute(y, "model", [(0, 0)]),
        jax.lax.ppermute(y, "model", []),
        gathered,
        jax.lax.all_gather(y, "model", axis=1, tiled=True),
        jax.lax.psum_scatter(gathered, "model"),
        jax.lax.psum_scatter(y, "model", scatter_dimension=1, tiled=True),
        jax.lax.all_to_all(gathered, "model", 0, 2),
        jax.lax.all_to_all(y, "model", 0, 1, tiled=True),
        (jax.lax.pmax(y, "model"), jax.lax.pmin(-y, "model")),
        y + jax.lax.axis_index("model"),
    )


def test_collectives_over_one_device_are_those_that_jax_runs():
    x = np.random.default_rng(0).normal(size=(2, 3))
    fn = sharded(collectives, 1)
    expected = jax.tree.leaves(jax.jit(fn)(x.astype(np.float32)))
    traced = trace(lambda _, x: fn(x), [], [x])
    outs, _ = evaluate(traced, [x], [0], Interpreter())
    assert len(outs) == len(expected) == 11
    for mine, theirs in zip(outs, expected):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_what_varies_among_devices_is_followed():
    """With JAX's check of what varies, values are marked by primitives of their own."""
    fn = jax.shard_map(
        lambda x, w: jax.lax.psum(x * w, "model"), mesh=mesh(), in_specs=(P("model"), P()),
        out_specs=P(),
    )  # fmt: skip
    x, w = np.arange(6.0).reshape(2, 3), np.arange(3.0)
    traced = trace(lambda _, x, w: fn(x, w), [], [x, w])
    assert "pvary" in str(traced.closed) or "pcast" in str(traced.closed)
    outs, _ = evaluate(traced, [x, w], [0, 1], Interpreter())
    np.testing.assert_array_equal(outs[0], x * w)


def test_several_devices_are_refused_in_words():
    devices = jax.sharding.AbstractMesh((2,), ("model",))
    fn = jax.shard_map(
        lambda x: jax.lax.psum(x, "model"), mesh=devices, in_specs=P("model"), out_specs=P()
    )
    traced = trace(lambda _, x: fn(x), [], [np.ones((4, 3))])
    with pytest.raises(port.PortError, match=r"maps over 2 devices \(parity_tests/test_port_shard"):
        evaluate(traced, [np.ones((4, 3))], [0], Interpreter())
