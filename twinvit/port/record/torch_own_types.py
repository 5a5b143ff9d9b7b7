"""The dtypes that a recorded PyTorch program's values have as it runs."""

from __future__ import annotations

from bisect import bisect_right

import torch

from twinvit.port.ops import LAYOUT
from twinvit.port.record.graph import Graph, Node
from twinvit.port.record.own_types import OwnTypes, Rounding, Types, digits
from twinvit.port.record.torch_types import Conversion, Listener


def own_types(graph: Graph, listener: Listener) -> OwnTypes:
    """Those of a recording in float64, from a run of the model as it is that has the same
    operations."""
    types = OwnTypes()
    made: dict[tuple[int | str, int], int] = {}
    for i, source in enumerate(graph.source):
        if (source, 0) in listener.held:
            made[source, 0] = i
            types.add(i, listener.held[source, 0])
    for node in graph.nodes:
        k = bisect_right(graph.heard_at, node.index) - 1
        for position, out in enumerate(node.outs):
            if out is None:
                continue
            if _asked(node) is None:
                made.setdefault((k, position), out)
            held = _held(node, k, position, types, listener)
            if held:
                types.add(out, held)
    for conversion in listener.conversions:
        value = made.get(conversion.made)
        if value is not None and digits(conversion.dtype) < digits(conversion.before):
            types.roundings.append(_rounding(graph, conversion, value))
    return types


def _asked(node: Node) -> str | None:
    """The dtype that a conversion's name requests; None for other operations."""
    if node.narrowed is None or not node.refs:
        return None
    return str(node.narrowed).removeprefix("torch.")


def _held(
    node: Node, k: int, position: int, types: OwnTypes, listener: Listener
) -> set[str] | Types:
    asked = _asked(node)
    if asked is not None:
        return {asked}
    before = types.held.get(node.refs[0]) if node.refs else None
    if node.name in LAYOUT and before:
        return before
    return listener.held.get((k, position), set())


def _rounding(graph: Graph, conversion: Conversion, value: int) -> Rounding:
    """A conversion of a value, with the operations that take its result where the recording in
    float64 has none that makes it."""
    users: list[int] = []
    for k in conversion.users:
        after = graph.heard_at[k + 1] if k + 1 < len(graph.heard_at) else len(graph.nodes)
        inside = graph.nodes[graph.heard_at[k] : after]
        users += [n.index for n in inside if value in n.refs and _asked(n) is None]
    where = conversion.where
    return Rounding(value, conversion.dtype, where, where, tuple(users))


def as_recorded(graph: Graph) -> OwnTypes:
    """Those of a recording in the model's own types."""
    types = OwnTypes()
    for i, value in enumerate(graph.values):
        if isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex()):
            types.add(i, {str(value.dtype).removeprefix("torch.")})
    return types
