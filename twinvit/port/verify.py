"""The reference with a report's edits against the port, on other inputs and weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from twinvit.port import verdict
from twinvit.port.constant_inputs import rows_of
from twinvit.port.errors import PortError
from twinvit.port.memory import give_back
from twinvit.port.outputs import pick_torch
from twinvit.port.pair import Pair
from twinvit.port.port_side import jax_input
from twinvit.port.record import jax_trace, torch_program, torch_values
from twinvit.port.record.graph import Graph, Node, Ref, flat_tensors
from twinvit.port.record.jax_interpreter import Deferred, Interpreter, Sink
from twinvit.port.record.live_edits import LiveEdits, live_edits
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.redraw import Drawn, Weights
from twinvit.port.search.noise import output_noise
from twinvit.port.search.session import Session
from twinvit.port.search.trial import AppliedEdit

if TYPE_CHECKING:
    from twinvit.port.comparison import Recorded

NUDGE = 1e-12  # relative size of the nudges that show a step near its edge
Arrays = Sequence[np.ndarray]
Further = list[tuple[Any, Any]]
"""A caller's inputs, each with the port's or None."""


def several(inputs: Any, jax_inputs: Any) -> Further:
    """The inputs one draw after the other, each with the port's.

    A list whose elements are tuples of arrays or mappings is one of draws; all else is one draw.
    """
    if not _are_draws(inputs):
        return [(inputs, jax_inputs)]
    if jax_inputs is None:
        return [(x, None) for x in inputs]
    if not isinstance(jax_inputs, list) or len(jax_inputs) != len(inputs):
        raise PortError(
            f"inputs= holds {len(inputs)} draws; give as many in jax_inputs=, a list of tuples"
        )
    return list(zip(inputs, jax_inputs))


def _are_draws(inputs: Any) -> bool:
    return (
        isinstance(inputs, list)
        and bool(inputs)
        and all(
            isinstance(x, Mapping)
            or (isinstance(x, tuple) and x and all(hasattr(a, "shape") for a in x))
            for x in inputs
        )
    )


class Program:
    """The reference with the proven edits, and the port, as functions of inputs and weights.

    Which arrays are compared, and in which order of their axes, is fixed by the first inputs.
    """

    def __init__(
        self,
        pair: Pair,
        train: bool,
        session: Session,
        recorded: Recorded,
    ) -> None:
        traced, chosen = recorded.traced, recorded.chosen
        self.pair, self.train, self.traced, self.chosen = pair, train, traced, chosen
        self.graph = recorded.graph
        self.live = pair.live
        self.like = self.graph if pair.live is None else pair.live[1]
        self.pairs = recorded.compared
        self.names = [p.name for p in self.pairs]
        plain = recorded.graph.nodes
        self.order = [n.name for n in plain]
        self.edits = [a for a in session.accepted if a.kind != "unknown"]
        self.keys, self.inputs = (
            torch_values.split_inputs(pair.inputs)[0],
            list(pair.arrays),
        )
        self.arrays = list(recorded.arrays)
        self.sources = [_source(x, k, self.inputs) for k, x in enumerate(self.arrays)]
        self.params = _live_parameters(session, plain)
        self.index = recorded.index
        self.used = _used(
            traced.closed.jaxpr, [k in set(chosen) for k in range(len(traced.labels))]
        )
        self.leaves = [
            k for k in range(len(pair.leaves)) if self.used[k] and pair.leaves.is_real(k)
        ]
        self.rows = rows_of(session.graph)
        self.fixed = _fixed(session, plain, self.edits)

    @property
    def mine(self) -> Drawn:
        """The reference's parameters and buffers that an output depends on, float64."""
        names = list(self.params)
        return Drawn(len(names), lambda i: self.params[names[i]])

    @property
    def theirs(self) -> Drawn:
        """The port's arrays of floating-point numbers that an output depends on, float64."""
        leaves, places = self.pair.leaves, self.leaves

        def own(i: int) -> np.ndarray:
            kept = np.asarray(leaves.kept(places[i]))
            return kept if kept.dtype == np.float32 else leaves[places[i]]

        return Drawn(len(places), lambda i: leaves[places[i]], own)

    def port(
        self, arrays: Arrays, weights: Weights | None, sink: Sink | None = None
    ) -> list[np.ndarray]:
        """The compared arrays of the port, in the order of the reference's axes; `sink` is told of
        every value that it computes."""
        leaves = self.pair.leaves.arguments()
        if weights is not None:
            for i, k in enumerate(self.leaves):
                leaves[k] = Deferred(partial(weights.theirs.__getitem__, i))
        values = [*leaves, *arrays]
        with np.errstate(all="ignore"):
            outs, _ = jax_trace.evaluate(self.traced, values, [-1] * len(values), Interpreter(sink))
        return [p.arrange(np.asarray(outs[c])) for c, p in zip(self.chosen, self.pairs)]

    def reference(self, inputs: Arrays, weights: Weights | None) -> Graph:
        """The reference recorded on these inputs and weights, with the edits made.

        Raises:
            PortError: it fails on them, or runs other operations than on the first inputs.
        """
        given: Any = dict(zip(self.keys, inputs)) if self.keys else tuple(inputs)

        def pick(out: Any) -> list[Any]:
            return [t for _, t in pick_torch(out, self.pair.output)]

        def record(live: LiveEdits | None) -> Graph:
            give_back()
            # A new copy each time: recording it changes it (running statistics).
            model = torch_values.widened(self.pair.torch_model)
            if weights is not None:
                _put(model, zip(self.params, weights.mine))
            graph = torch_program.record(
                model, given, pick, train=self.train, like=self.like, live=live, copy=False
            )
            if weights is None:
                graph = torch_program.kept_narrow(graph, self.pair.torch_model)
            del model
            return replace(graph, outputs=tuple(graph.outputs[p.mine] for p in self.pairs))

        before = self.live[0] if self.live is not None else LiveEdits()
        graph = record(before)
        if not self.edits:
            return graph
        if [n.name for n in graph.nodes] == self.order and not self._follows(graph):
            graph = self._edited(graph)  # no name for the one without, whose values are let go
            return _computed(graph)
        if any(a.values for a in self.edits):
            raise PortError(
                "the reference runs other operations on these values than on the first "
                "inputs, so the edits have no places in it"
            )
        own = live_edits(self.graph, [a.edits for a in self.edits])
        return record(before.plus(own))

    def _follows(self, graph: Graph) -> bool:
        """True if the reference's control flow may follow numbers that the edits change."""
        return not self.train and graph.follows_values() and not any(a.values for a in self.edits)

    def _edited(self, graph: Graph) -> Graph:
        """The graph with the edits made, without the results of its live operations."""
        for a in self.edits:
            edited = {i: graph.nodes[i].edited(edit) for i, edit in a.edits.items()}
            graph = graph.with_nodes(edited)
            for i, value in a.values.items():
                producer = graph.producer[i]
                if producer is None:
                    graph = graph.with_values({i: value})
                    continue
                node = graph.nodes[producer]
                given = node.with_result(node.outs.index(i), value)
                graph = graph.with_nodes({producer: given})
        # Of several results an edit may leave some as they were.
        live = _live(graph).nodes
        made = {n.outs[0] for n in live if len(n.outs) == 1 and n.outs[0] is not None}
        values = graph.values.without(made)
        recorded = graph.recorded and replace(graph.recorded, values=values)
        return replace(graph, values=values, recorded=recorded)

    def convert(self, inputs: Arrays) -> list[np.ndarray]:
        """The port's inputs for these of the reference, by the rule of the first ones."""
        return [
            x if source is None else source[1](inputs[source[0]]).astype(x.dtype)
            for x, source in zip(self.arrays, self.sources)
        ]

    def unmatched(self) -> list[int]:
        """The port's inputs that are no rearrangement of one of the reference's, tables of
        positions and constants left out."""
        return [
            k
            for k, (x, source) in enumerate(zip(self.arrays, self.sources))
            if source is None and not _is_plain(x)
        ]

    def given(self, inputs: Any, jax_inputs: Any = None) -> tuple[list[np.ndarray], Arrays]:
        """A caller's inputs as the reference's and the port's arrays.

        Raises:
            PortError: they have other names, shapes or types than the first ones.
        """
        keys, arrays = torch_values.split_inputs(inputs)
        if keys and self.keys and set(keys) == set(self.keys):
            arrays = [arrays[keys.index(k)] for k in self.keys]
        elif keys != self.keys:
            raise PortError(
                f"the inputs are {', '.join(keys) or 'positional'}; the report is of "
                f"{', '.join(self.keys) or 'positional ones'}"
            )
        mine = [torch_values.to_torch(x).numpy() for x in arrays]
        names = self.keys or [f"input {k}" for k in range(len(self.inputs))]
        mine = _alike(mine, self.inputs, names)
        if jax_inputs is not None:
            theirs = [jax_input(x) for x in torch_values.split_inputs(jax_inputs)[1]]
            labels = [f"input {k} of the port" for k in range(len(self.arrays))]
            return mine, _alike(theirs, self.arrays, labels)
        if self.unmatched():
            raise PortError(
                f"input {self.unmatched()[0]} of the port is no rearrangement of one of the "
                "reference's, so it cannot be made from these; give jax_inputs="
            )
        return mine, self.convert(mine)

    def layers(self) -> set[str]:
        """Names of the reference's parameters that are weights of linear layers or convolutions."""
        model = self.pair.torch_model
        if not isinstance(model, torch.nn.Module):
            return set()
        kinds = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
        return {f"{n}.weight".lstrip(".") for n, m in model.named_modules() if isinstance(m, kinds)}

    def moves(self, weights: Weights) -> float:
        """How far apart the compared outputs are with these weights, the largest relative L2
        distance; 0 where rounding makes it, or where one side fails."""
        try:
            graph = self.reference(self.inputs, weights)
            theirs = self.port(self.arrays, weights)
        except Exception:
            return 0.0
        outs = [to_numpy(graph.values[o]) for o in graph.outputs]
        if any(x.dtype.kind in "fc" and np.isnan(x).any() for x in (*outs, *theirs)):
            return 0.0
        if all(verdict.judge(x, y).verdict == verdict.SAME for x, y in zip(outs, theirs)):
            return 0.0
        noise = output_noise(graph)
        judged = [
            verdict.judge(x, y, noise.elements.get(o))
            for x, y, o in zip(outs, theirs, graph.outputs)
        ]
        moved = nudged(graph, NUDGE, 2)
        return max(
            (
                d.relative
                for d, m in zip(judged, moved)
                if d.verdict == verdict.DIFFERENT and d.relative > 10 * m
            ),
            default=0.0,
        )

    def distances(self, graph: Graph, theirs: Arrays) -> list[float]:
        """Relative L2 distance of each output; inf where kinds of numbers or shapes differ."""
        return [
            verdict.judge(to_numpy(graph.values[o]), x).relative
            for o, x in zip(graph.outputs, theirs)
        ]

    def verify(self, inputs: Any, jax_inputs: Any = None) -> dict[str, float]:
        """Relative L2 distance by output's name, on a caller's inputs."""
        mine, arrays = self.given(inputs, jax_inputs)
        graph = self.reference(mine, None)
        return dict(zip(self.names, self.distances(graph, self.port(arrays, None))))


