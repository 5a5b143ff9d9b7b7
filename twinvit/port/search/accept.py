"""An edit made at every place where it is confirmed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from twinvit.port.call import Call
from twinvit.port.index import align_distance, distance
from twinvit.port.record_torch import Edit, Node, Ref, numbers
from twinvit.port.search.edits import checked, edits_of
from twinvit.port.search.proof import felt
from twinvit.port.search.session import REORDER, Session
from twinvit.port.search.trial import NARROW, Accepted, Trial


def accept(session: Session, trial: Trial) -> Accepted | None:
    """Make the edit here and at every similar place where it is confirmed; None if it regains
    nothing after it, or only values that do not depend on it.

    A provisional trial regains its own result alone: what comes after it may differ, too.
    """
    before = _distance(session, trial)
    snapshot = session.snapshot()
    lost_before = session.lost()
    chosen: dict[int, Edit] = dict(trial.edits)
    places = [trial.site]
    groups = [list(trial.edits)]
    own = similar(session, trial)
    earlier = [
        (a, node, edits)
        for a in session.accepted
        if a.trial is not None
        for node, edits in similar(session, a.trial)
        if node.index not in trial.edits
    ]
    extended: list[tuple[Accepted, Node]] = []
    everywhere = [*own, *((node, edits) for _, node, edits in earlier)]
    if earlier and len(_confirmed(session, chosen, everywhere)) == len(everywhere):
        # With the causes known so far, made everywhere, all of these places agree.
        places += [n for n, _ in own]
        groups += [list(more) for _, more in own]
        extended = [(a, n) for a, n, _ in earlier]
        for _, more in everywhere:
            chosen.update(more)
    else:
        if earlier:
            session.undo(snapshot)
        if own and len(_confirmed(session, chosen, own)) < len(own):
            session.undo(snapshot)
            own = _steps(session, trial.site, own) or own
        confirmed = _confirmed(session, chosen, own) if own else []
        for node, more in confirmed:
            chosen.update(more)
            places.append(node)
            groups.append(list(more))
        if not own or len(confirmed) < len(own):
            if own:
                session.undo(snapshot)
            session.apply(chosen)
    proof = trial.judged.proof
    if proof is not None and not _distance(session, trial) <= 10 * session.tolerance(proof[0]):
        # Made at the other places too, it undoes itself here: make it here alone.
        session.undo(snapshot)
        chosen, places, extended = dict(trial.edits), [trial.site], []
        groups = [list(trial.edits)]
        session.apply(chosen)
    if not _stands(session, trial, chosen, lost_before):
        session.undo(snapshot)
        return None
    for a, node in extended:
        a.places.append(node.place)
    after = _distance(session, trial)
    entry = trial.judged.proof[1] if trial.judged.proof is not None else -1
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
    return Accepted(
        kind,
        name if kind == "cause" else "",
        text,
        trial.site,
        chosen,
        {},
        session.index.entries[entry].where if entry >= 0 else "",
        before,
        after,
        [p.place for p in places],
        trial,
        replaced={i: snapshot[0][i] for i in chosen},
        made={i: session.graph.nodes[i] for i in chosen},
        groups=groups,
    )


def _stands(
    session: Session, trial: Trial, chosen: Mapping[int, Edit], lost_before: set[int]
) -> bool:
    """True if, with the edits made, more is regained than lost, and what is depends on them."""
    lost = session.lost()
    edited = {o for i in chosen for o in session.graph.nodes[i].outs if o is not None}
    last = {session.root[o] for o in (*session.graph.outputs, *session.watched)}
    kept = {o for o in lost_before - lost if session.consumed(o)}
    after = {o for o in kept if o not in edited or session.root[o] in last}
    gained = kept if trial.provisional else after
    if len(gained) <= len(lost - lost_before):
        return False
    return trial.provisional or felt(session, trial.edits, after)


def similar(session: Session, trial: Trial) -> list[tuple[Node, dict[int, Edit]]]:
    """The same edit at every later place with the same operation, arguments and weight shape,
    if lost there."""
    assert trial.cause is not None
    site = trial.site
    signature = _signature(session, site)
    places = []
    for node in session.graph.nodes:
        if node.index <= site.index or node.index not in session.live or node.name != site.name:
            continue
        if (
            _signature(session, node) != signature
            or any(
                session.status(o) == "found" and session.root[o] == o
                for o in node.outs
                if o is not None
            )
            and node.name not in REORDER
        ):
            continue
        if trial.variant.refs is None and not trial.variant.also and trial.variant.node is None:
            places.append(
                (
                    node,
                    {
                        node.index: Edit(
                            checked(session.graph, node, trial.variant.fn, trial.variant.reshapes)
                        )
                    },
                )
            )
            continue
        key = trial.variant.key or trial.variant.text
        call = Call(session.graph, node, None)
        try:
            for variant in trial.cause.generate(call) or ():
                if (variant.key or variant.text) == key:
                    places.append((node, edits_of(session.graph, node, variant)))
                    break
        except Exception:
            continue
    return places


def _steps(
    session: Session, site: Node, places: Sequence[tuple[Node, dict[int, Edit]]]
) -> list[tuple[Node, dict[int, Edit]]]:
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


def _signature(session: Session, node: Node) -> tuple[object, ...]:
    plain = tuple(repr(a) for a in node.args if not _has_ref(a))
    shapes = tuple(
        tuple(session.graph.values[r].shape)
        for r in node.refs
        if r not in session.graph.input_dependent()
    )
    return (
        node.name,
        plain,
        repr(sorted(node.kwargs.items(), key=str)) if not _has_ref(node.kwargs) else "",
        shapes,
    )


def _confirmed(
    session: Session, chosen: Mapping[int, Edit], others: Sequence[tuple[Node, dict[int, Edit]]]
) -> list[tuple[Node, dict[int, Edit]]]:
    """Make the edits at all places; of the others, in order, those before the first that is not
    confirmed."""
    edits = dict(chosen)
    for _, more in others:
        edits.update(more)
    confirmed: list[tuple[Node, dict[int, Edit]]] = []
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


def _distance(session: Session, trial: Trial) -> float:
    """The distance of the first regained value, as it is now, to the port's that it is with the
    edit."""
    proof = trial.judged.proof
    if proof is None:
        return float("nan")
    mine = numbers(session.graph.values[proof[0]])
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


def _has_ref(tree: object) -> bool:
    if isinstance(tree, Ref):
        return True
    if isinstance(tree, tuple | list):
        return any(_has_ref(t) for t in tree)
    if isinstance(tree, dict):
        return any(_has_ref(t) for t in tree.values())
    return False
