"""Programs that depend on the types that they are given, and constants that a type rounds."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from twinvit import port
from twinvit.port.record.closed_forms import unrounded
from twinvit.port.record.jax_dependence import as_it_runs
from twinvit.port.record.jax_interpreter import Interpreter
from twinvit.port.record.jax_place import frames
from twinvit.port.record.jax_trace import Traced, evaluate, trace, trace_as_it_runs
from twinvit.port.record.jax_types import rounds_to
from twinvit.port.record.torch_types import Apart, differing, heard, with_numbers


@pytest.mark.parametrize(
    "number",
    [0.1, 1e-6, -1e-12, 1 / 3, 1 / math.sqrt(48), -math.sqrt(48), math.pi / 2, 2 * math.pi,
     math.sqrt(2 / math.pi), math.log(10000), 1 / 255, 0.044715, 1 / math.log(2), 2.0**-20, 0.0,
     float(np.finfo(np.float32).max), float(np.finfo(np.float32).eps)],
)  # fmt: skip
def test_what_was_written_is_told_from_its_rounding(number):
    assert unrounded(np.float32(number)) == number


def test_other_numbers_are_seldom_taken_for_an_expression():
    drawn = np.random.default_rng(0).uniform(0, 8, 20_000).astype(np.float32)
    taken = sum(unrounded(x) != np.float64(str(x)) for x in drawn)
    assert taken <= 20  # one in a thousand


def test_the_rounding_of_a_constant_is_told_number_by_number():
    table = np.sin(np.arange(5.0))
    assert rounds_to(table, table.astype(np.float32))
    wrong = table.astype(np.float32)
    wrong[3] = np.nextafter(wrong[3], np.float32(2))
    assert not rounds_to(table, wrong)
    assert rounds_to(np.array([np.nan]), np.array([np.nan], np.float32))
    assert not rounds_to(np.float64(-1e300), np.float32(-1e30))
    assert not rounds_to(np.int64(1), np.float32(1))


class Norm(torch.nn.Module):
    """x / rms(x) * pi after a linear layer."""

    def __init__(self, eps=1e-6):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.eps = torch.nn.Linear(6, 8), eps

    def forward(self, x):
        y = self.linear(x)
        return y / torch.sqrt(y.pow(2).mean(-1, keepdim=True) + self.eps) * math.pi


def norm_port(eps_of, before=lambda y: y, factor=math.pi):
    linear = Norm().linear
    params = [jnp.asarray(p.detach().numpy()) for p in (linear.weight.T, linear.bias)]

    def fn(params, x):
        y = before(x @ params[0] + params[1])
        return y / jnp.sqrt((y * y).mean(-1, keepdims=True) + eps_of(y.dtype)) * factor

    return port.Function(fn, params)


def explain(reference, other, shape=(5, 6)):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return port.explain(reference.eval(), other, (x,))


def test_a_constant_that_depends_on_the_type_is_taken_as_the_port_runs():
    right = norm_port(lambda dtype: 1e-6 if dtype == jnp.float32 else 1e-2)
    report = explain(Norm(), right)
    assert report.verdict == "same", str(report)
    assert "depends on the type" in str(report) and "test_port_dtypes.py:" in str(report)
    wrong = norm_port(lambda dtype: 1e-2 if dtype == jnp.float32 else 1e-6)
    assert explain(Norm(), wrong).verdict == "different"


def test_an_operation_that_depends_on_the_type_is_taken_as_the_port_runs():
    def squashed(y):
        return jnp.tanh(y) if y.dtype == jnp.float32 else y

    report = explain(Norm(), norm_port(lambda dtype: 1e-6, squashed))
    assert report.verdict == "different"
    assert "tanh" in str(report) and "depends on the types" in str(report)
    spared = norm_port(lambda dtype: 1e-6, lambda y: y if y.dtype == jnp.float32 else jnp.tanh(y))
    assert explain(Norm(), spared).verdict == "same"


def insisting(y):
    """A check of the type, as of a cache in float32."""
    if y.dtype != jnp.float32:
        raise TypeError(f"a cache of float32 does not take {y.dtype}")
    return y


@pytest.mark.parametrize("value", [math.pi, 1 / math.sqrt(48), 0.3])
def test_constants_of_a_port_that_refuses_float64_are_told_by_closed_forms(value):
    reference = Norm()
    reference.forward = lambda x: Norm.forward(reference, x) * (value / math.pi)
    other = norm_port(lambda dtype: 1e-6, insisting, factor=value)
    report = explain(reference, other)
    assert report.verdict == "same", str(report)


TABLE = np.cos(np.arange(8.0) ** 1.5)


def test_tables_are_taken_from_the_program_in_float64():
    """A table in float64 that float32 rounds: neither its decimals nor a closed form tell it."""
    reference = torch.nn.Linear(6, 8)

    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = reference

        def forward(self, x):
            return self.linear(x) * torch.tensor(TABLE).to(x.dtype)

    params = [jnp.asarray(p.detach().numpy()) for p in (reference.weight.T, reference.bias)]
    right = port.Function(lambda p, x: (x @ p[0] + p[1]) * TABLE, params)
    report = explain(Scaled(), right)
    assert report.verdict == "same", str(report)
    wrong = TABLE.copy()
    wrong[2] *= 1 + 1e-6
    other = port.Function(lambda p, x: (x @ p[0] + p[1]) * wrong, params)
    assert explain(Scaled(), other).verdict == "different"


def both(fn, *arrays):
    """The closed jaxprs of `fn(*arrays)` in float64 and in float32."""
    wide = trace(lambda ls, *xs: fn(*xs), [], [np.asarray(x, np.float64) for x in arrays])
    own = trace_as_it_runs(lambda ls, *xs: fn(*xs), [], [np.float32(x) for x in arrays])
    return wide.closed, own.closed


def numbers_of(closed, *arrays):
    with jax.enable_x64(True):
        return np.asarray(jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *arrays)[0])


def where(eqn):
    return frames(eqn.source_info)[0]


def test_programs_that_differ_by_types_alone_are_that_in_float64():
    table = np.cos(np.arange(4.0) ** 1.3)

    def fn(x):
        y = jax.nn.gelu(x.astype(jnp.float32)) * table + math.sqrt(3)
        return jax.lax.scan(lambda c, v: (c * 0.3 + v, c), jnp.zeros((), x.dtype), y)[1].sum()

    wide, own = both(fn, np.linspace(-1, 1, 4))
    closed, found = as_it_runs(wide, own, where)
    assert not found.apart and not found.constants
    assert closed is wide


def test_rows_that_are_looked_up_do_not_depend_on_the_type():
    """`jnp.take` says NaN of rows that are not there."""
    wide, own = both(lambda x: jnp.take(x, jnp.array([2, 0]), axis=0), np.arange(3.0))
    closed, found = as_it_runs(wide, own, where)
    assert not found.apart and closed is wide

    def other(x):
        return jnp.take(x, jnp.array([2, 0]), fill_value=1 if x.dtype == jnp.float32 else 0)

    assert "fill_value of gather" in as_it_runs(*both(other, np.arange(3.0)), where)[1].apart


def test_functions_with_derivatives_of_their_own_do_not_depend_on_the_type():
    @jax.custom_vjp
    def twice(x):
        return x * 2

    twice.defvjp(lambda x: (x * 2, None), lambda saved, g: (g * 2,))
    wide, own = both(lambda x: twice(jax.nn.softplus(x)), np.arange(3.0))
    closed, found = as_it_runs(wide, own, where)
    assert not found.apart and closed is wide


def test_a_constant_within_a_loop_is_taken_as_it_runs():
    def fn(x):
        def body(carry, v):
            return carry * jnp.asarray(jnp.finfo(v.dtype).eps, v.dtype) + v, carry

        return jax.lax.scan(body, jnp.ones((), x.dtype), x)[1][-1]

    x = np.array([0.5, 0.25])
    wide, own = both(fn, x)
    closed, found = as_it_runs(wide, own, where)
    assert len(found.constants) == 1 and not found.apart
    assert numbers_of(closed, x) == float(np.finfo(np.float32).eps) + 0.5
    assert numbers_of(wide, x) == float(np.finfo(np.float64).eps) + 0.5


def test_programs_that_are_apart_keep_the_constants_that_round_alike():
    def fn(x):
        y = x * math.sqrt(1.7)  # no closed form tells it
        return jnp.tanh(y) if x.dtype == jnp.float32 else y

    wide, own = both(fn, 0.5)
    closed, found = as_it_runs(wide, own, where)
    assert "tanh" in found.apart and "test_port_dtypes.py" in found.apart
    assert [e.primitive.name for e in closed.jaxpr.eqns] == ["mul", "tanh"]
    assert closed.jaxpr.eqns[0].invars[1].val == math.sqrt(1.7)


def test_exchanged_operands_are_apart():
    def fn(x, y):
        return x - y if x.dtype == jnp.float32 else y - x

    wide, own = both(fn, 0.5, 0.25)
    closed, found = as_it_runs(wide, own, where)
    assert found.apart.startswith("another operand")
    assert numbers_of(closed, 0.5, 0.25) == 0.25


class Written(torch.nn.Module):
    """A reference whose numbers depend on the type of what it computes with."""

    def __init__(self, fn, *layers):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.fn = torch.nn.Linear(6, 8), fn
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, x):
        return self.fn(self.linear(x), *self.layers)


def written_port(fn):
    linear = Norm().linear
    params = [jnp.asarray(p.detach().numpy()) for p in (linear.weight.T, linear.bias)]
    return port.Function(lambda p, x: fn(x @ p[0] + p[1]), params)


EPS = float(np.finfo(np.float32).eps)
LOW = float(np.finfo(np.float32).min)
KEPT = np.arange(8) % 3 > 0


def rms(eps):
    return lambda y: 1e-4 * y / jnp.sqrt((1e-8 * y * y).mean(-1, keepdims=True) + eps)


def masked(low):
    """A sum over every number: what stands for minus infinity is seen."""
    return lambda y: jnp.where(KEPT, y, low) / 1e30


def masked_reference(y):
    low = torch.finfo(y.dtype).min
    return y.masked_fill(~torch.from_numpy(KEPT), low) / 1e30


def constant_reference(y):
    return torch.where(torch.from_numpy(KEPT), y, torch.tensor(torch.finfo(y.dtype).min)) / 1e30


def branching_reference(y):
    return torch.tanh(y) if y.dtype == torch.float32 else y * 2


@pytest.mark.parametrize(
    "fn, layers, right, wrong",
    [
        (lambda y, norm: norm(1e-4 * y), (torch.nn.RMSNorm(8),), rms(EPS), rms(2.2e-16)),
        (masked_reference, (), masked(LOW), masked(LOW / 2)),
        (constant_reference, (), masked(LOW), masked(LOW / 2)),
        (branching_reference, (), jnp.tanh, lambda y: y * 2),
    ],
    ids=["rms_norm", "masked_fill", "constant", "branch"],
)
def test_a_reference_is_taken_as_it_runs(fn, layers, right, wrong):
    reference = Written(fn, *layers)
    report = explain(reference, written_port(right))
    assert report.verdict == "same", str(report)
    assert "the type" in "\n".join(report.notes) and "test_port_dtypes.py" in str(report.notes)
    report = explain(reference, written_port(wrong))
    assert report.verdict == "different", str(report)


def test_a_reference_in_bfloat16_that_upcasts_is_the_same():
    """What a program does to its types alone changes no formula."""

    def fn(y):
        return torch.softmax(y.float(), -1).to(y.dtype) if y.dtype != torch.float64 else (
            torch.softmax(y, -1))  # fmt: skip

    reference = Written(fn).bfloat16()
    weight, bias = (p.detach().float().numpy() for p in reference.linear.parameters())
    params = [jnp.asarray(weight.T, jnp.bfloat16), jnp.asarray(bias, jnp.bfloat16)]
    right = port.Function(lambda p, x: jax.nn.softmax(x @ p[0] + p[1]), params)
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    report = port.explain(reference.eval(), right, (x,))
    assert report.verdict == "same", str(report)
    assert "depends on the type" not in str(report)


def test_functions_with_rules_of_their_own_are_laid_side_by_side():
    """jax.nn.relu and silu carry functions that no trace shares."""
    wide, own = both(lambda x: jax.nn.relu(x) * jax.nn.silu(x) + jax.nn.softplus(x), np.ones(3))
    jax.clear_caches()
    closed, found = as_it_runs(wide, own, where)
    assert closed is wide and not found.apart


def test_a_number_that_the_reference_reads_is_not_one_that_depends_on_the_type():
    class Reading(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = Norm().linear

        def forward(self, x):
            y = self.linear(x)
            return y * float(y.pow(2).mean())

    params = [jnp.asarray(p.detach().numpy()) for p in Reading().linear.parameters()]

    def fn(p, x):
        y = x @ p[0].T + p[1]
        return y * (y * y).mean()

    report = explain(Reading(), port.Function(fn, params))
    assert report.verdict == "same", str(report)


def test_a_scatter_in_a_program_in_its_own_types():
    """What a scatter combines numbers with was traced in float32."""

    def fn(x):
        if x.dtype == jnp.float32:
            x = jnp.tanh(x)
        return x.at[jnp.array([0, 2, 0])].add(0.5).at[1].multiply(3.0).at[3].min(-2.0)

    x = np.linspace(-1, 1, 9)
    wide, own = both(fn, x)
    closed, found = as_it_runs(wide, own, where)
    assert found.apart
    outs, _ = evaluate(Traced(closed, [""], {}), [x], [0], Interpreter())
    expected = np.tanh(x) + np.array([1, 0, 0.5, 0, 0, 0, 0, 0, 0])
    expected[1], expected[3] = expected[1] * 3, -2
    np.testing.assert_allclose(outs[0], expected, rtol=1e-15)


class Rotating(torch.nn.Module):
    """Angles of a buffer of frequencies, as rotary positions have them."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(6, 8)
        self.register_buffer("inv_freq", 1.0 / 10000 ** (torch.arange(0, 16, 2).float() / 16))

    def forward(self, x):
        angles = torch.arange(x.shape[1])[:, None].to(x.dtype) * self.inv_freq
        return self.linear(x) * angles.cos() + angles.sin()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_table_that_a_narrow_type_rounds_is_a_matter_of_precision(dtype):
    """`model.to(bfloat16)` rounds the buffers, too, and the port keeps its table in float32."""
    torch.manual_seed(0)
    reference = Rotating()
    with torch.no_grad():
        reference.inv_freq.copy_(reference.inv_freq.to(dtype))
    table = 1.0 / 10000 ** (np.arange(0, 16, 2) / 16)
    params = [jnp.asarray(p.detach().numpy()) for p in reference.linear.parameters()]

    def fn(p, x):
        angles = jnp.arange(x.shape[1])[:, None] * jnp.asarray(table, x.dtype)
        return (x @ p[0].T + p[1]) * jnp.cos(angles) + jnp.sin(angles)

    report = explain(reference, port.Function(fn, params), (2, 9, 6))
    assert (report.verdict, report.explained) == ("different", True), str(report)
    assert [f.kind for f in report.findings] == ["precision"]
    table[3] *= 1.01  # no rounding makes this
    report = explain(reference, port.Function(fn, params), (2, 9, 6))
    assert report.verdict == "different"
    assert [f.kind for f in report.findings] != ["precision"]


def test_only_numbers_that_depend_on_the_type_are_taken():
    """A model with control flow may come to the same operation with other sizes beside them."""

    def called(size, low):
        func = torch.ops.aten.full.default
        return heard(func, ([size, size], low), {"dtype": torch.float64}, "model.py:3")

    for wide in (float(np.finfo(np.float64).min), -np.inf):
        (other,) = differing([called(9, wide)], [called(9, LOW)]).values()
        args, kwargs = with_numbers(([12, 12], wide), {"dtype": torch.float64}, other)
        assert args == ([12, 12], LOW) and kwargs == {"dtype": torch.float64}
    assert not differing([called(9, 0.5)], [called(9, 0.5)])
    with pytest.raises(Apart, match="full in one of them alone, model.py:3"):
        differing([called(9, 0.5)], [])