def nudged(graph: Graph, size: float, runs: int) -> list[float]:
    """How far the outputs move when every input, parameter and constant is changed by `size`."""
    most = [0.0] * len(graph.outputs)
    live = _live(graph)
    for seed in range(runs):
        try:
            run = _nudged_run(live, size, seed)
        except Exception:
            return [np.inf] * len(most)
        for k, o in enumerate(graph.outputs):
            if o in run:
                most[k] = max(
                    most[k], verdict.judge(to_numpy(graph.values[o]), to_numpy(run[o])).relative
                )
    return most


def _nudged_run(live: Graph, size: float, seed: int) -> dict[int, torch.Tensor]:
    """The outputs of a graph whose parameters, inputs and constants are changed by `size`; each of
    these is made where it is used, and not stored."""
    sources = {i for i, s in enumerate(live.source) if s != "node"}
    wanted = set(live.outputs)
    held: dict[int, torch.Tensor] = {}

    def nudge(i: int) -> torch.Tensor:
        value = live.values[i]
        if value.dtype != torch.float64:
            return value
        generator = torch.Generator().manual_seed(1000003 * seed + i)
        signs = torch.randint(0, 2, value.shape, generator=generator, dtype=torch.int8)
        return torch.where(signs > 0, value * (1 + size), value * (1 - size))

    with torch.no_grad():
        for node in live.nodes:
            held.update({r: nudge(r) for r in node.refs if r in sources})
            args, kwargs = live.arguments(node, held)
            for out, value in zip(node.outs, flat_tensors(node.op(*args, **kwargs))):
                if out is not None:
                    held[out] = value
            for ref in node.refs:
                if ref in sources or (ref not in wanted and live.consumers[ref][-1] == node.index):
                    held.pop(ref, None)
    return held


