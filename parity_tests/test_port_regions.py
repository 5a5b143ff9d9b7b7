"""Pieces of a transplant: orders of axes, parts of the port's program, and formulas."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from twinvit.port.index import Index
from twinvit.port.record.jax_settings import float64_on_cpu
from twinvit.port.record.jax_tape import Tape, Taping
from twinvit.port.record.jax_trace import evaluate, trace
from twinvit.port.record.torch_program import record
from twinvit.port.search.folding import count, fold
from twinvit.port.search.formula import port_formula, printed
from twinvit.port.search.noise import measure_noise
from twinvit.port.search.program import piece_of
from twinvit.port.search.region import (
    Held,
    Order,
    Refused,
    Region,
    escaping,
    order_between,
    orders,
    region_behind,
    replaced,
    small,
    with_silent,
)
from twinvit.port.search.session import Session
from twinvit.port.search.transplant import held_by

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 5, 8))
NUMBERS = RNG.standard_normal((3, 5, 8))


class Layer(nn.Module):
    """tanh of a product, then a sine."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.mix(x)).sin()


def taped(port: Any, model: nn.Module | None = None) -> tuple[Session, Tape, Held]:
    """A port of `Layer` and its reference, both recorded."""
    model = model or Layer()
    weights = [v.detach().double().numpy() for v in model.state_dict().values()]
    index = Index()
    interpreter = Taping(index)
    ids = [index.add(w, "parameter", f"p{k}", []) for k, w in enumerate(weights)]
    ids += [index.add(X, "input", "input 0", [])]
    traced = trace(lambda p, x: port(*p, x), weights, [X])
    outs, slots = evaluate(traced, [*weights, X], interpreter.given(ids), interpreter)
    index.tape = interpreter.tape
    index.tape.returned.update(slots)
    graph = record(model, (X,), lambda out: [out])
    session = Session(graph, index, measure_noise(graph), [np.asarray(outs[0])])
    tape = index.tape
    return session, tape, held_by(session, tape, graph.nodes[-1])


def last(tape: Tape, name: str) -> int:
    """The slot that the last step of this name makes."""
    return next(s.outs[0] for s in reversed(tape.steps) if s.name == name)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [((2, 3, 4), (2, 4, 3)), ((2, 3, 4), (3, 8)), ((6, 4), (3, 2, 4)), ((1, 3, 4), (4, 3, 1))],
)
def test_an_order_of_axes_makes_one_array_of_the_other(mine, theirs):
    x = RNG.standard_normal(mine)
    for order in orders(mine, theirs):
        made = order.apply(x)
        assert made.shape == theirs
        found = order_between(x, made, 1e-13)
        assert found is not None and np.array_equal(found.apply(x), made)
    assert order_between(x, RNG.standard_normal(theirs), 1e-9) is None


def test_the_walk_stops_at_the_first_value_that_the_reference_holds():
    def port(w: Any, b: Any, x: Any) -> Any:
        y = jnp.tanh(x @ w.T + b)
        return jnp.sin(y) * jnp.abs(y) + 0.1

    session, tape, held = taped(port)
    region = region_behind(tape, held, last(tape, "add"), len(session.graph.nodes))
    assert [s.name for s in region.operations(tape)] == ["sin", "abs", "mul", "add"] or [
        s.name for s in region.operations(tape)
    ] == ["abs", "mul", "add"]
    names = {session.graph.nodes[session.graph.producer[v] or 0].name
             for v, _ in region.inputs.values()}  # fmt: skip
    assert names == {"tanh", "sin"}
    assert printed(port_formula(tape, region, session.graph)) == "sin * abs(tanh) + 0.1"


def test_a_parameter_counts_where_nothing_lies_between():
    session, tape, held = taped(lambda w, b, x: jnp.cos(x @ w.T * 2 + b))
    region = region_behind(tape, held, last(tape, "cos"), len(session.graph.nodes))
    sources = sorted(session.graph.source[v] for v, _ in region.inputs.values())
    assert sources == ["input:0", "param:mix.bias", "param:mix.weight"]


