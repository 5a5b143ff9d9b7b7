"""Claim: what an explanation takes is said before it starts, and weights that are drawn are not
held."""

import gc

import numpy as np
import torch
from laws import pairs

from twinvit.port.expected import of_sizes
from twinvit.port.port_leaves import PortLeaves
from twinvit.port.record import torch_program
from twinvit.port.record.graph import Edit
from twinvit.port.record.graph_values import held_in_float64
from twinvit.port.redraw import Drawn, redrawn_weights
from twinvit.port.search.noise import (
    LARGE,
    _has_whole,
    _moved_leaf,
    _Nudge,
    measure_noise,
    output_noise,
    run_nudged,
)


def test_parameters_memory_and_time_are_said_first():
    said: list[str] = []
    pair = pairs.Pair(
        pairs.net(pairs.mlp, **pairs.perceptron()), pairs.mlp_port, (pairs.draws(7, 5),)
    )
    pair.told(progress=said.append)
    assert said[0].startswith("the reference has 114 parameters, the port 114; expect about 0.3 GB")
    assert "0.6 GB of memory beyond the two models, and 10 s" in of_sizes(24_000_000, 24_000_000)


def test_drawn_weights_are_made_when_they_are_asked_for_and_alike_each_time():
    mine = [pairs.draws(6, 5, seed=k).astype(np.float64) for k in range(2)]
    theirs = [x.T.copy() for x in mine]
    weights = redrawn_weights(mine, theirs, [], 3)
    assert isinstance(weights.mine, Drawn) and weights.moved == 2
    first, again = weights.mine[0], weights.mine[0]
    assert first is not again and np.array_equal(first, again)
    assert np.array_equal(first, weights.theirs[0].T) and not np.array_equal(first, mine[0])
    assert [x.shape for x in weights.mine] == [(6, 5)] * 2 and len(list(weights.theirs)) == 2


def test_a_large_parameter_is_moved_alike_each_time():
    value = torch.randn(LARGE, dtype=torch.float64)
    graph = torch_program.record(lambda x: x + 1, (value,), lambda out: [out])
    nudge = _Nudge(0, LARGE)
    at = nudge.at
    first = nudge(value, whole=True)
    present = nudge.at
    again = _moved_leaf(graph, 0, nudge, at, _has_whole(value))
    assert torch.equal(first, again) and not torch.equal(first, value)
    assert nudge.at == present != at
    nudge.at = at
    nudge.skip(value)
    assert nudge.at == present


def test_an_array_beyond_the_pool_of_factors_is_moved_as_by_the_repeated_pool():
    nudge = _Nudge(3, 1 << 8)
    nudge.pool = nudge.pool[:500]  # shorter than what is moved
    value = torch.randn(7, 301, dtype=torch.float64)
    moved = [nudge(value), nudge(value.t()).t()]
    for offset, x in zip((7919, 2 * 7919), moved):
        factor = nudge.pool[: len(nudge.pool) - 1 - offset % 9973 % 97].repeat(5)[: value.numel()]
        shape = value.shape if x is moved[0] else value.t().shape
        factor = factor.view(shape) if x is moved[0] else factor.view(shape).t()
        assert torch.equal(x, value * factor)


def test_whole_numbers_of_a_large_array_stay():
    value = torch.randn(LARGE, dtype=torch.float64)
    assert not _has_whole(value) and not _has_whole(torch.zeros(9, dtype=torch.float64))
    value[-1] = 3
    assert _has_whole(value)


def test_rounding_of_the_outputs_alone_is_that_which_is_measured_of_all_values():
    weight = torch.randn(5, 6, dtype=torch.float64)
    graph = torch_program.record(
        lambda x: (torch.tanh(x @ weight.t()), x.sum(0)), (torch.randn(4, 6),), list
    )
    whole, alone = measure_noise(graph), output_noise(graph)
    assert set(alone.relative) == set(alone.elements) == set(graph.outputs)
    for out in graph.outputs:
        assert alone.relative[out] == whole.relative[out] > 0
        assert np.array_equal(alone.elements[out], whole.elements[out])
    eps = torch.finfo(torch.float64).eps
    given = [i for i, s in enumerate(graph.source) if s != "node"]
    layouts = [n.outs[0] for n in graph.nodes if n.name == "t"]
    assert len(given) == 2 and layouts and {whole.relative[i] for i in given + layouts} == {eps}


