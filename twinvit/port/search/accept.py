"""An edit made at every place where it is confirmed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from twinvit.port.call import Call
from twinvit.port.index import Entry, align_distance, distance
from twinvit.port.ops import REORDER
from twinvit.port.record.graph import Edit, Node, Ref
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.search.edits import checked, edits_of
from twinvit.port.search.places import drop_worse
from twinvit.port.search.proof import felt
from twinvit.port.search.session import Session, Snapshot
from twinvit.port.search.trial import NARROW, AppliedEdit, Trial

_Place = tuple[Node, dict[int, Edit]]
"""An operation that an edit is made at, and what is edited for that."""


@dataclass
class Made:
    """An edit made at several places.

    Attributes:
        edits: by the operations' positions.
        places, groups: the operation that each place is known by, and those edited there.
        extended: places at which earlier findings' edits were made as well.
    """

    edits: dict[int, Edit]
    places: list[Node]
    groups: list[list[int]]
    extended: list[tuple[AppliedEdit, Node, dict[int, Edit]]] = field(default_factory=list)

    @classmethod
    def of(cls, site: Node, edits: Mapping[int, Edit], others: Sequence[_Place] = ()) -> Made:
        """Of an edit at its own place and at others."""
        made = cls(dict(edits), [site], [list(edits)])
        for node, more in others:
            made.edits.update(more)
            made.places.append(node)
            made.groups.append(list(more))
        return made


def accept(session: Session, trial: Trial) -> AppliedEdit | None:
    """Make the edit here and at every similar place where it is confirmed; None if it regains
    nothing after it, or only values that do not depend on it.

    A provisional trial regains its own result alone: what comes after it may differ, too.
    """
    before = distance_of(session, trial)
    snapshot = session.snapshot()
    lost_before = session.lost()
    made = _everywhere(session, trial)
    proof = trial.judged.proof
    if proof is not None and not distance_of(session, trial) <= 10 * session.tolerance(proof[0]):
        # Made at the other places too, it undoes itself here: make it here alone.
        session.undo(snapshot)
        made = Made.of(trial.site, trial.edits)
        session.apply(made.edits)
    also = [list(more) for _, _, more in made.extended]
    if adds_zeros(session, trial, snapshot.graph.nodes) or not _stands(
        session, trial, [*made.groups, *also], lost_before
    ):
        session.undo(snapshot)
        return None
    if not session.recurrent(trial.site):
        for i in drop_worse(session, made.places, made.groups, snapshot.graph.nodes):
            del made.edits[i]
    for a, node, more in made.extended:
        a.extend(node, more, snapshot.graph, session.graph)
    return accepted_of(session, trial, made, snapshot, before)


def accepted_of(
    session: Session, trial: Trial, made: Made, start: Snapshot, before: float
) -> AppliedEdit:
    """What a trial was made as. `start`: the session without it, `before`: the distance then."""
    name = trial.cause.name if trial.cause else ""
    kind, text = ("weights" if name == "weights" else "cause"), trial.variant.text
    if trial.variant.solved is not None:
        theirs, mine = trial.variant.solved
        if abs(theirs - mine) < NARROW * abs(mine):
            kind = "precision"
            text = (
                "a constant that one side rounds to a narrower type: "
                f"the port's {theirs!r}, the reference's {mine!r}"
            )
    return AppliedEdit(
        kind,
        name if kind == "cause" else "",
        text,
        trial.site,
        made.edits,
        {},
        _port_place(session, trial),
        before,
        distance_of(session, trial),
        [p.place for p in made.places],
        trial,
        replaced={i: start.graph.nodes[i] for i in made.edits},
        made={i: session.graph.nodes[i] for i in made.edits},
        groups=made.groups,
    )


def _everywhere(session: Session, trial: Trial) -> Made:
    """Make a trial's edit at its site and at every similar place where it is confirmed, those of
    earlier findings among them."""
    snapshot = session.snapshot()
    own = similar(session, trial)
    earlier: dict[int, tuple[AppliedEdit, Node, dict[int, Edit]]] = {}
    for a in session.accepted:
        for node, edits in similar(session, a.trial) if a.trial is not None else ():
            if node.index not in trial.edits:
                earlier[node.index] = (a, node, edits)
    if earlier:
        # With the causes known so far, made everywhere, all of these places may agree.
        rest = [(node, edits) for node, edits in own if node.index not in earlier]
        everywhere = [*rest, *((node, edits) for _, node, edits in earlier.values())]
        if len(_confirmed(session, trial.edits, everywhere)) == len(everywhere):
            made = Made.of(trial.site, trial.edits, rest)
            made.extended = list(earlier.values())
            return made
        session.undo(snapshot)
    confirmed = _confirmed(session, trial.edits, own) if own else []
    if len(confirmed) < len(own):
        session.undo(snapshot)
        own = _steps(session, trial.site, own) or own
        confirmed = _confirmed(session, trial.edits, own)
    made = Made.of(trial.site, trial.edits, confirmed)
    if not own or len(confirmed) < len(own):
        if own:
            session.undo(snapshot)
        session.apply(made.edits)
    return made


def _stands(
    session: Session, trial: Trial, groups: Sequence[Sequence[int]], lost_before: set[int]
) -> bool:
    """True if, with the edits made, more is regained than lost, and what is depends on them at one
    of the places (`groups`): the first step of a recurrent layer adds a product with zeros."""
    lost = session.lost()
    edited = {o for g in groups for i in g for o in session.graph.nodes[i].outs if o is not None}
    last = {session.root[o] for o in (*session.graph.outputs, *session.watched)}
    kept = {o for o in lost_before - lost if session.consumed(o)}
    after = {o for o in kept if o not in edited or session.root[o] in last}
    gained = kept if trial.provisional else after
    if len(gained) <= len(lost - lost_before):
        return False
    return trial.provisional or any(felt(session, g, after) for g in groups)


def adds_zeros(session: Session, trial: Trial, nodes: Sequence[Node]) -> bool:
    """True if an edit leaves a term out that the port has, with nothing but zeros in it: what is
    wrong is what made the zeros, and any formula without the term would agree."""
    node, graph = nodes[trial.site.index], session.graph
    if node.name != "add" or len(trial.edits) != 1:
        return False
    (out,) = graph.nodes[node.index].outs[:1]
    if out is None:
        return False
    value = graph.values[out]
    kept = [r for r in node.refs if torch.equal(graph.values[r].expand_as(value), value)
            if graph.values[r].ndim <= value.ndim]  # fmt: skip
    held = {session.match.get(session.root[r]) for r in kept} - {None}
    entries = session.index.entries
    for sum_ in (e for e in entries if e.name in ("add", "add_any", "sub")):
        zeros = [p for p in sum_.parents if p >= 0 and entries[p].zero]
        if held.intersection(sum_.parents) and any(_of_inputs(entries, p) for p in zeros):
            return True
    return False


def _of_inputs(entries: Sequence[Entry], entry: int) -> bool:
    """True if a value of the port is computed from an input: a bias of zeros is not."""
    seen, rest = {entry}, [entry]
    while rest:
        found = entries[rest.pop()]
        if found.name == "input":
            return True
        more = {p for p in found.parents if p >= 0} - seen
        seen |= more
        rest += more
    return False


def similar(session: Session, trial: Trial) -> list[_Place]:
    """The same edit at every later place with the same operation, arguments and weight shape,
    if lost there."""
    site = trial.site
    signature = signature_of(session, site)
    places = []
    for node in session.graph.nodes:
        if node.index <= site.index or node.index not in session.live or node.name != site.name:
            continue
        found = any(
            session.status(o) == "found" and session.root[o] == o
            for o in node.outs
            if o is not None
        )
        if signature_of(session, node) != signature or (found and node.name not in REORDER):
            continue
        edits = same_edits(session, trial, node)
        if edits is not None:
            places.append((node, edits))
    return places


def same_edits(session: Session, trial: Trial, node: Node) -> dict[int, Edit] | None:
    """A trial's edit, made at another operation of the same name; None if its cause has none
    there."""
    variant = trial.variant
    alone = variant.refs is None and not variant.also and variant.node is None
    if alone and not trial.stacked:
        fn = checked(session.graph, node, variant.fn, variant.reshapes)
        return {node.index: Edit(fn)}
    assert trial.cause is not None
    key = variant.key or variant.text
    index = session.index if trial.stacked else None
    try:
        call = Call(session.graph, node, index, session.claimed() if index else ())
        for other in trial.cause.generate(call) or ():
            if (other.key or other.text) == key:
                return edits_of(session.graph, node, other)
    except Exception:  # a cause that does not apply there
        return None
    return None


def _steps(session: Session, site: Node, places: Sequence[_Place]) -> list[_Place]:
    """Of similar places those that are the same operation of the next steps of a recurrent
    layer."""
    names = [(n.name, n.scope) for n in session.graph.nodes]
    i, width = site.index, 6
    period = next(
        (
            n.index - i
            for n, _ in places
            if n.scope == site.scope
            and names[i : i + width] == names[n.index : n.index + width]
            and names[i - width : i] == names[n.index - width : n.index]
        ),
        0,
    )
    if not period:
        return []
    return [(n, e) for n, e in places if n.scope == site.scope and (n.index - i) % period == 0]


def signature_of(session: Session, node: Node) -> tuple[object, ...]:
    """What similar places have in common: operation, arguments, shapes of weights and tables. A
    recurrence's first state, zeros of no input, stands where the next steps have one of inputs."""
    plain = tuple(repr(a) for a in node.args if not _has_ref(a))
    graph = session.graph
    varied, trained = graph.input_dependent(), graph.trained()
    if session.recurrent(node):  # what is computed of a first state depends on weights alone
        params = {session.root[i] for i in graph.params().values()}
        trained = frozenset(r for r in node.refs if session.root[r] in params)
        varied = frozenset(node.refs) - trained
    shapes = tuple(
        tuple(graph.values.shaped(r).shape)
        for r in node.refs
        if r not in varied and (r in trained or graph.values[r].any())
    )
    return (
        node.name,
        plain,
        repr(sorted(node.kwargs.items(), key=str)) if not _has_ref(node.kwargs) else "",
        shapes,
    )


