"""Values of which the reference reads the order alone: before argmin, argmax, sort or topk.

A port may compute any increasing function of them (squared distances for distances, logits for
probabilities, distances without the part that all candidates share): its choices are the same for
every input.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from twinvit.port import verdict
from twinvit.port.index import evidence, layouts
from twinvit.port.ops import AXIS_AT, INDICES, WITH_INDICES
from twinvit.port.ops.primitives import CHOOSING
from twinvit.port.record.graph import Node
from twinvit.port.record.torch_values import to_numpy

if TYPE_CHECKING:
    from twinvit.port.search.session import Session

ENTRIES = 32  # values of the port that are tried for one of the reference
LEAST = 1e-12


def chosen_by_order(session: Session) -> Iterator[tuple[int, Node]]:
    """Roots without an equal in the port of which nothing but the order is read, and the operation
    that reads it."""
    graph = session.graph
    for node in graph.nodes:
        if node.index not in session.live or not node.refs or not _order_alone(session, node):
            continue
        root = session.root[node.refs[0]]
        if root not in session.match or session.match[root] is not None:
            continue
        same = [i for i, r in session.root.items() if r == root]
        users = [graph.nodes[u] for i in same for u in graph.consumers.get(i, ())]
        read = [u for u in users if u.index in session.live and not _layout_of(session, u, root)]
        if not set(same) & set(graph.outputs) and all(_order_alone(session, u) for u in read):
            yield root, node


def find_by_order(session: Session, node: Node) -> int | None:
    """The port's first value that is a + b f(x) along the axis that `node` chooses on, of its
    operand x, and that the port chooses by: f is x, its square, its logarithm or the inverse of a
    sigmoid, b one number, a one of each row. None without such a value."""
    mine = to_numpy(session.graph.values[node.refs[0]])
    if mine.dtype != np.float64 or not np.isfinite(mine).all():
        return None
    axis = _axis(session, node)
    forms = [_centred(f, axis) for f in _forms(mine)]
    tolerance = max(LEAST, verdict.tolerance(session.noise.get(node.refs[0])))
    for entry_id, value in _choosers(session, mine.size):
        for moved in layouts(value, mine.shape)[:6]:
            if verdict.relative(mine, moved) <= tolerance:  # masks by their places
                return entry_id
            for theirs in _forms(moved):
                centred = _centred(theirs, axis)
                if any(_proportional(f, centred, tolerance) for f in forms):
                    return entry_id
    return None


def other_choices(session: Session) -> list[str]:
    """Choices of the reference of whose operand the port chooses by no increasing function, though
    it chooses among as many elements; one text each."""
    texts = []
    for node in session.graph.nodes:
        if node.index not in session.live or not _chooses(session, node):
            continue
        value = session.graph.values[node.refs[0]]
        if value.dtype != torch.float64 or not evidence(to_numpy(value)):
            continue
        if not value.isfinite().all() or session.noise.get(node.refs[0]) > verdict.UNJUDGED:
            continue
        if _choosers(session, value.numel()) and find_by_order(session, node) is None:
            texts.append(
                f"{node.place} ({node.where}) chooses by other numbers than the port, which happen "
                "to lead to the same choice"
            )
    return list(dict.fromkeys(texts))[:4]


def _choosers(session: Session, size: int) -> list[tuple[int, np.ndarray]]:
    """Values of the port of this many finite values that it chooses by, with their ids."""
    entries = session.index.entries
    wanted = {k for e in entries if e.name in CHOOSING for k in e.parents if k >= 0}
    held = [(k, entries[k].value) for k in sorted(wanted)]
    return [(k, v) for k, v in held if v is not None and v.size == size and np.isfinite(v).all()][
        :ENTRIES
    ]


def _chooses(session: Session, node: Node) -> bool:
    """True if something reads which numbers the operation chose."""
    if node.name in INDICES:
        return True
    if node.name not in WITH_INDICES or len(node.outs) != 2 or node.outs[1] is None:
        return False
    users = session.graph.consumers.get(node.outs[1], ())
    return node.outs[1] in session.graph.outputs or any(u in session.live for u in users)


def _order_alone(session: Session, node: Node) -> bool:
    if node.name in INDICES:
        return True
    if node.name not in WITH_INDICES or len(node.outs) != 2:
        return False
    first = node.outs[0]
    if first is None:
        return True
    users = session.graph.consumers.get(first, ())
    return first not in session.graph.outputs and not any(u in session.live for u in users)


def _layout_of(session: Session, node: Node, root: int) -> bool:
    """True for an operation whose result is the same values, in another layout."""
    return bool(node.outs) and all(o is not None and session.root[o] == root for o in node.outs)


def _axis(session: Session, node: Node) -> int | None:
    """The axis along which the operation chooses; None: among all numbers."""
    args, kwargs = session.graph.arguments(node, {})
    place = AXIS_AT[node.name]
    given = kwargs.get("dim", args[place] if len(args) > place else None)
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    return None if node.name in ("argmax", "argmin") else -1


def _forms(x: np.ndarray) -> list[np.ndarray]:
    """Increasing functions of `x`: the square and the logarithm of what is positive, the inverse
    of a sigmoid of what is between 0 and 1."""
    forms = [x]
    if (x >= 0).all():
        forms.append(x * x)
    if (x > 0).all():
        forms.append(np.log(x))
        if (x < 1).all():
            forms.append(np.log(x) - np.log1p(-x))
    return forms


def _centred(x: np.ndarray, axis: int | None) -> np.ndarray:
    return x - x.mean(axis=axis, keepdims=True)


def _proportional(mine: np.ndarray, theirs: np.ndarray, tolerance: float) -> bool:
    """True if one is the other times a number, and that proves something."""
    square = float((theirs * theirs).sum())
    if not evidence(mine) or not 0 < square < np.inf:
        return False
    return verdict.relative(mine, theirs * (float((mine * theirs).sum()) / square)) <= tolerance
