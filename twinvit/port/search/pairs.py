"""Two mistakes at one place: no edit alone brings a value of the port back, two together do.

An eps and the variance's denominator of one norm, a scale that is missing before a mask that is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from twinvit.port.ops import LAYOUT
from twinvit.port.record.graph import Edit, Graph, Node
from twinvit.port.search.accept import (
    Made,
    accepted_of,
    adds_zeros,
    distance_of,
    same_edits,
    similar,
)
from twinvit.port.search.candidates import aligned, told, variants
from twinvit.port.search.edits import edits_of
from twinvit.port.search.proof import felt
from twinvit.port.search.session import WINDOW, Session
from twinvit.port.search.trial import AppliedEdit, Trial

TRIES = 2500  # pairs that are tried at one place
WORK = 2e7  # numbers that these compute, about: large models try fewer
LEAST = 2  # values that a pair regains after itself, where none of them is an output
ENOUGH = 6  # regained values of a pair that no other can beat
BEHIND = 2  # operations after a place that the second edit may be made at
PATIENCE = 3
NOT_FIRST = frozenset(("weights", "tied_weights"))


@dataclass
class Joint:
    """Two edits that regain values together: the second stands on the first."""

    first: Trial
    second: Trial

    @property
    def gain(self) -> int:
        return self.second.gain


def joint(session: Session, front: Node) -> list[AppliedEdit]:
    """Make two edits at a divergence that no edit alone explains, and wherever both are needed in
    the same way; nothing where no two of different causes regain values together."""
    with session.trying():
        found = _regaining(session, front)
    best = max(found, key=lambda pair: pair.gain, default=None)
    return _accept(session, best) if best is not None else []


def _regaining(session: Session, front: Node) -> list[Joint]:
    """Pairs of edits that regain something after them, up to one that no other can beat."""
    found: list[Joint] = []
    rest = _limit(session, front)
    for one, other in _places(session, front):
        for first in _alone(session, one, front):
            rest -= 1 + _on_top(session, first, other, front, found)
            if rest <= 0 or (found and _unbeaten(found[-1])):
                return found
    return found


def _unbeaten(found: Joint) -> bool:
    return found.gain >= ENOUGH and not found.second.judged.broken


def _limit(session: Session, front: Node) -> int:
    sizes = [session.graph.values[o].numel() for o in front.outs if o is not None]
    return int(min(TRIES, WORK / max(1, *sizes)))


def _places(session: Session, front: Node) -> list[tuple[Node, Node]]:
    """Where the two edits may be made, in the order that they are tried."""
    graph = session.graph
    after: list[Node] = []
    layer = [front]
    while layer and len(after) < BEHIND:
        users = {u for n in layer for o in n.outs if o is not None for u in _users(graph, o)}
        layer = [graph.nodes[u] for u in sorted(users) if u in session.live][:2]
        after += [n for n in layer if n.name not in LAYOUT and n not in after]
    before = []
    for ref in front.refs:
        producer = graph.producer[session.root[ref]]
        if producer is not None and session.root[ref] in graph.input_dependent():
            before.append(graph.nodes[producer])
    return [
        (front, front),
        *((front, node) for node in after[:BEHIND]),
        *((node, front) for node in before[:2]),
    ]


def _users(graph: Graph, value: int) -> Sequence[int]:
    return graph.consumers.get(value, ())


def _alone(session: Session, site: Node, front: Node) -> list[Trial]:
    """Edits at one operation, whatever they regain alone; those of causes that are known first."""
    known = {a.cause for a in session.accepted}
    found = []
    for cause, variant in variants(session, site):
        if cause.name in NOT_FIRST:
            continue
        try:
            edits = edits_of(session.graph, site, variant)
            judged = session.judge(edits, front, window=1, patience=1)
        except Exception:  # a cause that does not apply here
            continue
        if judged is not None:
            found.append(Trial(cause, variant, site, edits, judged, 0))
    found.sort(key=lambda t: t.cause is None or t.cause.name not in known)
    return found


def _on_top(session: Session, first: Trial, site: Node, front: Node, found: list[Joint]) -> int:
    """Try second edits with the first made; add those that regain something to `found`, up to one
    that no other can beat. Returns how many were tried."""
    plain, tries = session.graph, 0
    try:
        session.graph = altered = _altered(plain, first.edits, site)
        made = {i: Edit(altered.nodes[i].op) for i in first.edits}
        for cause, variant in variants(session, altered.nodes[site.index]):
            if first.cause is not None and cause.name == first.cause.name:
                continue
            tries += 1
            trial = Trial(cause, variant, altered.nodes[site.index], {}, first.judged, 0, True)
            try:
                trial.edits = _spread(session, trial, first)
                # Weights that are exchanged with a layer far behind are right here without that.
                both = {**made, **trial.edits}
                judged = session.judge(both, front, patience=PATIENCE, near=WINDOW)
            except Exception:  # a cause that does not apply here
                continue
            if judged is not None:
                trial.judged = judged
                if _counts(session, trial):
                    found.append(Joint(first, trial))
                    if _unbeaten(found[-1]):
                        break
    except Exception:  # the first does not fit what follows
        pass
    finally:
        session.graph = plain
    return tries


def _altered(graph: Graph, edits: Mapping[int, Edit], site: Node) -> Graph:
    """The graph with edits made, and what follows from them as far as an operation's arguments."""
    nodes = {i: graph.nodes[i].edited(edit) for i, edit in edits.items()}
    changed = graph.run(edits, first=min(edits), until=max(site.index, *edits))
    return graph.with_nodes(nodes).with_values(changed)


