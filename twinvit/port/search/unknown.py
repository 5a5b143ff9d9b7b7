"""Where no cause explains an operation: the port's value in its place, and how the two differ."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from twinvit.port.index import distance, layouts
from twinvit.port.ops import LAYOUT, MIXING, MOVES
from twinvit.port.record.graph import Node
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.report import Operation
from twinvit.port.search.constants import narrow_everywhere
from twinvit.port.search.formula import same_kind
from twinvit.port.search.residual import residual
from twinvit.port.search.session import Session, Snapshot
from twinvit.port.search.transplant import at_value, described, first_lacking, safely
from twinvit.port.search.trial import NARROW, AppliedEdit

TRIES = 800  # values of the port that are put in place for one unknown
NEXT = 4  # values of one line of the port that are put in place for a further unknown
LATER = 8  # operations after an unknown at which the search can begin again

_Put = tuple[int, float, int, np.ndarray, int]
"""What is regained, the distance, the port's entry and its value, and the place it is put at."""


_UNEXPLAINED = "no catalogued cause explains this operation"


def substitute(session: Session, front: Node) -> AppliedEdit:
    """Put the port's value in the reference's place, where one can be told, and describe the
    difference."""
    out = next((o for o in front.outs if o is not None and session.status(o) == "lost"), None)
    value = to_numpy(session.graph.values[out]) if out is not None else np.zeros(0)
    best: _Put | None = None
    if out is not None and value.dtype == np.float64:
        best = _put(session, front, _places(session, front, out))
        if best is None or best[0] <= 1:
            best = _put(session, front, _later(session, front), best, 96)
    if best is None or out is None:
        return _not_placed(session, front, out, value)
    gain, far, entry, moved, place = best
    told = gain > 1 or (gain == 1 and place == out and not session.graph.consumers.get(place))
    near = session.index.nearest(value)
    before = near[0][0] if near else float("inf")
    text = _UNEXPLAINED + _difference(session, out, best, told)
    if told:
        taken = safely(session, front, partial(at_value, session, front, place, entry))
        if taken is not None:
            return taken
        reason = safely(session, front, partial(described, session, front, entry))
    else:
        reason = safely(session, front, partial(first_lacking, session, front))
    text += _no_number(session, out) + (f"; {reason}" if reason else "")
    where = session.index.entries[entry].where
    if not told:
        return AppliedEdit("unknown", "", text, front, {}, {}, where, before, before, [front.place])
    kind = "unknown"
    present = to_numpy(session.graph.values[place]).copy()
    values = {place: torch.from_numpy(moved)}
    pinned = session.pin(values)
    free = session.graph.input_dependent() | session.graph.trained()
    if 1e-12 < far < NARROW and place not in free and narrow_everywhere(present, moved):
        kind = "precision"
        text = f"a constant that one side makes in a narrower type, {far:.1e} apart"
    done = AppliedEdit(kind, "", text, front, {}, values, where, before, 0.0, [front.place])
    done = done.took(*pinned)
    if kind == "unknown":
        done.again = partial(_again, session, done, _Kind(front, place, entry, {entry}))
    return done


def _not_placed(session: Session, front: Node, out: int | None, value: np.ndarray) -> AppliedEdit:
    """The finding where no value of the port can be put in place."""
    near = session.index.nearest(value) if value.dtype == np.float64 else []
    far = near[0][0] if near else float("inf")
    where = session.index.entries[near[0][1]].where if near else ""
    text = _UNEXPLAINED
    if far == float("inf"):
        text += ", and the port holds no array of its size"
    reason = safely(session, front, partial(first_lacking, session, front))
    text += _no_number(session, out) + (f"; {reason}" if reason else "")
    return AppliedEdit("unknown", "", text, front, {}, {}, where, far, far, [front.place])


def _difference(session: Session, out: int, best: _Put, told: bool) -> str:
    """How the port's value differs from the reference's at its place, in words; "" where the two
    may have nothing to do with each other."""
    _, far, _, moved, place = best
    if not told and not (far < 0.5 and place == out):
        return ""
    shape = residual(to_numpy(session.graph.values[place]), moved)
    if not shape:
        return ""
    seen = session.graph.nodes[session.graph.producer[place] or 0].place
    return (f"; seen at {seen}" if place != out else "") + (
        f"; the port's value minus the reference's {shape}"
    )


@dataclass
class _Kind:
    """What an unknown at one place has in common with others: the divergence, the value that was
    put in place and the port's entry, and all entries of the kind that were put in place."""

    front: Node
    place: int
    entry: int
    used: set[int]


def _again(session: Session, done: AppliedEdit, kind: _Kind, front: Node) -> bool:
    """Put what the same line of the port computes in place at another divergence of the same kind,
    if that regains as much as anything can be asked of."""
    graph, entries = session.graph, session.index.entries
    first = graph.producer[kind.place]
    if first is None or not same_kind(front, kind.front):
        return False
    index = front.index + first - kind.front.index
    if not 0 <= index < len(graph.nodes) or not same_kind(graph.nodes[index], graph.nodes[first]):
        return False
    place = graph.nodes[index].outs[graph.nodes[first].outs.index(kind.place)]
    if place is None or graph.values[place].shape != graph.values[kind.place].shape:
        return False
    model = entries[kind.entry]
    alike = (
        e.id
        for e in entries[kind.entry + 1 :]
        if (e.name, e.where, e.shape) == (model.name, model.where, model.shape)
        and e.id not in kind.used
    )
    best = _best_of(session, front, place, list(alike)[:NEXT])
    if best is None or best[0] <= 1:
        return False
    kind.used.add(best[2])
    values = {place: torch.from_numpy(best[3])}
    replaced, made, originals = session.pin(values)
    done.values.update(values)
    done.replaced.update(replaced)
    done.made.update(made)
    done.originals.update(originals)
    done.places.append(front.place)
    return True


