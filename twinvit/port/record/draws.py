"""Where a recorded program multiplies values by random zeros and ones."""

from __future__ import annotations

from typing import Any

import torch

from twinvit.port.ops import RANDOM
from twinvit.port.record.graph import Graph, Node, Ref

SCALINGS = ("mul", "div")
CHAIN = 2  # scalings beside a dropout that are its own


def meeting(graph: Graph) -> dict[int, Node]:
    """Operations at which random numbers meet values that depend on inputs, by position."""
    drawn, dependent = graph.drawn(), graph.input_dependent()
    return {
        n.index: n
        for n in graph.nodes
        if any(o in dependent for o in n.outs)
        and (n.name in RANDOM or any(r in drawn for r in n.refs))
    }


def given_to(graph: Graph, node: Node) -> int | None:
    """The value that an operation multiplies by random numbers, of the shape of its result; None
    where it does something else."""
    drawn, dependent = graph.drawn(), graph.input_dependent()
    given = [r for r in node.refs if r in dependent and r not in drawn]
    random = node.name == "native_dropout" or any(r in drawn for r in node.refs)
    if not random or len(given) != 1 or not node.outs or node.outs[0] is None:
        return None
    x, y = graph.values[given[0]], graph.values[node.outs[0]]
    return given[0] if x.dtype == y.dtype == torch.float64 and x.shape == y.shape else None


def scaled_from(graph: Graph, value: int) -> list[int]:
    """A value, and those that it is made of by scalings with a number, the nearest first."""
    found = [value]
    while len(found) <= CHAIN:
        producer = graph.producer[found[-1]]
        if producer is None or not _scaling(graph, graph.nodes[producer]):
            break
        found.append(graph.nodes[producer].refs[0])
    return found


def scaled_to(graph: Graph, value: int) -> list[int]:
    """A value, and those that are made of it alone by scalings with a number, the nearest first."""
    found = [value]
    while len(found) <= CHAIN:
        users = graph.consumers.get(found[-1], ())
        after = graph.nodes[users[0]] if len(users) == 1 else None
        if after is None or not _scaling(graph, after) or after.outs[0] is None:
            break
        found.append(after.outs[0])
    return found


def _scaling(graph: Graph, node: Node) -> bool:
    """True for a value times or over a number."""
    if node.name not in SCALINGS or len(node.args) != 2 or not isinstance(node.args[0], Ref):
        return False
    return _number(node.args[1], graph)


def _number(x: Any, graph: Graph) -> bool:
    if not isinstance(x, Ref):
        return isinstance(x, int | float)
    fixed = graph.input_dependent() | graph.trained() | graph.drawn()
    return graph.values[x.id].numel() == 1 and x.id not in fixed