def _spread(session: Session, trial: Trial, first: Trial) -> dict[int, Edit]:
    """The second edit at its own place, and at those of the first's further operations that are of
    the same kind: two norms that are exchanged have the same eps."""
    graph = session.graph
    edits = edits_of(graph, trial.site, trial.variant)
    for i in first.edits:
        node = graph.nodes[i]
        if i not in edits and trial.site.index in first.edits and node.name == trial.site.name:
            edits.update(same_edits(session, trial, node) or {})
    return edits


def _counts(session: Session, trial: Trial) -> bool:
    """True if a pair regains enough, in the port's own order of axes."""
    judged = trial.judged
    if not judged.regained or judged.broken > judged.regained:
        return False
    variant = trial.variant
    if variant.solved is not None and not (judged.arrays and told(*variant.solved)):
        return False
    proof = judged.proof
    output = proof is not None and proof[0] in session.graph.outputs
    return (judged.regained >= LEAST or output) and aligned(session, trial)


def _accept(session: Session, found: Joint) -> list[AppliedEdit]:
    """Make both edits; nothing if more is lost than is found again, or nothing depends on them."""
    start, lost = session.snapshot(), session.lost()
    others = similar(session, found.first)
    made = []
    try:
        for trial in (found.first, found.second):
            state, before = session.snapshot(), distance_of(session, trial)
            session.apply(trial.edits)
            made.append(
                accepted_of(session, trial, Made.of(trial.site, trial.edits), state, before)
            )
    except Exception:  # they fit the operations around only
        session.undo(start)
        return []
    now = session.lost()
    gained = {o for o in lost - now if session.consumed(o)}
    edited = [*found.first.edits, *found.second.edits]
    if any(adds_zeros(session, t, start.graph.nodes) for t in (found.first, found.second)):
        session.undo(start)
        return []
    if len(gained) <= len(now - lost) or not felt(session, edited, gained):
        session.undo(start)
        return []
    made[0].after = made[1].after
    for node, edits in others:
        _also(session, found, made, node, edits)
    return made


def _also(
    session: Session, found: Joint, made: Sequence[AppliedEdit], node: Node, edits: dict[int, Edit]
) -> None:
    """Make both edits at another place of the first's kind, if what they compute is found there."""
    start = session.snapshot()
    index = node.index + found.second.site.index - found.first.site.index
    nodes = session.graph.nodes
    if not 0 <= index < len(nodes) or nodes[index].name != found.second.site.name:
        return
    try:
        session.apply(edits)
        between = session.snapshot()
        more = same_edits(session, found.second, session.graph.nodes[index])
        if more is not None:
            session.apply(more)
    except Exception:  # a cause that does not fit there
        more = None
    outs = [o for i in more or () for o in session.graph.nodes[i].outs if o is not None]
    outs = [o for o in outs if session.consumed(o)]
    right = bool(outs) and all(session.status(o) in ("found", "passed") for o in outs)
    if more is None or not right:
        session.undo(start)
        return
    made[0].extend(node, edits, start.graph, between.graph)
    made[1].extend(nodes[index], more, between.graph, session.graph)