def _confirmed(
    session: Session, chosen: Mapping[int, Edit], others: Sequence[_Place]
) -> list[_Place]:
    """Make the edits at all places; of the others, in order, those before the first that is not
    confirmed."""
    edits = dict(chosen)
    for _, more in others:
        edits.update(more)
    confirmed: list[_Place] = []
    try:
        session.apply(edits)
    except Exception:
        return confirmed
    for node, more in sorted(others, key=lambda item: item[0].index):
        outs = [
            o
            for i in more
            for o in session.graph.nodes[i].outs
            if o is not None and session.consumed(o)
        ]
        if not all(session.status(o) in ("found", "passed", "") for o in outs):
            break
        confirmed.append((node, more))
    return confirmed


def distance_of(session: Session, trial: Trial) -> float:
    """The distance of the first regained value, as it is now, to the port's that it is with the
    edit."""
    proof = trial.judged.proof
    if proof is None:
        return float("nan")
    mine = to_numpy(session.graph.values[proof[0]])
    if proof[1] < 0:
        k = session.graph.outputs.index(proof[0]) if proof[0] in session.graph.outputs else 0
        return align_distance(mine, session.port_outputs[k])
    theirs = session.index.sorted(proof[1])
    if theirs is None or theirs.size != mine.size:
        return session.index.bound(mine)
    return (
        distance(theirs, np.sort(mine.reshape(-1)))
        if np.isfinite(mine).all()
        else session.index.bound(mine)
    )


def _port_place(session: Session, trial: Trial) -> str:
    """The place of the port's operation that makes the first regained value; "" if unknown."""
    if trial.judged.proof is None:
        return ""
    value, entry = trial.judged.proof[:2]
    if entry < 0 and value in session.graph.outputs:  # judged as an output
        theirs = session.port_outputs[session.graph.outputs.index(value)]
        found = session.index.find(np.ascontiguousarray(theirs), 0.0)
        entry = -1 if found is None else found
    return session.index.entries[entry].where if entry >= 0 else ""


def _has_ref(tree: object) -> bool:
    if isinstance(tree, Ref):
        return True
    if isinstance(tree, tuple | list):
        return any(_has_ref(t) for t in tree)
    if isinstance(tree, dict):
        return any(_has_ref(t) for t in tree.values())
    return False
