"""References whose control flow follows numbers that an edit changes: recorded again with it.

A router that sends tokens to other experts runs operations that the first recording does not have.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from twinvit.port import verdict
from twinvit.port.comparison import Comparison, compare
from twinvit.port.outputs import pick_torch
from twinvit.port.pair import Pair
from twinvit.port.record import torch_program
from twinvit.port.record.live_edits import LiveEdits, live_edits
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.report import Finding
from twinvit.port.search.loop import Progress
from twinvit.port.search.trial import AppliedEdit

NOTE = (
    "the reference's control flow follows numbers that the edits change: it was recorded again "
    "with the edits made"
)
ROUNDS = 6  # recordings with edits


def compare_following(pair: Pair, train: bool, say: Progress) -> Comparison:
    """`compare`, with the reference recorded again wherever its control flow follows numbers that
    a finding's edit changes."""
    pair.live = None
    fixed = train or hasattr(pair.torch_model, "replayed")  # a recording follows one path
    first = found = compare(pair, train, say, stop=not fixed)
    if not found.stale:
        return found
    carried: list[tuple[LiveEdits, Finding]] = []
    for _ in range(ROUNDS):
        try:
            carried += _carried(found)
            pair.live = _together(e for e, _ in carried), first.recorded.graph
            say("recording the reference again with the edits")
            found = compare(pair, train, say, stop=True, native=first.native)
        except Exception:  # an edit that fits the first operations alone
            pair.live = None
            return compare(pair, train, say)
        if not found.stale:
            break
    if any(d.verdict == verdict.DIFFERENT for d in found.after):
        pair.live = None  # the edits before it were not all proven
        return compare(pair, train, say)
    kept = _needed(pair, found, carried)
    pair.live = _together(e for e, _ in kept), first.recorded.graph
    found.program.live = pair.live
    pair.notes += [NOTE] if NOTE not in pair.notes else []
    return _joined(first, found, [f for _, f in kept])


def _together(edits: Iterable[LiveEdits]) -> LiveEdits:
    made = LiveEdits()
    for e in edits:
        made = made.plus(e)
    return made


def _carried(found: Comparison) -> list[tuple[LiveEdits, Finding]]:
    """The edits that were made so far, as they are made in another recording."""
    plain = found.recorded.graph
    made = []
    for a in found.session.accepted:
        if a.kind != "unknown" and a.finding is not None and not a.values:
            made.append((live_edits(plain, [a.edits]), a.finding))
    if not made:
        raise ValueError("no edit can be made in another recording")
    return made


def _needed(
    pair: Pair, found: Comparison, carried: Sequence[tuple[LiveEdits, Finding]]
) -> list[tuple[LiveEdits, Finding]]:
    """Those without one of which the outputs are not the port's."""
    own = live_edits(found.recorded.graph, [a.edits for a in _edits(found)])
    kept = list(carried)
    for one in reversed(carried):
        rest = [c for c in kept if c is not one]
        if _agree(pair, found, _together(e for e, _ in rest).plus(own)):
            kept = rest
    return kept


def _edits(found: Comparison) -> list[AppliedEdit]:
    return [a for a in found.session.accepted if a.kind != "unknown" and not a.values]


def _agree(pair: Pair, found: Comparison, live: LiveEdits) -> bool:
    """True if with these edits alone no output differs from the port's."""
    like = found.recorded.graph if pair.live is None else pair.live[1]
    try:
        graph = torch_program.record(
            pair.torch_model,
            pair.inputs,
            lambda out: [t for _, t in pick_torch(out, pair.output)],
            like=like,
            live=live,
        )
    except Exception:
        return False
    return all(
        verdict.judge(to_numpy(graph.values[graph.outputs[p.mine]]), theirs).verdict
        != verdict.DIFFERENT
        for p, theirs in zip(found.recorded.compared, found.session.port_outputs)
    )


def _joined(first: Comparison, found: Comparison, carried: Sequence[Finding]) -> Comparison:
    """The last comparison, with what the edits before it are reported as."""
    findings: list[Finding] = []
    for finding in [*carried, *found.findings]:
        same = next((f for f in findings if _same(f, finding)), None)
        if same is None:
            findings.append(finding)
            continue
        same.places = list(dict.fromkeys([*same.places, *finding.places]))
        same.torch_lines = list(dict.fromkeys([*same.torch_lines, *finding.torch_lines]))
        same.jax_lines = list(dict.fromkeys([*same.jax_lines, *finding.jax_lines]))
    for a in found.session.accepted:
        if a.finding is not None:
            mine = (f for f in findings if f is a.finding or _same(f, a.finding))
            a.finding = next(mine, a.finding)  # one that may be none is reported nowhere
    return replace(
        found,
        findings=findings,
        before=first.before,
        distance=first.distance,
        operations=first.operations,
        narrowings=first.narrowings,
    )


def _same(one: Finding, other: Finding) -> bool:
    known = one.kind in ("cause", "precision", "expression")
    return known and (one.kind, one.cause, one.text) == (other.kind, other.cause, other.text)
