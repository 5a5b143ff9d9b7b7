"""The same edit at places where the first inputs do not show it.

A port that clips at 6 where its reference does not is the same wherever nothing exceeds 6. Other
inputs exceed it elsewhere, and there the reference with the edits and the port are apart.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from twinvit.port import verdict
from twinvit.port.draws import Sample, Verified, verified
from twinvit.port.index import Index, evidence
from twinvit.port.record.graph import Edit, Graph, Node
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.report import CEILING, Finding
from twinvit.port.search.accept import same_edits, signature_of
from twinvit.port.search.session import Session
from twinvit.port.search.trial import AppliedEdit
from twinvit.port.verify import Further, Program

EQUAL = 1e-11  # relative: a value of the port's on random inputs, whose rounding is not measured
ROUNDS = 3  # times that places are added and new samples drawn
SHOWN = 3  # places that a finding's text names


def verified_further(session: Session, program: Program, others: Further, drawn: bool) -> Verified:
    """`verified`, with the findings' edits also made at places that its samples need and that the
    first inputs do not show, each time proven on new samples."""
    tried = verified(program, others, drawn)
    for k in range(ROUNDS):
        if not (tried.failed or tried.unclear) or not extend(session, program, tried):
            break
        tried = verified(program, others, drawn, seed=10 * (k + 1))
    return tried


def with_further_places(session: Session, findings: Sequence[Finding]) -> list[Finding]:
    """The findings, with the places that other inputs than the first show."""
    told = []
    for finding in findings:
        unseen = [p for a in session.accepted if a.finding is finding for p in a.unseen]
        if unseen := list(dict.fromkeys(unseen)):
            names = ", ".join(unseen[:SHOWN])
            if len(unseen) > SHOWN:
                names += f" and {len(unseen) - SHOWN} more"
            text = f"{finding.text}; also at {names}, where these inputs do not show it"
            places = list(dict.fromkeys([*finding.places, *unseen]))
            finding = replace(finding, text=text, places=places)
        told.append(finding)
    return told


@dataclass
class _Place:
    """A place where a finding's edit changes nothing on the first inputs."""

    accepted: AppliedEdit
    node: Node
    edits: dict[int, Edit]


@dataclass
class _Run:
    """The reference with the findings' edits and the port, on one sample."""

    graph: Graph
    index: Index
    outputs: list[np.ndarray]

    def agrees(self, edits: Mapping[int, Edit]) -> bool:
        """True if with these edits, too, the outputs are the port's."""
        changed = self.graph.run(edits)
        return all(
            verdict.relative(to_numpy(changed.get(o, self.graph.values[o])), theirs) <= CEILING
            for o, theirs in zip(self.graph.outputs, self.outputs)
        )

    def found(self, edits: Mapping[int, Edit]) -> int:
        """How many of the reference's values the port holds, with these edits, too."""
        changed = self.graph.run(edits)
        return sum(
            self._holds(changed[i]) if i in changed else i in self._plain
            for i, source in enumerate(self.graph.source)
            if source == "node"
        )

    @cached_property
    def _plain(self) -> set[int]:
        """Ids of the values that the port holds without further edits."""
        return {i for i, value in enumerate(self.graph.values) if self._holds(value)}

    def _holds(self, value: torch.Tensor) -> bool:
        array = to_numpy(value)
        return evidence(array) and self.index.find(array, EQUAL) is not None


def extend(session: Session, program: Program, tried: Verified) -> bool:
    """Make each finding's edit at further places, too, where the samples that failed need it and
    the first inputs do not show it; the findings tell of them. True if some were made.

    Nothing is made unless with it the reference and the port agree on every sample.
    """
    places = list(_further(session))
    if not places:
        return False
    failed = [_run(program, s) for s in tried.failed or tried.unclear]
    felt = [p for p in places if any(_changes(run.graph, p.edits) for run in failed)]
    if not felt:
        return False
    agreed = [_run(program, s) for s in tried.agreed]
    for chosen in (felt, _one_by_one(failed, felt)):
        if chosen and all(_agrees(run, chosen) for run in [*failed, *agreed]):
            for place in _needed([*failed, *agreed], chosen):
                _make(session, place)
            return True
    return False


def _run(program: Program, sample: Sample) -> _Run:
    index = Index()
    graph = program.reference(sample.mine, sample.weights)
    return _Run(graph, index, program.port(sample.arrays, sample.weights, index.add))


def _further(session: Session) -> Iterator[_Place]:
    """Places at which a finding's edit was not made and changes nothing that is found, in order;
    at each one edit."""
    accepted = [a for a in session.accepted if (a.trial or a.left_out) and a.finding is not None]
    made = {i for a in session.accepted for i in a.made}
    for node in session.graph.nodes:
        if node.index not in session.live or node.index in made:
            continue
        for a in accepted:
            edits = _edits(session, a, node)
            if edits is not None and not made.intersection(edits):
                yield _Place(a, node, edits)
                break


def _edits(session: Session, a: AppliedEdit, node: Node) -> dict[int, Edit] | None:
    """A finding's edit at another operation, if it changes nothing there."""
    for left_out in a.left_out:
        if node.index in left_out:
            return left_out
    trial = a.trial
    if trial is None or trial.cause is None or node.name != trial.site.name:
        return None
    if signature_of(session, node) != signature_of(session, trial.site):
        return None
    edits = same_edits(session, trial, node)
    if edits is None or _changes(session.graph, edits, session):
        return None
    return edits


def _changes(graph: Graph, edits: Mapping[int, Edit], session: Session | None = None) -> bool:
    """True if edits change what follows them (with a session: by more than rounding), or fail."""
    first, last = min(edits), max(edits)
    try:
        new = graph.run(edits, first=first, until=last)
    except Exception:  # a cause that does not apply here
        return True
    for o, value in new.items():
        old = graph.values[o]
        seen = o in graph.outputs or any(c > last for c in graph.consumers.get(o, ()))
        if not seen or value.shape == old.shape and torch.equal(value, old):
            continue
        if session is None or value.shape != old.shape:
            return True
        if verdict.relative(to_numpy(old), to_numpy(value)) > session.tolerance(o):
            return True
    return False


def _one_by_one(runs: Sequence[_Run], places: Sequence[_Place]) -> list[_Place]:
    """Of places in order, those with whose edits the port holds more of the reference's values.

    The place's own result tells nothing: who clips at 6 has what is not clipped, too.
    """
    chosen: list[_Place] = []
    for place in places:
        now, then = _all_of(chosen), _all_of([*chosen, place])
        try:
            more = sum(run.found(then) - run.found(now) for run in runs)
        except Exception:  # an edit that fits the first inputs alone
            continue
        if more > 0:
            chosen.append(place)
    return chosen


def _needed(runs: Sequence[_Run], places: Sequence[_Place]) -> list[_Place]:
    """Of places those without one of which some sample fails."""
    kept = list(places)
    for place in reversed(places):
        rest = [p for p in kept if p is not place]
        if all(_agrees(run, rest) for run in runs):
            kept = rest
    return kept


def _agrees(run: _Run, places: Collection[_Place]) -> bool:
    try:
        return run.agrees(_all_of(places))
    except Exception:  # an edit that fits the first inputs alone
        return False


def _all_of(places: Collection[_Place]) -> dict[int, Edit]:
    return {i: edit for p in places for i, edit in p.edits.items()}


def _make(session: Session, place: _Place) -> None:
    """Make the edit there, and tell of it in its finding."""
    before = session.graph
    session.apply(place.edits)
    place.accepted.extend(place.node, place.edits, before, session.graph)
    place.accepted.unseen.append(place.node.place)