def test_what_the_reference_computes_later_is_no_input():
    session, tape, held = taped(lambda w, b, x: jnp.abs(jnp.sin(jnp.tanh(x @ w.T + b))))
    slot = last(tape, "abs")
    assert region_behind(tape, held, slot, len(session.graph.nodes)).inputs
    tanh = next(n.index for n in session.graph.nodes if n.name == "tanh")
    with pytest.raises(Refused, match="later"):
        region_behind(tape, held, slot, tanh + 1)


@pytest.mark.parametrize(
    ("port", "reason"),
    [
        (lambda w, b, x: jnp.abs(x) * NUMBERS, "array of constants"),
        (lambda w, b, x: jnp.abs(x) + np.where(NUMBERS > 0, 1.0, 0.0), "array of constants"),
        (lambda w, b, x: jnp.where(NUMBERS > 0, jnp.abs(x), 0.0), "array of constants"),
        (lambda w, b, x: x + jax.random.normal(jax.random.key(0), x.shape), "random"),
    ],
)
def test_numbers_that_no_operation_makes_are_refused(port, reason):
    session, tape, held = taped(port)
    out = max(i for i, s in enumerate(tape.slots) if s.kind == "step" and s.first)
    with pytest.raises(Refused, match=reason):
        region_behind(tape, held, out, len(session.graph.nodes))


def test_one_number_and_a_count_are_written_in_a_program():
    def port(w: Any, b: Any, x: Any) -> Any:
        return x * np.full(8, 0.3) + np.arange(8) * x

    session, tape, held = taped(port)
    region = region_behind(tape, held, last(tape, "add"), len(session.graph.nodes))
    assert printed(port_formula(tape, region, session.graph)) == ("0.3 * input + arange(8) * input")


def test_a_part_over_several_steps_of_a_loop_is_refused():
    def port(w: Any, b: Any, x: Any) -> Any:
        def step(h: Any, xt: Any) -> Any:
            h = jnp.cos(3 * h) + xt
            return h, h

        return jax.lax.scan(step, jnp.abs(x[:, 0]), x.swapaxes(0, 1))[1].swapaxes(0, 1)

    session, tape, held = taped(port)
    with pytest.raises(Refused, match="steps of a loop"):
        region_behind(tape, held, last(tape, "add"), len(session.graph.nodes))


def test_a_clip_that_nothing_exceeds_is_taken_along():
    def port(w: Any, b: Any, x: Any) -> Any:
        return jnp.cos(jnp.clip(jnp.tanh(x @ w.T + b) * 2, -50, 50))

    session, tape, held = taped(port)
    first = region_behind(tape, held, last(tape, "mul"), len(session.graph.nodes))
    whole = with_silent(tape, held, first, len(session.graph.nodes))
    text = printed(port_formula(tape, whole, session.graph))
    assert text == "clip(2 * tanh, -50, 50)"


def test_steps_on_the_way_to_what_the_reference_holds_lead_nowhere():
    session, tape, held = taped(lambda w, b, x: jnp.abs(jnp.tanh(x @ w.T + b)))
    leading = escaping(tape, held.found)
    assert last(tape, "abs") in leading and last(tape, "dot_general") not in leading


def test_operations_that_nothing_needs_any_more_are_counted():
    graph = record(Layer(), (X,), lambda out: [out])
    live = {n.index for n in graph.nodes}
    names = {n.index: n.name for n in graph.nodes}
    sin = next(n for n in graph.nodes if n.name == "sin")
    given = graph.inputs()
    dead = replaced(graph, live, graph.outputs, {sin.index: given}, [sin.index])
    assert {names[i] for i in dead} >= {"tanh", "addmm", "sin"}
    assert "view" not in {names[i] for i in dead}
    assert small(16, 6, 30, False) and not small(17, 0, 30, False) and small(40, 0, 30, True)
    assert not small(1, 7, 60, False) and small(1, 7, 70, False)
    assert small(1, 16, 900, False) and not small(1, 17, 900, False)


