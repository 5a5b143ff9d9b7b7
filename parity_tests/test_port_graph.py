"""A recorded graph stays as it was recorded: an edit returns another one."""

import dataclasses
import gc
import weakref

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from twinvit import port
from twinvit.port import comparison
from twinvit.port.call import Call
from twinvit.port.record.graph import Edit, Graph, Ref
from twinvit.port.record.torch_program import record


class Model(nn.Module):
    """Views that are written to, an operation with two results, and constants, on (4, 6)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x)).tanh()
        best, _ = x.max(1, keepdim=True)
        y = x + best
        y[:, 2:4] *= 0.5
        return self.last(y.exp() + torch.arange(8.0))


@pytest.fixture
def graph() -> Graph:
    x = np.random.default_rng(0).standard_normal((4, 6))
    return record(Model().eval(), (x,), lambda out: [out])


def index_of(graph: Graph, name: str) -> int:
    return next(n.index for n in graph.nodes if n.name == name)


def equal(a: Graph, b: Graph) -> bool:
    return all(
        x.dtype == y.dtype and x.shape == y.shape and torch.equal(x, y)
        for x, y in zip(a.values, b.values, strict=True)
    )


DOUBLED = Edit(lambda x, *args: 2 * x)


def test_a_replay_is_what_was_recorded(graph):
    again = graph.run({}, {i: graph.values[i] for i in graph.inputs()}, everything=True)
    made = [o for n in graph.nodes for o in n.outs if o is not None]
    assert len(made) > 15
    assert all(torch.equal(again[o], graph.values[o]) for o in made)


def test_an_edit_returns_another_graph_and_leaves_the_recorded_one(graph):
    nodes, values, outputs = graph.nodes, graph.values, graph.outputs
    kept = [v.clone() for v in values]
    tanh = index_of(graph, "tanh")
    edited = graph.edited({tanh: DOUBLED})
    assert graph.nodes is nodes and graph.values is values and graph.outputs == outputs
    assert all(torch.equal(a, b) for a, b in zip(kept, graph.values, strict=True))
    assert edited.nodes[tanh] is not nodes[tanh] and edited.nodes[tanh].op is DOUBLED.fn
    assert edited.recorded is graph
    assert not torch.equal(edited.values[outputs[0]], graph.values[outputs[0]])
    reached = edited.changed_from(graph)
    assert nodes[tanh].outs[0] in reached and outputs[0] in reached
    assert nodes[index_of(graph, "addmm")].outs[0] not in reached
    assert all(edited.values[i] is graph.values[i] for i in range(len(values)) if i not in reached)


def test_nothing_of_a_graph_can_be_assigned(graph):
    with pytest.raises(dataclasses.FrozenInstanceError):
        graph.outputs = ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        graph.nodes[0].op = torch.exp
    with pytest.raises(TypeError):
        graph.values[0] = torch.zeros(1)
    with pytest.raises(TypeError):
        graph.nodes[0] = graph.nodes[1]


def test_edits_of_different_operations_commute(graph):
    tanh, exp = index_of(graph, "tanh"), index_of(graph, "exp")
    one, other = {tanh: DOUBLED}, {exp: Edit(torch.cosh)}
    first = graph.edited(one).edited(other)
    assert equal(first, graph.edited(other).edited(one))
    assert equal(first, graph.edited({**one, **other}))
    assert not equal(first, graph.edited(one)) and not equal(first, graph.edited(other))


def test_operations_put_back_undo_an_edit(graph):
    tanh = index_of(graph, "tanh")
    edited = graph.edited({tanh: DOUBLED})
    assert equal(edited.put({tanh: graph.nodes[tanh]}, {}), graph)
    assert edited.nodes[tanh].op is DOUBLED.fn


def test_an_edit_that_fails_leaves_no_trace(graph):
    def fails(*args: object) -> None:
        raise ValueError("no")

    values = graph.values
    with pytest.raises(ValueError, match="no"):
        graph.edited({index_of(graph, "exp"): Edit(fails)})
    assert graph.values is values


def test_an_edit_of_other_values_changes_who_takes_what(graph):
    exp, tanh = index_of(graph, "exp"), index_of(graph, "tanh")
    (taken,) = graph.nodes[exp].refs
    (source,) = graph.nodes[tanh].refs
    edited = graph.edited({exp: Edit(torch.exp, (source,))})
    assert edited.nodes[exp].refs == (source,) and edited.nodes[exp].args == (Ref(source),)
    assert exp in edited.consumers[source] and exp not in edited.consumers.get(taken, ())
    assert exp in graph.consumers[taken] and exp not in graph.consumers[source]
    assert torch.equal(edited.values[graph.nodes[exp].outs[0]], graph.values[source].exp())


def test_a_value_that_is_given_stays_and_others_follow(graph):
    tanh = graph.nodes[index_of(graph, "tanh")]
    out = tanh.outs[0]
    given = torch.full((4, 8), 0.25, dtype=torch.float64)
    pinned = graph.pinned({out: given})
    assert torch.equal(pinned.values[out], given)
    assert pinned.nodes[tanh.index].refs == ()
    best = graph.nodes[index_of(graph, "max")].outs[0]
    assert torch.equal(pinned.values[best], given[:, :1])
    later = pinned.edited({index_of(graph, "addmm"): Edit(lambda b, x, w: 3 * (x @ w))})
    assert torch.equal(later.values[out], given), "what comes before a given value moves it no more"


def test_of_several_results_one_can_be_given(graph):
    node = graph.nodes[index_of(graph, "max")]
    best, where = node.outs
    given = torch.zeros(4, 1, dtype=torch.float64)
    pinned = graph.pinned({best: given})
    assert torch.equal(pinned.values[best], given)
    assert torch.equal(pinned.values[where], graph.values[where])
    moved = pinned.edited({index_of(graph, "tanh"): Edit(lambda x: -x)})
    assert torch.equal(moved.values[best], given)
    assert not torch.equal(moved.values[where], graph.values[where])


def test_what_depends_on_an_input_is_that_of_the_recorded_program(graph):
    tanh = graph.nodes[index_of(graph, "tanh")]
    pinned = graph.pinned({tanh.outs[0]: torch.zeros(4, 8, dtype=torch.float64)})
    assert pinned.input_dependent() == graph.input_dependent() >= set(tanh.outs)
    assert pinned.trained() == graph.trained()


def test_what_a_cause_returns_keeps_no_graph_alive():
    x = np.random.default_rng(0).standard_normal((4, 6))
    graph = record(Model().eval(), (x,), lambda out: [out])
    call = Call(graph, graph.nodes[index_of(graph, "tanh")])
    variant = call.with_args(a0=lambda x: 2 * x)
    assert call.graph is graph
    alive = weakref.ref(graph)
    expected = torch.tanh(2 * call.args[0])
    del graph
    gc.collect()
    assert alive() is None
    assert torch.equal(variant(*call.args), expected)
    with pytest.raises(ReferenceError, match="is gone"):
        assert call.graph


def test_a_report_is_of_a_graph_that_nobody_changed(monkeypatch):
    kept: list[tuple[Graph, tuple, list[torch.Tensor]]] = []
    plain = comparison.record

    def recorded(*args):
        found = plain(*args)
        graph = found.graph
        kept.append((graph, graph.nodes, [v.clone() for v in graph.values]))
        return found

    monkeypatch.setattr(comparison, "record", recorded)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 9), nn.SiLU()).eval()
    p = {n: t.detach().numpy() for n, t in model.state_dict().items()}

    def wrong(p, x):
        x = 0.5 * x @ p["0.weight"].T + p["0.bias"]
        x = x * 0.5 * (1 + jnp.tanh(0.7978845608 * (x + 0.044715 * x**3)))
        x = x @ p["2.weight"].T + p["2.bias"]
        return x * (1 / (1 + jnp.exp(-1.5 * x)))

    x = np.random.default_rng(1).standard_normal((5, 6))
    report = port.explain(model, port.Function(wrong, p), (x,))
    assert report.verdict == "different" and report.findings
    ((graph, nodes, values),) = kept
    assert graph.nodes is nodes
    assert all(torch.equal(a, b) for a, b in zip(values, graph.values, strict=True))
