"""What proves an edit: values after it that the port holds, and that depend on it.

An edited operation's own result is no proof: any array of the port can be reached by some wrong
version of an operation near it, and a constant can be solved to reach one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from twinvit.port.call import Call
from twinvit.port.index import SMALLEST, squeezed_distance
from twinvit.port.ops import INDICES, STEPS, WITH_INDICES
from twinvit.port.ops.primitives import CHOOSING
from twinvit.port.record.graph import Edit, Graph, Node
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.search.edits import nudged
from twinvit.port.search.trial import AppliedEdit, TrialResult

if TYPE_CHECKING:
    from twinvit.port.search.session import Session

GRID = 4096.0
PINNED = 1  # the bit of values that are put in place; those of edits follow


def telling(x: np.ndarray) -> bool:
    """True if equality of a model's output with `x` would prove anything, however few its elements:
    one of them is finite and no small fraction (a zero, a one, a share of a few)."""
    finite = np.unique(x[np.isfinite(x)])
    if finite.size >= SMALLEST:
        return True
    scaled = np.abs(finite) * GRID
    return bool((scaled != np.round(scaled)).any())


def spoils(graph: Graph, node: Node, before: torch.Tensor, after: torch.Tensor) -> bool:
    """True if an edit makes NaN or +inf where there were numbers, unless the operation takes
    NaN."""
    if not (after.is_floating_point() and before.is_floating_point()):
        return False
    if int(after.isposinf().sum()) > int(before.isposinf().sum()):
        return True
    taken = (graph.values[r] for r in node.refs)
    given = any(t.is_floating_point() and bool(t.isnan().any()) for t in taken)
    return not given and int(after.isnan().sum()) > int(before.isnan().sum())


def hides(graph: Graph, node: Node, before: torch.Tensor, after: torch.Tensor) -> bool:
    """True if an edit makes -inf where there were numbers, and no operation follows in which -inf
    is how masks hide."""
    if not (after.is_floating_point() and before.is_floating_point()):
        return False
    if int(after.isneginf().sum()) <= int(before.isneginf().sum()):
        return False
    return not Call(graph, node).leads_to("softmax", "_safe_softmax", "logsumexp", "amax", "exp")


class Tally:
    """Counts, operation by operation, what a run with edits regains and breaks.

    Args:
        session: the reference and what is known of it, without the edits.
        edits: functions that replace operations.
        values: ids of values that are put in place.
    """

    def __init__(
        self, session: Session, edits: Mapping[int, Edit], values: Collection[int]
    ) -> None:
        self.session = session
        self.edits = edits
        self.bits = {index: 2 << k for k, index in enumerate(edits)}
        self.reach = dict.fromkeys(values, PINNED)  # by value: the edits that it depends on
        self.covered = 0
        self.regained: list[int] = []
        self.own = self.broken = self.misses = self.arrays = 0
        self.kinds: set[tuple[str, str, str]] = set()  # of operations whose results stay lost
        self.seen: dict[int, bool] = {}  # by value: found in this run
        self.proof: tuple[int, int, torch.Tensor] | None = None

    @cached_property
    def claims(self) -> set[tuple[int, str, str]]:
        """What is found without the edits."""
        return {self.session.index.key(e) for e in self.session.claimed()}

    def follow(self, node: Node) -> None:
        """Note which edits an operation's results depend on."""
        edit = self.edits.get(node.index)
        refs = node.refs if edit is None or edit.refs is None else edit.refs
        reach = self.bits.get(node.index, 0)
        for ref in refs:
            reach |= self.reach.get(ref, 0)
        if reach:
            for out in node.outs:
                if out is not None:
                    self.reach[out] = reach | self.reach.get(out, 0)

    def see(self, node: Node, out: int, value: torch.Tensor, late: bool) -> None:
        """Count one value; `late`: not before the divergence and the last edit."""
        session = self.session
        root = session.root[out]
        last = out in session.graph.outputs
        edited = node.index in self.edits
        if not (root == out or last or edited):
            return
        if root not in session.match or not session.consumed(out):
            return
        was = session.status(out)
        found = session.found_as(out, value)
        self.seen[out] = found is not None
        if found is None:
            self.broken += was == "found"
            self._miss(node, was == "lost" and late)
        elif was == "lost" and (
            found < 0
            or out in session.watched  # a running statistic may stay what it was
            or session.index.key(found) not in self.claims
        ):
            self._regain(out, found, value, edited, last)

    def _miss(self, node: Node, missed: bool) -> None:
        """Count a value that stays lost; of a loop over experts one pass."""
        kind = re.sub(r"\d+", "#", node.scope), node.name, node.where
        if missed and not (self.session.follows_values and kind in self.kinds):
            self.misses += 1
            self.kinds.add(kind)

    def _regain(self, out: int, found: int, value: torch.Tensor, edited: bool, last: bool) -> None:
        session = self.session
        after = not edited
        if last:
            after = telling(to_numpy(value))
        elif edited and out in session.watched:
            theirs = session.index.entries[found].value if found >= 0 else None
            after = theirs is not None and (
                squeezed_distance(to_numpy(value), theirs) <= session.tolerance(out)
            )
        self.misses = 0
        if self.proof is None and (after or edited):
            self.proof = (out, found, value)
        if not after:
            self.own += edited
        elif session.root[out] not in (session.root[r] for r in self.regained):
            self.covered |= self.reach.get(out, 0)
            self.regained.append(out)
            self.arrays += not last or np.unique(to_numpy(value)).size >= SMALLEST

    def open(self) -> bool:
        """True if an edit has no value behind it yet that is regained, for no other reason than
        that none was reached."""
        return any(not self.covered & bit for bit in self.bits.values())

    def excused(self, index: int) -> bool:
        """True for an edit whose operation takes a value that is lost still, or whose result is
        found, so that what follows is wrong for another reason. The end proves it or not."""
        session = self.session
        edit = self.edits[index]
        node = session.graph.nodes[index]
        if any(self.seen.get(o, False) for o in node.outs if o is not None):
            return True
        refs = node.refs if edit.refs is None else edit.refs
        return any(not self.seen.get(r, session.status(r) != "lost") for r in refs)

    def judged(self) -> TrialResult:
        proven = all(self.covered & b or self.excused(i) for i, b in self.bits.items())
        if not self.regained or not proven:
            own = self.own if not self.regained else 0
            return TrialResult(0, self.broken, self.proof, own)
        return TrialResult(len(self.regained), self.broken, self.proof, self.own, self.arrays)