def _computed(graph: Graph) -> Graph:
    """The graph with the values that its live operations compute."""
    with torch.no_grad():
        return graph.with_values(_live(graph).run({}, everything=True))


def _live(graph: Graph) -> Graph:
    """The graph without operations that no output depends on."""
    wanted, nodes = set(graph.outputs), []
    for node in reversed(graph.nodes):
        if any(o in wanted for o in node.outs):
            wanted.update(node.refs)
            nodes.append(node)
    return replace(graph, nodes=tuple(nodes[::-1]))


class _Parameters(Mapping[str, np.ndarray]):
    """Values of a graph by name, float64."""

    def __init__(self, graph: Graph, ids: Mapping[str, int]) -> None:
        self._graph, self._ids = graph, ids

    def __getitem__(self, name: str) -> np.ndarray:
        return to_numpy(self._graph.values[self._ids[name]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __contains__(self, name: object) -> bool:
        return name in self._ids

    def __len__(self) -> int:
        return len(self._ids)


def _live_parameters(session: Session, plain: Sequence[Node]) -> Mapping[str, np.ndarray]:
    """The reference's floating-point parameters and buffers that an output depends on."""
    graph = session.graph
    wanted = set(graph.outputs)
    for node in reversed(plain):
        if any(o in wanted for o in node.outs):
            wanted.update(_refs(node))
    found = {
        n: i
        for n, i in graph.params().items()
        if i in wanted and graph.values.shaped(i).dtype == torch.float64
    }
    return _Parameters(graph, found)


def _refs(node: Node) -> Iterator[int]:
    leaves = torch.utils._pytree.tree_flatten((node.args, node.kwargs))[0]
    return (x.id for x in leaves if isinstance(x, Ref))


def _fixed(
    session: Session, plain: Sequence[Node], edits: Sequence[AppliedEdit]
) -> list[np.ndarray]:
    """Arrays that keep their values: numbers that the edits hold, parameters that a value put in
    place was computed from, and buffers that are no statistics (tables of positions, windows), of
    which one may be computed from another."""
    graph = session.graph
    wanted = {i for a in edits for i in a.values}
    wanted |= {graph.params()[n] for n in graph.buffers if not _is_statistic(n)}
    for node in reversed(plain):
        if any(o in wanted for o in node.outs):
            wanted.update(_refs(node))
    held = [to_numpy(graph.values[i]) for i in graph.params().values() if i in wanted]
    seen: dict[int, Any] = {}
    for a in edits:
        for edit in a.edits.values():
            held += [to_numpy(t) for t in captured(edit.fn, seen)]
    return held


def _is_statistic(name: str) -> bool:
    return any(part in name.rsplit(".", 1)[-1] for part in ("running", "mean", "var"))


def captured(value: Any, seen: dict[int, Any]) -> Iterator[torch.Tensor]:
    """Tensors that a function holds. `seen` keeps what was looked at, so that no id is given to
    another object."""
    if id(value) in seen:
        return
    seen[id(value)] = value
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, partial):
        yield from captured([value.func, value.args, value.keywords], seen)
    elif isinstance(value, Mapping):
        yield from itertools.chain.from_iterable(captured(v, seen) for v in value.values())
    elif isinstance(value, list | tuple):
        yield from itertools.chain.from_iterable(captured(v, seen) for v in value)
    elif callable(value) and hasattr(value, "__code__"):
        cells = [c.cell_contents for c in value.__closure__ or () if _filled(c)]
        defaults = [value.__defaults__ or (), value.__kwdefaults__ or {}]
        yield from captured([cells, defaults], seen)


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _put(model: Any, values: Iterable[tuple[str, np.ndarray]]) -> None:
    """Give a widened module other parameters and buffers."""
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, value in values:
            given = value if value.flags.writeable else np.array(value)
            held[name].copy_(torch.from_numpy(given).reshape(held[name].shape))


def _used(jaxpr: Any, wanted: Sequence[bool]) -> list[bool]:
    """Which of a jaxpr's inputs the wanted outputs depend on."""
    live = {id(v) for v, w in zip(jaxpr.outvars, wanted) if w}
    for eqn in reversed(jaxpr.eqns):
        needed = [id(v) in live for v in eqn.outvars]
        if not any(needed):
            continue
        inner = eqn.params.get("jaxpr") if eqn.primitive.name in ("jit", "pjit") else None
        inner = getattr(inner, "jaxpr", inner)
        uses = _used(inner, needed) if inner is not None else [True] * len(eqn.invars)
        live.update(id(v) for v, u in zip(eqn.invars, uses) if u)
    return [id(v) in live for v in jaxpr.invars]


Source = tuple[int, Callable[[np.ndarray], np.ndarray]]
"""Which of the reference's inputs an input of the port is, and how it is made from it."""


def _source(x: np.ndarray, place: int, inputs: Arrays) -> Source | None:
    order = sorted(range(len(inputs)), key=lambda k: (k != place, k))
    for k in order:
        mine = inputs[k]
        if mine.size != x.size:
            continue
        if mine.shape == x.shape and np.array_equal(mine, x, equal_nan=mine.dtype.kind == "f"):
            return k, lambda y: y
        if mine.ndim == x.ndim <= 5:
            for axes in itertools.permutations(range(x.ndim)):
                moved = mine.transpose(axes)
                if moved.shape == x.shape and np.array_equal(moved, x):
                    return k, lambda y, a=axes: y.transpose(a)
        if np.array_equal(mine.reshape(x.shape), x):
            return k, lambda y, s=x.shape: y.reshape(s)
    return None


def _is_plain(x: np.ndarray) -> bool:
    """True for constants, and for integers that count along the last axis."""
    if x.size < 2 or (x == x.flat[0]).all():
        return True
    counted = np.broadcast_to(np.arange(x.shape[-1]) + x[..., :1], x.shape)
    return x.dtype.kind in "iu" and bool((x == counted).all())


def _alike(arrays: Arrays, first: Arrays, names: Sequence[str]) -> list[np.ndarray]:
    """The arrays, if they are of the first ones' shapes and kinds."""
    if len(arrays) != len(first):
        raise PortError(f"{len(arrays)} inputs were given; the report is of {len(first)}")
    for x, y, name in zip(arrays, first, names):
        if x.shape != y.shape or x.dtype.kind != y.dtype.kind:
            raise PortError(
                f"{name} is {x.shape} {x.dtype}; the report is of {y.shape} {y.dtype}: "
                "explain the two on inputs of that shape"
            )
    return [x.astype(y.dtype, copy=False) for x, y in zip(arrays, first)]