def test_a_piece_is_run_and_derived_as_jax_does():
    def port(w: Any, b: Any, x: Any) -> Any:
        y = jnp.tanh(x @ w.T + b)
        return jax.nn.softmax(y * jnp.abs(y), -1).swapaxes(1, 2)

    session, tape, held = taped(port)
    region = region_behind(tape, held, last(tape, "div"), len(session.graph.nodes))
    assert isinstance(region, Region)
    ((slot, (value, order)),) = region.inputs.items()
    piece = piece_of(tape, region, Order((0, 1, 2), (3, 5, 8)))
    x = torch.from_numpy(RNG.standard_normal((3, 5, 8))).requires_grad_()
    y = piece(x)
    expected = torch.softmax(x * x.abs(), -1)
    assert torch.allclose(y, expected, rtol=0, atol=1e-14)
    weight = torch.from_numpy(RNG.standard_normal((3, 5, 8)))
    mine = torch.autograd.grad((y * weight).sum(), x)[0]
    theirs = torch.autograd.grad((expected * weight).sum(), x)[0]
    assert torch.allclose(mine, theirs, rtol=0, atol=1e-13) and theirs.abs().max() > 0.01


def relu6(x: Any) -> Any:
    return jnp.clip(x, 0, 6)


def manual_norm(x: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-6)


def sigmoid_by_hand(x: Any) -> Any:
    return 1 / (1 + jnp.exp(-x))


FOLDED = {
    "softmax(input, -1)": lambda x: jax.nn.softmax(x, -1),
    "silu(input)": jax.nn.silu,
    "gelu(input)": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh(input)": jax.nn.gelu,
    "quick_gelu(input)": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "clip(input, 0, 6)": relu6,
    "mean(input, -1)": lambda x: x.mean(-1),
    "variance(input, -1)": lambda x: x.var(-1),
    "norm(input, eps=1e-06)": manual_norm,
    "rms_norm(input, eps=1e-05)": lambda x: x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5),
    "sigmoid(input)": sigmoid_by_hand,
    "logsumexp(input, -1)": lambda x: jax.nn.logsumexp(x, -1),
    "log_softmax(input, -1)": lambda x: jax.nn.log_softmax(x, -1),
    "relu(input)": lambda x: jnp.maximum(x, 0),
}


@pytest.mark.parametrize("text", FOLDED)
def test_library_functions_are_one_operation_to_read(text):
    session, tape, held = taped(lambda w, b, x: jnp.cos(FOLDED[text](x)))
    region = region_behind(tape, held, last(tape, "cos"), len(session.graph.nodes))
    formula = port_formula(tape, region, session.graph)
    assert printed(formula) == f"cos({text})" and count(formula) == 2


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * jax.nn.sigmoid(1.7 * x),
        lambda x: 0.5 * x * (1 + jax.scipy.special.erf(x)),
        lambda x: jnp.exp(x) / jnp.exp(x).sum(-2, keepdims=True) + x.sum(-1, keepdims=True) / 7,
        lambda x: x / jnp.sqrt((x**2).sum(-1, keepdims=True) + 1e-5),
        lambda x: (x - x.mean(-2, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True)),
    ],
)
def test_what_only_looks_like_a_library_function_is_written_out(function):
    session, tape, held = taped(lambda w, b, x: jnp.cos(function(x)))
    region = region_behind(tape, held, last(tape, "cos"), len(session.graph.nodes))
    text = printed(port_formula(tape, region, session.graph))
    for name in ("gelu", "silu", "norm", "mean(input, -1) +"):
        assert name not in text, text
    assert "softmax(input, -1)" not in text


def test_indices_and_one_hot_are_folded():
    def port(w: Any, b: Any, x: Any) -> Any:
        best = jnp.argmax(x, -1)
        return jax.nn.one_hot(best, 8) * jnp.take_along_axis(x, best[..., None], -1)

    with float64_on_cpu():
        session, tape, held = taped(port)
    region = region_behind(tape, held, last(tape, "mul"), len(session.graph.nodes))
    text = printed(port_formula(tape, region, session.graph))
    assert text == "one_hot(argmax(input)) * take(input, argmax(input))"


def test_a_formula_is_folded_once_and_for_all():
    x = ("value", "x")
    twice = fold(("mul", ("sigmoid", x), x))
    assert twice == ("silu", x) and fold(twice) == twice