def felt(session: Session, edited: Iterable[int], values: Collection[int]) -> bool:
    """True if some of these values depend on each of the edited operations as they are now.

    A value that does not change with an edit's result (the larger one of two, a term times zero) is
    regained by what the edit takes away and proves nothing of what it puts there. What depends on
    it over choices alone (the order of scores) changes with it where the choice does.
    """
    graph = session.graph
    if not values:
        return False
    last = max(graph.producer[v] or 0 for v in values)
    for index in edited:
        node = graph.nodes[index]
        outs = [graph.values[o] for o in node.outs if o is not None]
        if index > last or not any(o.is_floating_point() for o in outs):
            continue
        strong = values if _by_choice(session, node, values) else ()
        if not _moves(graph, node, values, last) and not _moves(graph, node, strong, last, much=1):
            return False
    return True


def _moves(
    graph: Graph, node: Node, values: Collection[int], last: int, much: float = 1e-5
) -> bool:
    """True if one of the values changes with an operation's result, or nothing can be said."""
    if not values:
        return False
    try:
        changed = graph.run({node.index: Edit(nudged(node, much))}, first=node.index, until=last)
    except Exception:  # a value that only the recorded numbers fit
        return True
    reached = [v for v in values if v in changed]
    return not reached or any(not torch.equal(changed[v], graph.values[v]) for v in reached)


def _by_choice(session: Session, node: Node, values: Collection[int]) -> bool:
    """True if all of these values that depend on an operation do so over what is chosen by the
    order of numbers alone, and the port chooses by these numbers, too: other ones may happen to
    lead to the same choice."""
    graph, choices = session.graph, []
    smooth = {o for o in node.outs if o is not None}
    for later in graph.nodes[node.index + 1 :]:
        read = [r for r in later.refs if r in smooth]
        if not read or later.index not in session.live:
            continue
        if later.name in INDICES | WITH_INDICES:
            choices += read
        elif later.name not in STEPS:
            smooth.update(
                o
                for o in later.outs
                if o is not None and graph.values.shaped(o).is_floating_point()
            )
    entries, key = session.index.entries, session.index.key
    chosen = {key(k) for e in entries if e.name in CHOOSING for k in e.parents if k >= 0}
    hits = (session.lookup(i, graph.values[i]) for i in choices)
    ported = [h for h in hits if h is not None and h is not False and key(h) in chosen]
    return bool(choices) and len(ported) == len(choices) and smooth.isdisjoint(values)


def behind(graph: Graph, edited: Iterable[int], node: Node) -> bool:
    """True if an operation depends on one of the edited ones."""
    reached: set[int] = set()
    places = set(edited)
    for before in graph.nodes[min(places, default=0) : node.index + 1]:
        if before.index in places or any(r in reached for r in before.refs):
            reached.update(o for o in before.outs if o is not None)
    return any(r in reached for r in node.refs)


def proven(session: Session, a: AppliedEdit) -> bool:
    """True if some found value needs a finding's edits and values, and depends on them; of an edit
    at several operations at once, on each."""
    if a.settled or any(session.graph.nodes[i] is not node for i, node in a.made.items()):
        return True  # a later edit stands on this one: it cannot be left out
    lost = session.missed(a.replaced, a.originals)
    return bool(lost) and (not a.groups or any(felt(session, g, lost) for g in a.groups))


def take_back(session: Session, accepted: list[AppliedEdit]) -> None:
    """Leave each finding out once, with all others made; drop those that nothing needs.

    Values put in place go before causes, later ones before earlier ones: of two that each suffice
    one stays.
    """
    order = sorted(range(len(accepted)), key=lambda k: (accepted[k].kind != "unknown", -k))
    for a in [accepted[k] for k in order]:
        if not (a.replaced or a.originals or a.settled):  # an attempt that changed nothing
            lost = any(o is not None and session.status(o) == "lost" for o in a.node.outs)
            if not lost and session.outputs_agree():
                accepted.remove(a)
        elif not proven(session, a):
            session.restore(a.replaced, a.originals)
            accepted.remove(a)
