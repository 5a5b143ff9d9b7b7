"""Claim: what two trials in a row have in common is computed once, and nothing else is."""

import numpy as np
import torch
from laws import pairs

from twinvit.port.record import torch_program
from twinvit.port.record.graph import Edit
from twinvit.port.search.repeated import Repeated, _identical, draws

X = torch.arange(12.0, dtype=torch.float64).reshape(3, 4) - 5


def graph_of(fn, *inputs: torch.Tensor):
    return torch_program.record(fn, inputs or (X,), lambda out: [out])


def trial(repeated: Repeated, graph, edits) -> dict[int, torch.Tensor]:
    repeated.begin()
    changed: dict[int, torch.Tensor] = {}
    for node in graph.nodes:
        changed.update(repeated.step(graph, node.index, edits, changed))
    return changed


def first(value: torch.Tensor) -> dict[int, Edit]:
    return {0: Edit(lambda *_: value.clone())}


def test_results_of_the_same_operands_are_taken_again_and_others_computed():
    graph, repeated = graph_of(lambda x: ((x + 1).exp().sin() * 2).t()), Repeated(1 << 20)
    one = trial(repeated, graph, first(X))
    two = trial(repeated, graph, first(X))
    assert len(one) == 5 and all(two[i] is x for i, x in one.items())
    three = trial(repeated, graph, first(X + 1))
    assert not any(three[i] is x for i, x in one.items())
    for value, made in ((X, two), (X + 1, three)):
        plain = graph.run(first(value))
        assert plain.keys() == made.keys()
        assert all(torch.equal(made[i], x) for i, x in plain.items())


def test_an_edit_further_on_is_run_and_what_follows_it():
    graph, repeated = graph_of(lambda x: ((x + 1).exp() * 2).cos()), Repeated(1 << 20)
    one = trial(repeated, graph, first(X))
    later = {**first(X), 2: Edit(lambda x, *_: x * 3)}
    two = trial(repeated, graph, later)
    same = [two[i] is x for i, x in one.items()]
    assert same == [True, True, False, False]
    assert all(torch.equal(two[i], x) for i, x in graph.run(later).items())
    three = trial(repeated, graph, first(X))  # after it without it
    assert all(torch.equal(three[i], x) for i, x in one.items())


def test_operands_in_each_others_place_are_others():
    graph, repeated = graph_of(lambda x: (x + 1) - (x * 2)), Repeated(1 << 20)
    a, b = X.clone(), X.clone() + 3
    one = trial(repeated, graph, {0: Edit(lambda *_: a), 1: Edit(lambda *_: b)})
    two = trial(repeated, graph, {0: Edit(lambda *_: b), 1: Edit(lambda *_: a)})
    out = graph.outputs[0]
    assert torch.equal(one[out], a - b) and torch.equal(two[out], b - a)


def test_what_is_put_in_place_stays():
    graph, repeated = graph_of(lambda x: (x + 1).exp()), Repeated(1 << 20)
    out, mine = graph.outputs[0], torch.zeros(3, 4, dtype=torch.float64)
    trial(repeated, graph, first(X))
    repeated.begin()
    changed = {out: mine}
    for node in graph.nodes:
        changed.update(repeated.step(graph, node.index, first(X), changed))
    assert changed[out] is mine
    assert torch.equal(trial(repeated, graph, first(X))[out], X.exp())


def test_what_an_edit_writes_into_its_operand_is_not_taken_again():
    graph, repeated = graph_of(lambda x: ((x + 1).exp() * 2).cos()), Repeated(1 << 20)
    one = trial(repeated, graph, {**first(X), 2: Edit(lambda x, *_: x.zero_())})
    two = trial(repeated, graph, first(X))
    assert not one[graph.nodes[1].outs[0]].any()
    assert all(torch.equal(two[i], x) for i, x in graph.run(first(X)).items())


def test_no_more_is_held_than_there_is_room_for():
    graph, repeated = graph_of(lambda x: ((x + 1).exp() * 2).cos()), Repeated(2 * X.nbytes)
    one = trial(repeated, graph, first(X))
    two = trial(repeated, graph, first(X))
    assert [two[i] is x for i, x in one.items()] == [True, True, False, False]
    assert all(torch.equal(two[i], x) for i, x in one.items())
    with torch.inference_mode():  # where PyTorch counts no writes
        assert torch.equal(trial(repeated, graph, first(X + 1))[graph.outputs[0]].cpu(),
                           graph.run(first(X + 1))[graph.outputs[0]])  # fmt: skip


def test_only_the_same_bits_in_the_same_layout_are_the_same():
    zero, nan = torch.zeros(3, 4), torch.full((3, 4), np.nan)
    assert _identical(zero, zero.clone()) and _identical(nan, nan.clone())
    assert not _identical(zero, -zero)
    assert not _identical(zero, zero.double()) and not _identical(zero, zero.int())
    assert not _identical(X, X.t().contiguous().t()) and _identical(X.t(), X.clone().t())
    assert not _identical(X, X[:2]) and not _identical(X > 0, X > 1) and _identical(X > 0, X > 0)


def test_random_numbers_are_drawn_each_time():
    assert draws(graph_of(lambda x: x + torch.rand(3, 4)))
    assert draws(graph_of(lambda x: torch.bernoulli(x.sigmoid())))
    assert draws(graph_of(lambda x: torch.multinomial(x.sigmoid(), 2)))
    assert draws(graph_of(lambda x: torch.native_dropout(x, 0.5, True)[0]))
    assert not draws(graph_of(torch.nn.functional.dropout))  # its mask is recorded


def test_lookups_of_a_trial_are_counted_as_often_as_they_are_made(monkeypatch):
    """A report is the same, with its count of lookups, where nothing is taken again."""
    model = pairs.net(pairs.mlp, **pairs.perceptron())

    def wrong(p, x, **_):
        return pairs.mlp_port(p, x) + 0.3 * x.sum()

    told = []
    for room in (1 << 30, -1):
        monkeypatch.setattr(
            "twinvit.port.search.session.Repeated", lambda _, room=room: Repeated(room)
        )
        report = pairs.Pair(model, wrong, (pairs.draws(7, 5),)).told()
        told.append((str(report.findings), [n.rsplit(",", 1)[0] for n in report.notes]))
    assert told[0] == told[1]
