"""The search, from the first divergence to the last."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from twinvit.port.record.graph import Node
from twinvit.port.report import Finding
from twinvit.port.search.accept import accept
from twinvit.port.search.candidates import equals, search
from twinvit.port.search.constants import narrow_constants, rounded_positions
from twinvit.port.search.dropout import Pairing
from twinvit.port.search.formula import alike, same_kind
from twinvit.port.search.lines import lines_of
from twinvit.port.search.pairs import joint
from twinvit.port.search.places import forget_undone, take_back_places
from twinvit.port.search.proof import behind, proven, take_back
from twinvit.port.search.session import Session, Snapshot
from twinvit.port.search.transplant import safely, transplant
from twinvit.port.search.trial import AppliedEdit
from twinvit.port.search.unknown import substitute, without_unknown

Progress = Callable[[str], None]
MAX_FINDINGS = 24
MAX_BACK = 12  # provisional edits that are tried
OTHERS = 3  # divergences beside the first at which a part of the port's program is tried


def explain_divergences(
    session: Session, say: Progress, pairing: Pairing | None = None, stop: bool = False
) -> tuple[list[Finding], float, bool]:
    """Explain and edit one divergence after the other, from the first on. `pairing`: the dropouts
    of both sides, in train mode. `stop`: end where the reference is to be recorded again.

    Returns the findings, the relative L2 distance of the outputs that remains with the edits of
    known causes, and whether a divergence has no known cause.
    """
    start = session.snapshot()
    _Walk(session, say, pairing, stop).run()
    accepted = session.accepted
    if not session.stopped:  # what proves an edit may be behind other operations
        take_back(session, accepted)
        while take_back_places(session, accepted):
            take_back(session, accepted)
    findings: list[Finding] = []
    for a in accepted:
        torch_lines, jax_lines = lines_of(session, a)
        same = next((f for f in findings if _repeated(f, a)), None)
        if same is not None:
            same.places = list(dict.fromkeys([*same.places, *a.places]))
            same.torch_lines = list(dict.fromkeys([*same.torch_lines, *torch_lines]))
            same.jax_lines = list(dict.fromkeys([*same.jax_lines, *jax_lines]))
            a.finding = same
            continue
        a.finding = Finding(
            a.kind,
            a.cause,
            _with_ties(a),
            a.node.place,
            jax_lines[0] if jax_lines else "",
            a.before,
            a.after,
            list(dict.fromkeys(a.places)),
            torch_line=a.node.where,
            torch_lines=torch_lines,
            jax_lines=jax_lines,
            operations=a.operations,
            formulas=dict(a.formulas),
        )
        findings.append(a.finding)
    remaining = session.output_distance()
    unknown = [a for a in accepted if a.kind == "unknown"]
    if any(a.values for a in unknown):
        remaining = without_unknown(session, start, accepted)
    return findings, remaining, bool(unknown)


@dataclass
class _Pending:
    """A provisional edit, and where the search goes back to if nothing proves it."""

    made: AppliedEdit
    key: tuple[int, str, str]
    snapshot: Snapshot
    known: int
    """How many findings there were before it."""
    skip: set[int]


class _Walk:
    """The search, one divergence after the other.

    Where no edit regains anything after it, one that regains its own result is made for the time
    being: two mistakes may stand next to each other. If nothing after it comes to depend on it, the
    search goes back and takes another.
    """

    def __init__(
        self, session: Session, say: Progress, pairing: Pairing | None = None, stop: bool = False
    ) -> None:
        self.session = session
        self.stop = stop
        self.say = say
        self.pairing = pairing
        self.skip: set[int] = set()
        self.barred: set[tuple[int, str, str]] = set()
        self.pending: list[_Pending] = []
        self.single: list[Node] = []  # divergences that no two edits explain

    def run(self) -> None:
        session = self.session
        constants = narrow_constants(session)
        if constants is not None:
            session.accepted.append(constants)
        for _ in range(MAX_FINDINGS + MAX_BACK):
            self._pair()
            fronts = session.frontier(self.skip)
            if not fronts and session.find_hidden():
                fronts = session.frontier(self.skip)
            if self._stale(fronts):
                session.stopped = True
                break
            if not fronts or len(session.accepted) >= MAX_FINDINGS:
                if not self._back():
                    break
                continue
            self._step(fronts[0])

    def _stale(self, fronts: Sequence[Node]) -> bool:
        """True if what is left to be explained comes after numbers that the reference's control
        flow follows and that the edits changed."""
        stale = self.session.stale() if self.stop else None
        if stale is None or (not fronts and self.session.outputs_agree()):
            return False
        return not fronts or fronts[0].index > stale

    def _pair(self) -> None:
        """Give the reference the port's random pattern wherever the same value goes into both."""
        done = self.pairing.step() if self.pairing is not None else False
        while self.pairing is not None and done is not False:
            if isinstance(done, AppliedEdit):
                self.session.accepted.append(done)
            self._settle()
            done = self.pairing.step()

    def _step(self, front: Node) -> None:
        session = self.session
        self.say(f"the two part at {front.place} ({front.where})")
        again = [partial(a.again, front) for a in session.accepted if a.again is not None]
        if any(safely(session, front, attempt) for attempt in again):
            self._settle()
            return
        both = rounded_positions(session, front)
        if both is not None:
            session.accepted += both
            return
        if self._named(front):
            return
        if session.recurrent(front) and any(self._named(f) for f in self._others(front)):
            return  # a product of all steps is lost where the gates of one step are
        if self._back(front):
            return
        if session.random.get(front.index) is front:  # what it draws is no formula
            self.skip.add(front.index)
            return
        if self._joint(front):
            return
        done = self._transplant(front) or substitute(session, front)
        if done.kind != "expression" and not done.values:
            self.skip.add(front.index)
        session.accepted.append(done)
        if done.kind == "expression":
            self._settle()

    def _named(self, front: Node) -> bool:
        """Make the edit of a cause at this divergence; False where none regains anything."""
        session = self.session
        known = sum(a.kind == "unknown" and a.node.place == front.place for a in session.accepted)
        trials = []
        if known < 3:
            with session.trying():
                trials = search(session, front, self.barred)
        for trial in trials:
            if trial.provisional and len(self.barred) + len(self.pending) >= MAX_BACK:
                continue
            equal = equals(session, trial, trials, front)
            state = session.snapshot()
            done = accept(session, trial)
            if done is None:
                continue
            if trial.provisional:
                self.pending.append(
                    _Pending(done, trial.key, state, len(session.accepted), set(self.skip))
                )
            if done.kind == "cause":
                done.ties = equal
            session.accepted.append(done)
            self._settle()
            return True
        return False

    def _others(self, front: Node) -> list[Node]:
        """Divergences beside this one that are open."""
        return [f for f in self.session.frontier(self.skip) if f is not front][:OTHERS]

    def _joint(self, front: Node) -> bool:
        """Two causes that meet at this divergence; a cell's few elements tell no pairs apart."""
        session = self.session
        if session.recurrent(front) or any(same_kind(front, other) for other in self.single):
            return False
        done = safely(session, front, partial(joint, session, front))
        session.accepted += done or []
        if done:
            self._settle()
        else:
            self.single.append(front)
        return bool(done)

    def _transplant(self, front: Node) -> AppliedEdit | None:
        """A part of the port's program at this divergence, or at another one that is open, too: a
        value of all steps of a loop is lost where one step is."""
        for place in [front, *self._others(front)]:
            done = safely(self.session, place, partial(transplant, self.session, place))
            if done is not None:
                return done
        return None

    def _settle(self) -> None:
        """Keep the provisional edits that what is found by now needs, and those of values that
        nothing can depend on (a first step's zero state) where the same edit is proven
        elsewhere."""
        session = self.session
        self.pending = [p for p in self.pending if not proven(session, p.made)]
        open_ = [p.made for p in self.pending]
        known = {(a.cause, a.text) for a in session.accepted if a not in open_}
        for p in [p for p in self.pending if (p.made.cause, p.made.text) in known]:
            if any(o in session.hidden for o in p.made.node.outs):
                p.made.settled = True
                self.pending.remove(p)

    def _back(self, front: Node | None = None) -> bool:
        """Undo the last provisional edit that `front` comes after; any, at the end."""
        for k in reversed(range(len(self.pending))):
            last = self.pending[k]
            if front is not None and not behind(self.session.graph, last.made.replaced, front):
                continue
            self.session.undo(last.snapshot)
            self.session.find_hidden()
            del self.session.accepted[last.known :]
            forget_undone(self.session, self.session.accepted)
            del self.pending[k:]
            self.skip = set(last.skip)
            self.barred.add(last.key)
            return True
        return False


def _repeated(finding: Finding, a: AppliedEdit) -> bool:
    """True if the same was found before at another place: a layer's mistake is each layer's."""
    if (finding.kind, finding.cause) != (a.kind, a.cause):
        return False
    if a.kind == "unknown":
        places = [re.sub(r"\d+", "", place) for place in (finding.torch, a.node.place)]
        return bool(a.jax) and finding.jax == a.jax and places[0] == places[1]
    if a.kind == "expression":
        return alike(finding.text) == alike(a.text)
    return a.kind in ("cause", "precision") and finding.text == _with_ties(a)


def _with_ties(a: AppliedEdit) -> str:
    """The finding's text, with the causes that explain the operation equally well."""
    return f"{a.text}; a tie: {' or '.join(a.ties)} explains it equally well" if a.ties else a.text