class _Wide(torch.nn.Module):
    """A table of which few rows are read, and a product with many numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.dense = torch.nn.Embedding(2000, 40), torch.nn.Linear(40, 40 * 50)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.dense(self.table(ids))


def _float64_bytes() -> int:
    """Bytes of the storages of all float64 tensors that are alive."""
    tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
    wide = [t for t in tensors if t.dtype == torch.float64 and t.device.type == "cpu"]
    return sum({s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in wide)}.values())


def test_no_parameter_is_kept_in_float64_once_a_model_is_recorded():
    torch.manual_seed(0)
    model = _Wide().eval()
    gc.collect()
    gc.disable()  # nothing may wait for it: cycles would hold what was recorded with
    try:
        before = _float64_bytes()
        graph = torch_program.record(model, (torch.arange(3),), lambda out: [out])
        held = _float64_bytes() - before
    finally:
        gc.enable()
    parameters = {n: graph.values[i] for n, i in graph.params().items()}
    assert all(torch.equal(v, model.state_dict()[n].double()) for n, v in parameters.items())
    assert 0 < held < 2 * 8 * 3 * (40 + 40 * 50)  # activations, and no parameter
    layout = next(graph.values[n.outs[0]] for n in graph.nodes if n.name == "t")
    assert torch.equal(layout, model.dense.weight.double().t())


def test_the_ports_arrays_are_kept_as_they_are_given_and_read_in_float64():
    given = pairs.draws(6, 5).astype(np.float32)
    leaves = PortLeaves([given, np.arange(3), 2.0])
    assert leaves.kept(0) is given and leaves[0].dtype == np.float64 and leaves[1].dtype.kind == "i"
    assert np.array_equal(leaves[0], given.astype(np.float64)) and leaves.numbers() == 34
    assert [leaves.is_real(k) for k in range(3)] == [True, False, False]
    assert leaves.shapes()[0].dtype == np.float64 and leaves.shapes()[0].shape == (6, 5)


def test_rows_of_an_embedding_are_moved_as_in_the_whole_table():
    torch.manual_seed(0)
    model = _Wide().eval()
    with torch.no_grad():
        model.table.weight[7, 3] = 2.0  # whole numbers stay
    ids = torch.tensor([[7, 7], [1999, 0]])
    graph = torch_program.record(model, (ids,), lambda out: [out])
    node = next(n for n in graph.nodes if n.name == "embedding")
    told: dict[int, torch.Tensor] = {}
    run_nudged(graph, _Nudge(0, 80000), told.__setitem__)
    nudge = _Nudge(0, 80000)
    at = [i for i, s in enumerate(graph.source) if s != "node"].index(node.refs[0])
    nudge.at = at * 7919 % 9973
    moved = nudge(graph.values[node.refs[0]], whole=True)
    assert graph.values[node.refs[0]].numel() >= LARGE
    assert torch.equal(told[node.outs[0]], moved[ids]) and told[node.outs[0]][0, 0, 3] == 2


def test_parameters_are_held_in_float64_for_a_while_up_to_so_many_bytes():
    torch.manual_seed(0)
    model = _Wide().eval()
    graph = torch_program.record(model, (torch.arange(3),), lambda out: [out])
    table, dense = (graph.params()[n] for n in ("table.weight", "dense.weight"))
    with held_in_float64(8 * 2000 * 40 + 8):
        assert graph.values[table] is graph.values[table]
        assert graph.values[dense] is not graph.values[dense]  # it does not fit beside the other
    with held_in_float64(1 << 30):
        first = graph.values[table]
        assert graph.values[table] is first and graph.values[dense] is graph.values[dense]
        first[3] += 1  # what somebody writes to is made anew
        again = graph.values[table]
        assert again is not first and torch.equal(again, model.table.weight.double())
        assert graph.values[table] is again
    assert graph.values[table] is not again


def test_one_operation_at_a_time_is_run_as_all_of_them():
    torch.manual_seed(0)
    model = _Wide().eval()
    ids = torch.arange(3)
    graph = torch_program.record(
        lambda x: model(x).chunk(2, -1)[0].exp(), (ids,), lambda out: [out]
    )
    place = next(n.index for n in graph.nodes if n.name == "addmm")
    edits = {place: Edit(lambda *args: graph.nodes[place].op(*args) * 2)}
    whole = graph.run(edits, first=place)
    changed: dict[int, torch.Tensor] = {}
    for node in graph.nodes:
        changed.update(graph.step(node.index, edits, changed))
    assert changed.keys() == whole.keys() and len(whole) > 3
    assert all(torch.equal(changed[i], x) for i, x in whole.items())
    given = {graph.outputs[0]: torch.zeros(1)}  # what is put in place stays
    assert graph.step(graph.producer[graph.outputs[0]], edits, {**changed, **given}) == []


def test_weights_are_drawn_alike_of_the_types_that_they_are_kept_in():
    mine = [pairs.draws(6, 5, seed=k) for k in range(2)]
    mine[0][0, :3] = -0.0, 1e38, 1e-40
    mine[1][0, 0] = np.inf
    wide = [x.astype(np.float64) for x in mine]
    own = Drawn(2, wide.__getitem__, mine.__getitem__)
    for of in (wide, own):
        weights = redrawn_weights(wide, of, [], 3)
        drawn = [x.tobytes() for x in weights.theirs]
        assert drawn == [x.tobytes() for x in weights.mine] and weights.moved == 2
        assert all(x.dtype == np.float64 for x in weights.theirs)
