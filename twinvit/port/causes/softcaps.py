"""Values that are capped softly, c * tanh(x / c): attention's scores and a head's logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from twinvit.port.call import Call
from twinvit.port.causes import Variant, cause
from twinvit.port.record.graph import Graph, Node

CAPS = (20.0, 30.0, 50.0, 15.0)


class Cap(NamedTuple):
    """A soft cap of the reference's: the value that is capped, the last operation, the cap."""

    value: int
    end: int
    cap: float


def _only_user(graph: Graph, value: int | None) -> Node | None:
    users = graph.consumers.get(value, ()) if value is not None else ()
    return graph.nodes[users[0]] if len(users) == 1 else None


def _made_by(graph: Graph, value: int) -> Node | None:
    producer = graph.producer[value]
    return None if producer is None else graph.nodes[producer]


def _factor(graph: Graph, node: Node | None) -> float | None:
    """The number that an operation multiplies by; None if it does something else."""
    if node is None or node.name not in ("mul", "div") or not node.refs:
        return None
    other = graph.arguments(node)[0][1]
    if isinstance(other, torch.Tensor) and other.numel() == 1 and len(node.refs) == 2:
        if node.refs[1] in graph.input_dependent() or node.refs[1] in graph.trained():
            return None
        other = float(other)
    if not isinstance(other, int | float) or not other:
        return None
    return 1 / other if node.name == "div" else float(other)


def cap_at(call: Call) -> Cap | None:
    """The soft cap that an operation is part of; None if it is part of none."""
    graph, node = call.graph, call.node
    if node.name != "tanh":
        after, before = _only_user(graph, node.outs[0]), _made_by(graph, node.refs[0])
        found = next((n for n in (after, before) if n is not None and n.name == "tanh"), None)
        if found is None:
            return None
        node = found
    first, last = _made_by(graph, node.refs[0]), _only_user(graph, node.outs[0])
    inner, outer = _factor(graph, first), _factor(graph, last)
    if first is None or last is None or inner is None or outer is None:
        return None
    if abs(inner * outer - 1) > 1e-9 or abs(outer - 1) < 1e-9 or outer < 0:
        return None
    return Cap(first.refs[0], last.index, outer)


def _capped(x: torch.Tensor, cap: float) -> torch.Tensor:
    return cap * torch.tanh(x / cap)


@cause("softcap_missing", on=("tanh", "mul", "div"))
def softcap_missing(call: Call) -> Iterator[Variant]:
    """The port does not cap values softly, c * tanh(x / c), where the reference does."""
    found = cap_at(call)
    if found is not None:
        c = f"{found.cap:g}"
        text = f"the port does not cap values softly; the reference by {c} * tanh(x / {c})"
        yield Variant(text, lambda x: x.clone(), refs=(found.value,), node=found.end)


@cause("softcap_value", on=("tanh", "mul", "div"))
def softcap_value(call: Call) -> Iterator[Variant]:
    """The port caps values softly at another number."""
    found = cap_at(call)
    if found is None:
        return
    x = call.graph.values[found.value]
    for t in call.solve(lambda t: _capped(x, t), 1e-2, 1e4, grid=CAPS):
        if abs(t - found.cap) > 1e-9 * found.cap:
            yield Variant(
                f"the port caps values softly at {t:g}; the reference at {found.cap:g}",
                lambda x, t=t: _capped(x, t),
                refs=(found.value,),
                node=found.end,
                solved=(t, found.cap),
            )


@cause("softcap_added", on=())
def softcap_added(_: Call) -> Iterator[Variant]:
    """The port caps values softly, c * tanh(x / c), where the reference does not (known from an
    expression)."""
    return iter(())
