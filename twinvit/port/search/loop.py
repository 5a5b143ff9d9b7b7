"""The search, from the first divergence to the last."""

from __future__ import annotations

import re
from collections.abc import Callable

from twinvit.port.report import Finding
from twinvit.port.search.accept import accept
from twinvit.port.search.candidates import equals, search
from twinvit.port.search.constants import narrow_constants, rounded_positions
from twinvit.port.search.session import Session
from twinvit.port.search.trial import Accepted
from twinvit.port.search.unknown import substitute, without_unknown

Progress = Callable[[str], None]
MAX_FINDINGS = 24


def explain_divergences(session: Session, say: Progress) -> tuple[list[Finding], float, bool]:
    """Explain and mend one divergence after the other, from the first on.

    Returns the findings, the relative L2 distance of the outputs that remains with the edits of
    known causes, and whether a divergence has no known cause.
    """
    accepted: list[Accepted] = []
    skip: set[int] = set()
    unknown = False
    start = session.snapshot()
    constants = narrow_constants(session)
    if constants is not None:
        accepted.append(constants)
        session.accepted.append(constants)
    for _ in range(MAX_FINDINGS):
        fronts = session.frontier(skip)
        if not fronts:
            if session.find_hidden():
                fronts = session.frontier(skip)
            if not fronts:
                break
        front = fronts[0]
        say(f"the two part at {front.place} ({front.where})")
        both = rounded_positions(session, front)
        if both is not None:
            accepted += both
            session.accepted += both
            continue
        done = None
        known = sum(a.kind == "unknown" and a.node.place == front.place for a in accepted)
        trials = search(session, front)[:6] if known < 3 else []
        for trial in trials:
            equal = equals(session, trial, trials, front)
            done = accept(session, trial)
            if done is not None:
                if done.kind == "cause":
                    done.ties = equal
                break
        if done is None:
            done = substitute(session, front)
            unknown = unknown or done.kind == "unknown"
            if not done.values:
                skip.add(front.index)
        accepted.append(done)
        session.accepted.append(done)
    findings: list[Finding] = []
    for a in accepted:
        same = next((f for f in findings if _repeated(f, a)), None)
        if same is not None:
            same.places += [p for p in a.places if p not in same.places]
            continue
        findings.append(
            Finding(
                a.kind,
                a.cause,
                _with_ties(a),
                a.node.place,
                a.jax,
                a.before,
                a.after,
                list(dict.fromkeys(a.places)),
                torch_line=a.node.where,
            )
        )
    remaining = session.output_distance()
    if any(a.kind == "unknown" and a.values for a in accepted):
        remaining = without_unknown(session, start, accepted)
    return findings, remaining, unknown


def _repeated(finding: Finding, a: Accepted) -> bool:
    """True if the same was found before at another place: a layer's mistake is each layer's."""
    if (finding.kind, finding.cause) != (a.kind, a.cause):
        return False
    if a.kind == "unknown":
        places = [re.sub(r"\d+", "", place) for place in (finding.torch, a.node.place)]
        return bool(a.jax) and finding.jax == a.jax and places[0] == places[1]
    return a.kind in ("cause", "precision") and finding.text == _with_ties(a)


def _with_ties(a: Accepted) -> str:
    """The finding's text, with the causes that explain the operation equally well."""
    return f"{a.text}; a tie: {' or '.join(a.ties)} explains it equally well" if a.ties else a.text
