"""The port's lines of a finding: where in an expression the two computations diverge.

One operation of PyTorch's is several of a port, and often several lines. Both versions of the
operation, as the reference has it and as the edit makes it, are computed step by step; the port's
line is that of its first value that only the edited version has.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from twinvit.port.index import distance
from twinvit.port.ops import DECOMPOSED
from twinvit.port.ops.primitives import CONVERSIONS, LAYOUT
from twinvit.port.record.graph import Node, flat_tensors
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.search.session import Session
from twinvit.port.search.trial import AppliedEdit

aten = torch.ops.aten
_EQUAL = 1e-11
FAR = 0.1  # the nearest of the arrays of its size is likely another one
_PLACED = ("cause", "precision")  # what an edit of an operation is, and not of a parameter
_REGION = 64  # values of the port between an operation's operands and its result, at most


def lines_of(session: Session, made: AppliedEdit) -> tuple[list[str], list[str]]:
    """The reference's and the port's line of each place, in their order, each once."""
    groups = made.groups or [list(made.edits)]
    mine = [made.replaced[g[0]].where for g in groups if g and g[0] in made.replaced]
    if made.lines:  # those of the program that was taken
        return _distinct([made.node.where, *mine]), _distinct(made.lines)
    theirs = [_line(session, made, g) for g in groups] if made.kind in _PLACED else []
    named = _distinct(theirs)
    if not named:
        far = made.kind == "unknown" and not made.values and made.before >= FAR
        known, guessed = [made.jax], [_after_found(session, made.node)]
        named = _distinct(guessed if far else known) or _distinct([*known, *guessed])[:1]
    return _distinct([made.node.where, *mine]), named


def _distinct(lines: list[str]) -> list[str]:
    return list(dict.fromkeys(line for line in lines if line))


def _line(session: Session, made: AppliedEdit, group: list[int]) -> str:
    before = {i: made.replaced[i] for i in group if i in made.replaced}
    after = {i: made.made[i] for i in group if i in made.made}
    ends = _ends(session, after)
    region = _region(session, ends)
    theirs = _held(session, region, after)
    own = sorted(theirs - _held(session, region, before))
    chosen: int = own[0] if own else max(ends, default=-1)
    return session.index.entries[chosen].where if chosen >= 0 else ""


def _after_found(session: Session, node: Node) -> str:
    """Where nothing of the port has the operation's numbers, or these are too few to tell: the line
    at which the port first computes something from what the operation's operands were found as."""
    rest, found = list(node.refs), set()
    seen = set(rest)
    while rest:
        value = rest.pop()
        entry = session.match.get(session.root[value])
        producer = session.graph.producer[value]
        if entry is not None and entry >= 0:
            found.add(entry)
        elif producer is not None:
            more = [r for r in session.graph.nodes[producer].refs if r not in seen]
            seen.update(more)
            rest += more
    claimed = session.claimed()
    for made in session.index.entries:
        if not found.intersection(made.parents):
            continue
        if made.name in LAYOUT or made.name in CONVERSIONS:  # the same values
            found.add(made.id)
        elif made.where and made.id not in claimed:
            return made.where
    return ""


def _ends(session: Session, nodes: Mapping[int, Node]) -> list[int]:
    """The port's values that the operations' results are."""
    found = []
    for node in nodes.values():
        for out in node.outs:
            if out is None:
                continue
            entry = session.match.get(session.root[out])
            if entry is not None and entry < 0:  # an output, judged by itself
                entry = session.index.find(to_numpy(session.graph.values[out]), _EQUAL)
            if entry is not None and entry >= 0:
                found.append(entry)
    return found


def _region(session: Session, ends: list[int]) -> set[int]:
    """The port's values on the way from values of the reference to these, themselves among them."""
    known = {e for e in session.match.values() if e is not None} - set(ends)
    entries = session.index.entries
    region, rest = set(ends), list(ends)
    while rest and len(region) < _REGION:
        for parent in entries[rest.pop()].parents:
            if parent >= 0 and parent not in region and parent not in known:
                if entries[parent].name not in ("parameter", "input", "constant"):
                    region.add(parent)
                    rest.append(parent)
    return region


def _held(session: Session, region: set[int], nodes: Mapping[int, Node]) -> set[int]:
    """The values of the region that are steps of these operations."""
    found: set[int] = set()
    for node in nodes.values():
        args, kwargs = session.graph.arguments(node)
        inside = _Inside()
        try:
            with torch.no_grad(), inside:
                out = node.op(*args, **kwargs)
        except Exception:
            continue
        values = [*inside.values, *flat_tensors(out)]
        floats = [to_numpy(t.double()) for t in values if t is not None and t.is_floating_point()]
        steps = [_Step(x) for x in floats]
        found.update(i for i in region if any(x.equals(session, i) for x in steps))
    return found


class _Step:
    """What an operation computes on the way; its elements are put in order once, if at all."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    @functools.cached_property
    def sorted(self) -> np.ndarray | None:
        """The numbers in order; None if they are not all finite."""
        if not np.isfinite(self.array).all():
            return None
        return np.sort(self.array.reshape(-1))

    def equals(self, session: Session, entry: int) -> bool:
        """True for the elements of a value of the port."""
        theirs = session.index.sorted(entry)
        if theirs is None:
            theirs = session.index.entries[entry].few
        if theirs is None or theirs.size != self.array.size or self.sorted is None:
            return False
        return distance(theirs, self.sorted) <= _EQUAL


class _Inside(TorchDispatchMode):
    """Keeps what an operation computes on the way, composed operations step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[torch.Tensor | None] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        steps = _decompositions().get(func)
        if steps is not None:
            with self:
                out = steps(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        self.values += flat_tensors(out)
        return out


@functools.cache
def _decompositions() -> dict[Any, Any]:
    try:
        from torch._decomp import get_decompositions
    except ImportError:  # then the line is that of the operation's result
        return {}
    return dict(get_decompositions([getattr(aten, name) for name in DECOMPOSED]))
