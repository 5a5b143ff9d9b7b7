"""From a comparison to a report: what is wrong, what is open, what was not seen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from twinvit.port import verdict
from twinvit.port.comparison import Comparison
from twinvit.port.envelope import about
from twinvit.port.fixes import fix_of
from twinvit.port.harness import lost_weights
from twinvit.port.index import evidence
from twinvit.port.outputs import Paired
from twinvit.port.pair import Pair, shortened
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.report import FAR, Draw, Finding, Native, Output, Report
from twinvit.port.search.extend import with_further_places
from twinvit.port.search.noise import first_above
from twinvit.port.search.order import other_choices
from twinvit.port.search.session import Session
from twinvit.port.unseen import unseen

NOTHING = (
    "the outputs agree, and no value of the reference was there to be compared: all are constant "
    "or hold fewer than 8 different numbers"
)


@dataclass
class Judged:
    """All that was compared.

    Attributes:
        forward: the comparison in evaluation mode (or in train mode, if that alone was requested).
        trained: the comparison in train mode beside it.
        gradients: findings about gradients.
        known: every difference of gradients has a proven cause.
        native: both programs as they run, in evaluation mode.
        reference: the side that is right.
        seen: positions of constant inputs that were tried with other values.
        wrong, open: further reasons for "different" and "undecided".
    """

    forward: Comparison
    trained: Comparison | None = None
    gradients: list[Finding] = field(default_factory=list)
    known: bool = True
    reference: str = "torch"
    native: Native | None = None
    draws: list[Draw] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def compared(self) -> list[Comparison]:
        return [c for c in (self.forward, self.trained) if c is not None]

    @property
    def findings(self) -> list[Finding]:
        """All, in the order in which data flows; one that train mode repeats is named once."""
        found = [*self.forward.findings, *self.gradients]
        if self.trained is not None:
            known = {(f.cause, f.text) for f in found}
            more = [f for f in self.trained.findings if (f.cause, f.text) not in known]
            for finding in more:
                finding.what = "train"
            found += more
        return found

    @property
    def closed(self) -> bool:
        """True if no output differs any more, and every edit that this needed is proven."""
        proven = not any(c.unknown for c in self.compared) and self.known
        near = all(c.remaining <= FAR for c in self.compared)
        return (
            proven
            and near
            and all(d.verdict != verdict.DIFFERENT for c in self.compared for d in c.after)
        )


def conclude(pair: Pair, kinds: tuple[str, ...], judged: Judged, started: float) -> Report:
    """The report of what was compared."""
    forward = judged.forward
    findings = with_further_places(forward.session, judged.findings)
    rest = evidence_of(judged)
    said = verdict.decide(rest)
    explained = said == verdict.SAME or (
        said == verdict.DIFFERENT and bool(findings) and judged.closed and not judged.wrong
    )
    if not explained:
        findings = [_guessed(f) for f in findings]
    else:  # what is a guess is not to be written anywhere
        findings = [replace(f, fix=f.fix or fix_of(f, judged.reference)) for f in findings]
    reasons = _reasons(said, rest, judged)
    seconds = time.perf_counter() - started
    return Report(
        said,
        explained,
        max(c.distance for c in judged.compared),
        max(c.remaining for c in judged.compared),
        findings,
        forward.narrowings,
        not_seen(judged, kinds),
        [*_notes(pair, judged), _effort(pair, forward, seconds)],
        forward.operations,
        reasons=reasons,
        outputs=outputs_of(forward, said),
        native=judged.native,
        verified=judged.draws,
        reference=judged.reference,
        seconds=seconds,
        operations_after=forward.operations_after if findings else [],
        _verify=forward.program.verify,
        **about(pair.torch_model, pair.jax_model, pair.inputs),
    )


def _guessed(finding: Finding) -> Finding:
    """A finding of a report that stays unexplained: what its cause says is a guess, and an
    expression has no name."""
    if finding.kind == "expression":
        return replace(finding, cause="")
    return replace(finding, text=f"a guess: {finding.text}") if finding.kind == "cause" else finding


def evidence_of(judged: Judged) -> verdict.Evidence:
    """What is wrong and what is open, over all modes."""
    wrong, unclear = list(judged.wrong), list(judged.open)
    for comparison in judged.compared:
        session = comparison.session
        pairs = comparison.recorded.compared
        unclear += comparison.open
        wrong += [f.text for f in comparison.findings]
        for pair, d, drawn in zip(pairs, comparison.after, comparison.behind_draws):
            if d.verdict == verdict.DIFFERENT and drawn:
                unclear.append(f"{pair.title} depends on random numbers that are not the port's")
            elif d.verdict == verdict.DIFFERENT:
                wrong.append(f"{pair.title}: {d.reason}")
            elif d.verdict == verdict.UNDECIDED:
                unclear.append(f"{pair.title}: {d.reason}{_first(session, pair, pairs)}")
        unclear += [
            f"the reference's output {p.title} was not compared ({p.note}): choose with output="
            for p in comparison.recorded.pairs
            if p.port is None and judged.reference == "torch"
        ]
        if judged.reference == "jax":
            unclear += [
                f"the JAX model's output {name or 'without a name'} was not compared (the PyTorch "
                "model returns nothing that is named or placed like it): choose with output="
                for name in comparison.recorded.extra
            ]
        unclear += [*comparison.at_edges, *session.unvouched()]
        unclear += other_choices(session)
    wrong += [f.text for f in judged.gradients]
    return verdict.Evidence(wrong, unclear, sum(c.found for c in judged.compared))


def _first(session: Session, pair: Paired, pairs: Sequence[Paired]) -> str:
    """Where an output's elements that are not finite were first made, or where rounding first
    moves something too far."""
    graph = session.graph
    out = graph.outputs[list(pairs).index(pair)]
    if np.isfinite(to_numpy(graph.values[out])).all():
        place = first_above(graph, session.noise, out, verdict.UNJUDGED)
        return f", first at {place}" if place else ""
    above = graph.ancestors(out)
    nan = bool(graph.values[out].isnan().any())  # infinities before the first NaN may be masks
    for i, value in enumerate(graph.values):
        if i not in above or not value.is_floating_point():
            continue
        if not (value.isnan() if nan else ~value.isfinite()).any():
            continue
        producer = graph.producer[i]
        if producer is None:
            return f" (first in {graph.source[i].replace(':', ' ')})"
        node = graph.nodes[producer]
        return f" (first at {node.place}{', ' + node.where if node.where else ''})"
    return ""


def _reasons(said: str, rest: verdict.Evidence, judged: Judged) -> list[str]:
    """What is said first."""
    if said == verdict.UNDECIDED:
        return list(dict.fromkeys(rest.open)) or [NOTHING]
    if said == verdict.SAME:
        return []
    first = [*judged.wrong, *judged.forward.hidden]
    for comparison in judged.compared:
        for pair, d in zip(comparison.recorded.compared, comparison.before):
            kinds_apart = d.verdict == verdict.DIFFERENT and d.worst == np.inf
            if kinds_apart or (d.verdict == verdict.DIFFERENT and not judged.findings):
                first.append(f"{pair.title}: {d.reason}")
    if not first and not judged.findings:
        first.append("nothing that was tried explains the difference")
    return list(dict.fromkeys(first))


def outputs_of(comparison: Comparison, said: str) -> list[Output]:
    """Each output of either side."""
    found = []
    k = 0
    for pair in comparison.recorded.pairs:
        if pair.port is None:
            found.append(Output(pair.name, None, pair.shape, None, False, note=pair.note))
            continue
        before, after = comparison.before[k], comparison.after[k]
        order = pair.permuted
        found.append(
            Output(
                pair.name,
                pair.theirs,
                pair.shape,
                pair.port_shape,
                True,
                before.relative,
                after.relative,
                (after if said == verdict.SAME else before).worst,
                None if order is None else tuple(int(i) for i in np.argsort(order)),
                before.reason,
            )
        )
        k += 1
    for name in comparison.recorded.extra:
        found.append(Output(None, name, None, None, False, note="the reference returns none"))
    return found


def not_seen(judged: Judged, kinds: tuple[str, ...]) -> list[str]:
    """What these inputs and weights could not show."""
    session = judged.forward.session
    recorded = judged.forward.recorded
    texts = [*recorded.graph.branches(), *recorded.interpreter.branches]
    texts += recorded.interpreter.one_sided()
    if session.unjudged:
        worst = max(session.unjudged, key=lambda i: session.unjudged[i])
        producer = session.graph.producer[worst]
        node = session.graph.nodes[producer] if producer is not None else None
        place = (
            session.graph.source[worst] if node is None else f"{node.place} {node.where}".strip()
        )
        texts.append(
            f"{len(session.unjudged)} values that rounding alone moves by more than "
            f"{verdict.UNJUDGED:.0e} were not looked up, the most at {place} "
            f"({session.unjudged[worst]:.1e})"
        )
    return [*texts, *unseen(session, kinds, judged.seen)]


def _notes(pair: Pair, judged: Judged) -> list[str]:
    session = judged.forward.session
    notes = [*pair.notes]
    lost = lost_weights(session)
    if lost:
        notes.append(f"parameters without an equal in the port: {shortened(lost)}")
    counts = (
        sum(session.graph.values.shaped(i).numel() for i in session.graph.params().values()),
        pair.leaves.numbers(),
    )
    if counts[0] != counts[1]:
        notes.append(
            f"the reference holds {counts[0]} numbers in "
            f"parameters and buffers, the port {counts[1]}"
        )
    for k, i in enumerate(session.graph.inputs()):
        given = to_numpy(session.graph.values[i])
        if evidence(given) and session.index.find(given, 1e-12) is None:
            notes.append(f"the port was given other numbers than the reference as input {k}")
    notes += judged.notes
    if session.errors:
        notes.append(
            f"{len(session.errors)} attempts of causes ended in an error: "
            f"{shortened(list(session.errors), 3)}"
        )
    return notes


def _effort(pair: Pair, forward: Comparison, seconds: float) -> str:
    session, index = forward.session, forward.recorded.index
    return (
        f"{len(session.graph.nodes)} operations against "
        f"{len(index.entries)} values of the port ({pair.pure.kind}), "
        f"{index.lookups} looked up, {index.sorts} sorted, {session.trials} "
        f"edits tried, {seconds:.1f} s"
    )
