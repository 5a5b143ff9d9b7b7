"""The places of one edit: those that nothing needs are left as they were."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableSequence, Sequence

from twinvit.port.record.graph import Node
from twinvit.port.search.session import Session
from twinvit.port.search.trial import AppliedEdit


def left_as_it_was(session: Session, before: Mapping[int, Node], *, better: bool = False) -> bool:
    """Restore operations that were edited, unless something found needs the edits; True if
    that was done.

    A product without its bias is a value of every port that adds the bias after it, so an edit can
    seem confirmed where the port has none.

    Args:
        session: with all edits made.
        before: the operations as they were without the edits at one place.
        better: do it only if values are found then that are not found with the edits.
    """
    if session.missed(before, {}, limit=1):
        return False
    made, lost = session.snapshot(), session.lost()
    session.restore(before, {})
    now = session.lost()
    if now < lost or (now == lost and not better):
        return True
    session.undo(made)
    return False


def drop_worse(
    session: Session,
    places: MutableSequence[Node],
    groups: MutableSequence[list[int]],
    plain: Sequence[Node],
) -> list[int]:
    """Take an edit back at further places where more is found without it. `places` and `groups`
    (operations edited at each) lose these; returns the operations that were put back."""
    dropped = []
    for k in reversed(range(1, len(groups))):
        if left_as_it_was(session, {i: plain[i] for i in groups[k]}, better=True):
            dropped += groups.pop(k)
            del places[k]
    return dropped


def take_back_places(session: Session, accepted: Collection[AppliedEdit]) -> bool:
    """Leave each finding's edit out once at each further place, with all others made; take it back
    where nothing needs it. True if some were.

    In a recurrent layer an edit is made in every step or in none.
    """
    any_dropped = False
    for a in list(accepted)[::-1]:
        if a.whole or session.recurrent(a.node) or (a.trial is None and a.kind != "expression"):
            continue
        for k in reversed(range(1, len(a.groups))):
            group = a.groups[k]
            if any(session.graph.nodes[i] is not a.made.get(i) for i in group):
                continue  # a later edit stands on this one, or another place has it, too
            if left_as_it_was(session, {i: a.replaced[i] for i in group}):
                a.left_out.append(a.forget(k))
                any_dropped = True
    return any_dropped


def forget_undone(session: Session, accepted: Collection[AppliedEdit]) -> None:
    """Forget further places whose edits are not made any more, after the search went back."""
    nodes = session.graph.nodes
    for a in accepted:
        for k in reversed(range(1, len(a.groups))):
            if all(nodes[i] is a.replaced.get(i) for i in a.groups[k]):
                a.forget(k)
