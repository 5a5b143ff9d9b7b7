"""Steps whose operand lies within rounding of their edge, and whose other side the port took."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from twinvit.port import verdict
from twinvit.port.ops import CHOICES, STEPS
from twinvit.port.record.graph import Edit, Graph, Node, flat_tensors
from twinvit.port.search.session import Session

FLIPS = 64  # numbers of one step that are turned one by one
SEEDS = 8
MUCH = 2.0  # times nearer, which no chance makes of outputs that all differ for another reason


def step_operands(graph: Graph) -> set[int]:
    """Ids of the floating-point values that a step takes."""
    return {
        ref
        for node in graph.nodes
        if _is_step(graph, node)
        for ref in node.refs
        if graph.values.shaped(ref).is_floating_point()
    }


def other_sides(session: Session) -> list[str]:
    """Take the port's side of steps at their edge, where this brings outputs nearer; one text for
    each such step. The graph keeps that side: what is left to explain is something else."""
    texts = []
    for node in session.graph.nodes:
        if session.outputs_agree():
            break
        if node.index not in session.live or not _is_step(session.graph, node):
            continue
        edit = _turned(session, node)
        if edit is not None:
            session.apply({node.index: edit})
            texts.append(
                f"{node.place} ({node.where}) lies within rounding of its edge, and the port "
                "took the other side"
            )
    return texts


def _is_step(graph: Graph, node: Node) -> bool:
    if node.name in STEPS or node.name in CHOICES:
        return any(graph.values.shaped(r).is_floating_point() for r in node.refs)
    out = graph.values.shaped(node.outs[0]) if node.outs and node.outs[0] is not None else None
    return (
        out is not None
        and not out.is_floating_point()
        and not out.is_complex()
        and any(graph.values.shaped(r).is_floating_point() for r in node.refs)
    )


def _turned(session: Session, node: Node) -> Edit | None:
    """The operation with those of its results that rounding can turn taken as the port took
    them; None if that brings nothing nearer. Where all numbers differ still, for another reason,
    to be a little nearer is chance."""
    recorded = [session.graph.values[o] for o in node.outs if o is not None]
    now = recorded
    first = best = _far(session, node, recorded)
    for other in _alternatives(session, node):
        far = _far(session, node, other)
        if far < best:
            now, best = other, far
        for place in _differing(now, other)[:FLIPS] if best[0] else ():
            trial = [_with(a, b, tuple(place.tolist())) for a, b in zip(now, other)]
            far = _far(session, node, trial)
            if far < best:
                now, best = trial, far
        if not best[0]:
            break
    if best[0] >= first[0] and best[1] > first[1] / MUCH:
        return None
    return Edit(_given(now))


def _alternatives(session: Session, node: Node) -> Iterator[list[torch.Tensor]]:
    """The step's results where its operands are moved within 100 roundings of their own, each
    other one once."""
    graph, seen = session.graph, list[list[torch.Tensor]]()
    operands = [r for r in node.refs if graph.values.shaped(r).is_floating_point()]
    moves = [graph.values[r].abs() * verdict.EPS for r in operands]
    for k, r in enumerate(operands):
        measured = session.noise.elements.get(r)
        if measured is not None:
            moves[k] = moves[k] + torch.from_numpy(measured)
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        moved = {}
        for r, move in zip(operands, moves):
            if seed < 2:
                sign = torch.full(move.shape, 1.0 if seed else -1.0, dtype=torch.float64)
            else:
                sign = torch.rand(move.shape, generator=generator, dtype=torch.float64) * 2 - 1
            moved[r] = graph.values[r] + verdict.FACTOR * move * sign
        args, kwargs = graph.arguments(node, moved)
        outs = [t for t in flat_tensors(node.op(*args, **kwargs)) if t is not None]
        outs = _exactly(graph, node, outs)
        first = [graph.values[o] for o in node.outs if o is not None]
        if [t.shape for t in outs] == [t.shape for t in first] and not any(
            all(torch.equal(a, b) for a, b in zip(outs, other)) for other in (first, *seen)
        ):
            seen.append(outs)
            yield outs


def _exactly(graph: Graph, node: Node, outs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The moved results, with numbers that did not jump as they were recorded."""
    result = []
    for out, value in zip((o for o in node.outs if o is not None), outs):
        first = graph.values[out]
        if value.shape == first.shape and value.is_floating_point():
            near = (value - first).abs() <= 1e-6 * (value.abs() + first.abs()) + 1e-12
            value = torch.where(near, first, value)
        result.append(value)
    return result


def _differing(now: list[torch.Tensor], other: list[torch.Tensor]) -> torch.Tensor:
    """Places of the first result at which some result differs, one row each."""
    different = torch.zeros(now[0].shape, dtype=torch.bool)
    for a, b in zip(now, other):
        if a.shape == different.shape:
            different |= a != b
    return different.nonzero()


def _with(now: torch.Tensor, other: torch.Tensor, place: tuple[int, ...]) -> torch.Tensor:
    result = now.clone()
    if len(place) == now.ndim:
        result[place] = other[place]
    return result


def _given(results: list[torch.Tensor]) -> Callable[..., object]:
    """An operation that returns these results."""
    values = [t.clone() for t in results]
    return lambda *args, **kwargs: values[0] if len(values) == 1 else tuple(values)


def _far(session: Session, node: Node, results: list[torch.Tensor]) -> tuple[int, float]:
    """How many elements of the outputs differ, and how far, with these results of an operation."""
    graph = session.graph
    changed = graph.run({node.index: Edit(_given(results))}, first=node.index)
    told = [session.judge_output(k, changed.get(o)) for k, o in enumerate(graph.outputs)]
    return sum(d.different for d in told), sum(min(d.relative, 1e9) for d in told)
