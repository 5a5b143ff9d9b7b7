"""Rotary positions that rotate only the first elements of each head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from twinvit.port.call import Call
from twinvit.port.causes import Variant, cause
from twinvit.port.causes.rope import _half, _interleaved, _rotation, _turns
from twinvit.port.ops import LAYOUT
from twinvit.port.record.graph import Graph, Node


@dataclass
class Rotation:
    """A rotation x * cos + rotate(x) * sin of the first elements of each head.

    Attributes:
        whole: id of the value with all elements of a head.
        size, part: elements of a head, and how many of them are rotated.
        half: whether halves are rotated, or pairs of neighbours.
        base: of the frequencies base ** (-2 j / part).
        first: the first position.
        axis: the positions' axis of the tables, counted from the end.
        end: index of the operation whose result has all elements.
        positions: how many positions the tables have.
    """

    whole: int
    size: int
    part: int
    half: bool
    base: float
    first: float
    axis: int
    end: int
    positions: int


def _rotation_at(call: Call) -> Rotation | None:
    found = _rotation(call)
    if found is None:
        return None
    graph = call.graph
    x, cos, sin, half = found
    turns = _turns(graph.values[cos], graph.values[sin])
    part = int(graph.values[x].shape[-1])
    if turns is None or part < 4 or not bool((turns[1] > 0).all()):
        return None
    first, step = turns
    own = step.chunk(2)[0] if half else step[::2]
    base = float((own[0] / own[-1]) ** (own.numel() / (own.numel() - 1)))
    shape = graph.values[cos].shape
    axis = next(a for a in range(len(shape) - 2, -1, -1) if shape[a] > 1)
    if abs(float(own[0]) - 1) > 1e-6:
        return None
    whole, size, end = x, part, call.node.index
    source = _slice_of(graph, x)
    behind = _joined(graph, call.node)
    if source is not None and behind is not None and behind.outs[0] is not None:
        rest = [r for r in behind.refs if r != call.node.outs[0]]
        if len(rest) == 1 and _slice_of(graph, rest[0]) == source:
            whole, size, end = source, int(graph.values[source].shape[-1]), behind.index
    positions = int(shape[axis])
    return Rotation(
        whole, size, part, half, float(f"{base:.6g}"), round(float(first[0])),
        axis - len(shape), end, positions,
    )  # fmt: skip


def _slice_of(graph: Graph, value: int) -> int | None:
    """The value that one is a slice of, along its last axis."""
    producer = graph.producer[value]
    node = graph.nodes[producer] if producer is not None else None
    if node is None or node.name not in ("slice", "split", "split_with_sizes", "narrow"):
        return None
    own, source = graph.values[value].shape, graph.values[node.refs[0]].shape
    return node.refs[0] if own[:-1] == source[:-1] and own[-1] < source[-1] else None


def _joined(graph: Graph, node: Node) -> Node | None:
    """The concatenation that takes an operation's result first."""
    users = graph.consumers.get(node.outs[0] or 0, ())
    found = graph.nodes[users[0]] if len(users) == 1 else None
    if found is None or found.name != "cat" or len(found.refs) != 2:
        return None
    return found if found.refs[0] == node.outs[0] else None


def _rotated(found: Rotation, part: int) -> Callable[..., torch.Tensor]:
    """The rotation of the first `part` elements instead, with the frequencies of that number."""
    rotate = _half if found.half else _interleaved

    def fn(x: torch.Tensor) -> torch.Tensor:
        j = torch.arange(part // 2, dtype=x.dtype)
        n = torch.arange(found.positions, dtype=x.dtype) + found.first
        angles = n[:, None] * found.base ** (-2 * j / part)
        angles = torch.cat([angles, angles], -1) if found.half else angles.repeat_interleave(2, -1)
        angles = angles.reshape(found.positions, *(1,) * (-found.axis - 2), part)
        kept = x[..., :part]
        turned = kept * angles.cos() + rotate(kept) * angles.sin()
        return torch.cat([turned, x[..., part:]], -1)

    return fn


@cause("rope_partial", on="add")
def rope_partial(call: Call) -> Iterator[Variant]:
    """The port rotates another part of each head's elements (all for half of them)."""
    found = _rotation_at(call)
    if found is None:
        return
    for part in range(2, found.size + 1, 2):
        if part != found.part:
            yield Variant(
                f"the port rotates {part} of each head's {found.size} numbers; the reference "
                f"{found.part}",
                _rotated(found, part),
                refs=(found.whole,),
                node=found.end,
            )


@cause("rope_layout", on="bmm")
def no_rotation(call: Call) -> Iterator[Variant]:
    """The port rotates neither queries nor keys."""
    graph = call.graph
    first, second = (_rotation_before(graph, ref) for ref in call.node.refs[:2])
    if first is not None and second is not None:
        (q, x), (k, y) = first, second
        yield Variant(
            "the port rotates neither queries nor keys",
            lambda x: x.clone(),
            refs=(x,),
            node=q.index,
            also=((k.index, lambda x: x.clone()),),
            also_refs=((y,),),
        )


def _rotation_before(graph: Graph, ref: int) -> tuple[Node, int] | None:
    """The rotation that a product's operand is a layout of, and what it rotates."""
    for _ in range(8):
        producer = graph.producer[ref]
        node = graph.nodes[producer] if producer is not None else None
        if node is None or not node.refs:
            return None
        if node.name == "add":
            found = _rotation(Call(graph, node))
            return None if found is None else (node, found[0])
        if node.name not in LAYOUT and node.name != "cat":
            return None
        ref = node.refs[0]
    return None