def without_unknown(
    session: Session,
    start: Snapshot,
    accepted: Sequence[AppliedEdit],
) -> float:
    """The outputs' distance with the causes' edits alone; the session is left as it was."""
    try:
        with _known_alone(session, start, accepted):
            return session.output_distance()
    except Exception:
        return float("inf")


def operations_without_unknown(session: Session, start: Snapshot) -> list[Operation]:
    """The picture with the causes' edits alone; empty where the reference does not run with
    them. The session is left as it was."""
    try:
        with _known_alone(session, start, session.accepted):
            return session.operations()
    except Exception:
        return []


@contextlib.contextmanager
def _known_alone(
    session: Session, start: Snapshot, accepted: Sequence[AppliedEdit]
) -> Iterator[None]:
    """The session with the edits of known causes alone, for as long as this lasts."""
    present = session.snapshot()
    session.undo(start)
    try:
        for a in accepted:
            if a.kind == "unknown":
                continue
            if a.values:
                session.pin(a.values)
            elif a.edits:
                session.apply(a.edits)
        yield
    finally:
        session.undo(present)


def _no_number(session: Session, out: int | None) -> str:
    """Where a value is an output: what the port returns that is no number where the reference has
    one, in words."""
    if out not in session.graph.outputs:
        return ""
    theirs = session.port_outputs[session.graph.outputs.index(out)]
    mine = to_numpy(session.graph.values[out])
    if mine.dtype.kind != "f" or theirs.dtype.kind != "f" or mine.shape != theirs.shape:
        return ""
    apart = np.isfinite(mine) & ~np.isfinite(theirs)
    if not apart.any():
        return ""
    kinds = "NaN" if np.isnan(theirs[apart]).all() else "infinity"
    kinds = kinds if np.isinf(theirs[apart]).all() or kinds == "NaN" else "NaN and infinity"
    return f"; the port returns {kinds} in {int(apart.sum())} of the {apart.size} numbers"


def _put(
    session: Session,
    front: Node,
    places: Sequence[int],
    best: _Put | None = None,
    breadth: int = 10,
) -> _Put | None:
    """The place and the port's value that regain the most there."""
    claims = session.claimed()
    latest = max(
        [
            session.match[session.root[r]] or 0
            for r in front.refs
            if session.match.get(session.root[r]) is not None
        ]
        or [0]
    )
    tries = 0
    for place in places:
        present = to_numpy(session.graph.values[place])
        if present.dtype != np.float64 or present.size < 8:
            continue
        near = [e for _, e in session.index.nearest(present, 4, 4, claims)]
        near += [
            e
            for e in session.index.ids(present.size)
            if latest < e and e not in claims and e not in near
        ][:breadth]
        for entry in near:
            tried, best = _tried(session, front, place, entry, best)
            tries += tried
            if tries > TRIES:
                return best
    return best


def _tried(
    session: Session, front: Node, place: int, entry: int, best: _Put | None
) -> tuple[int, _Put | None]:
    """Put one value of the port at one place, in the likeliest orders of its axes: how many were
    tried, and the best of all so far."""
    present = to_numpy(session.graph.values[place])
    theirs = session.index.entries[entry].value
    if theirs is None:
        return 0, best
    moved = layouts(theirs, present.shape, clean=True)[:24]
    ranked = sorted((distance(present, m), k) for k, m in enumerate(moved))[:4]
    for far, k in ranked:
        value = torch.from_numpy(np.array(moved[k]))
        judged = session.judge({}, front, {place: value}, patience=3, enough=0)
        if judged is None:
            continue
        gain = judged.regained - judged.broken
        if gain == 1 and judged.proof is not None:
            proof = session.graph.producer[judged.proof[0]]
            gain += proof is not None and session.graph.nodes[proof].name in MIXING
        nearer = best is not None and best[4] == place and -far > -best[1]
        if best is None or gain > best[0] or (gain == best[0] and nearer):
            best = (gain, far, entry, np.array(moved[k]), place)
    return len(ranked), best


def _best_of(session: Session, front: Node, place: int, entries: Sequence[int]) -> _Put | None:
    best: _Put | None = None
    for entry in entries:
        best = _tried(session, front, place, entry, best)[1]
    return best


def _places(session: Session, front: Node, out: int) -> list[int]:
    """Values that the port's can be substituted for: the operation's, those it takes, those
    that follow."""
    places = [out]
    layer = [front]
    for _ in range(6):
        following = []
        for node in layer:
            for o in node.outs:
                for user in session.graph.consumers.get(o, ()) if o is not None else ():
                    behind = session.graph.nodes[user]
                    if user in session.live and behind not in following:
                        following.append(behind)
        layer = following[:3]
        places += [
            n.outs[0] for n in layer if n.name not in LAYOUT and n.outs and n.outs[0] is not None
        ]
        if len(places) >= 4:
            break
    for ref in front.refs:
        root = session.root[ref]
        if ref in session.graph.input_dependent() and session.graph.producer[root] is not None:
            places.append(root)
    return list(dict.fromkeys(places))[:6]


def _later(session: Session, front: Node) -> list[int]:
    """Lost values further on, where the search can begin again."""
    near = {front.index}
    places = []
    for node in session.graph.nodes[front.index + 1 :]:
        if node.index not in session.live or not any(
            session.graph.producer[r] in near for r in node.refs
        ):
            continue
        near.add(node.index)
        out = node.outs[0] if node.outs else None
        if out is not None and node.name not in MOVES and session.status(out) == "lost":
            places.append(out)
    return places[:LATER]
