"""Wrong versions of operations that bring the port's values back."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from twinvit.port.call import FITS, Call
from twinvit.port.causes import SPECIAL, Cause, Variant, causes_on
from twinvit.port.index import squeezed_distance
from twinvit.port.ops import REORDER
from twinvit.port.record.graph import Node
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.search.edits import edits_of
from twinvit.port.search.session import Session
from twinvit.port.search.trial import NARROW, Trial, TrialResult

FALSE_IN_CELLS = frozenset(("residual_source", "bias_missing", "flatten_order"))
"""Causes that a step's few elements seem to prove behind a mistake in a recurrent cell."""
FALSE_IN_A_CELL = frozenset(("gate_missing",))
"""Causes that a cell's first step, whose state is zero, seems to prove in the cell itself."""
SEARCH = 800  # candidates that are tried for one operation


def search(
    session: Session, front: Node, barred_keys: Collection[tuple[int, str, str]] = ()
) -> list[Trial]:
    """Candidates that regain something after them, the best first; behind those the provisional
    ones, which regain their own result alone."""
    found: list[Trial] = []
    alone: list[Trial] = []
    ended: Trial | None = None
    barred = any(session.recurrent(a.node) for a in session.accepted)
    tries = 0
    for rank, site in enumerate(sites(session, front)):
        for cause, variant in variants(session, site):
            if barred and cause.name in FALSE_IN_CELLS:
                continue
            if cause.name in FALSE_IN_A_CELL and session.recurrent(site):
                continue
            tries += 1
            if tries > SEARCH:
                break
            try:
                edits = edits_of(session.graph, site, variant)
                judged = session.judge(edits, front)
            except Exception as error:
                session.errors[f"{cause.name} at {site.name}: {type(error).__name__}: {error}"] = (
                    None
                )
                continue
            if judged is None or not _counts(variant, judged):
                continue
            trial = Trial(cause, variant, site, edits, judged, rank)
            if trial.key in barred_keys:
                continue
            if trial.provisional:
                hidden = any(o in session.hidden for o in site.outs)
                if hidden or not session.recurrent(site):
                    alone.append(trial)
                continue
            found.append(trial)
            if ended is None and judged.regained >= 6 and not judged.broken:
                if aligned(session, trial):
                    ended = trial  # nothing else can regain more; the site's others may tie
        if ended is not None:
            return [ended, *(t for t in found if t is not ended and t.site is ended.site)]
        if (
            found
            and rank >= 2
            and max(t.gain for t in found) >= 2
            and not _order_only(session, found)
        ):
            break
    found.sort(
        key=lambda t: (-t.gain, not aligned(session, t), t.rank, t.cause.order if t.cause else 0)
    )
    _special_first(session, found)
    alone = [t for t in alone if aligned(session, t)]
    alone.sort(key=lambda t: (-t.gain, t.rank, t.cause.order if t.cause else 0))
    return found[:6] + alone[:2]


def _special_first(session: Session, found: list[Trial]) -> None:
    """Put a cause that says more than the best one first, if with it all outputs agree: the best
    one may regain more of what comes between."""
    best = found[0].cause.name if found and found[0].cause else ""
    for k, trial in enumerate(found):
        special = trial.cause is not None and best in SPECIAL.get(trial.cause.name, ())
        if special and not trial.judged.broken and _ends(session, trial):
            found.insert(0, found.pop(k))
            return


def _ends(session: Session, trial: Trial) -> bool:
    """True if all outputs agree with an edit."""
    graph = session.graph
    try:
        new = graph.run(trial.edits, first=min(trial.edits))
    except Exception:  # a cause that does not apply here
        return False
    return all(session.agrees(k, new.get(out)) for k, out in enumerate(graph.outputs))


def _counts(variant: Variant, judged: TrialResult) -> bool:
    """True for an edit that regains more than it breaks, and more than it was solved for."""
    kept = judged.regained + judged.own
    if not kept or judged.broken > kept:
        return False
    if variant.also_refs and not judged.regained:  # what it moves elsewhere is not found there
        return False
    if variant.solved is None:
        return True
    return (judged.arrays > 0 or not judged.regained) and told(*variant.solved)


def told(theirs: float, mine: float) -> bool:
    """True for a solved constant that somebody can have written, or that is the reference's own
    rounded; any other is a stored number, which may depend on the input."""
    if abs(theirs - mine) < NARROW * abs(mine):
        return True
    return _written(theirs) or (mine != 0 and _written(theirs / mine))


def _written(t: float) -> bool:
    """True for numbers of six digits, roots of such, and their products with pi, e and log 2."""
    if not math.isfinite(t):
        return False
    for unit in (1.0, math.pi, math.e, math.log(2)):
        for part in (t / unit, t * unit):
            for x in (part, part**2, part**4):
                for y in (x, 1 / x) if x else (x,):
                    if any(abs(y - r) <= 1e-11 * abs(y) for r in (float(f"{y:.6g}"), round(y, 3))):
                        return True
    return abs(float(np.float32(float(f"{t:.6g}"))) - t) <= 1e-11 * abs(t)


def equals(session: Session, trial: Trial, trials: Sequence[Trial], front: Node) -> list[str]:
    """What other causes of `trials` explain the same operation equally well."""
    name = trial.cause.name if trial.cause else ""
    others: list[Trial] = []
    for other in trials:
        theirs = other.cause.name if other.cause else ""
        if theirs == name or other.gain != trial.gain or other.site is not trial.site:
            continue
        if theirs in SPECIAL.get(name, ()):
            continue
        if aligned(session, other) == aligned(session, trial):
            others.append(other)
    if not others:
        return []
    mine = session.judge(trial.edits, front, enough=0)
    found = []
    for other in others[:3]:
        judged = session.judge(other.edits, front, enough=0)
        if (
            mine is not None
            and judged is not None
            and (judged.regained, judged.broken) == (mine.regained, mine.broken)
        ):
            found.append(f"{other.cause.name if other.cause else ''} ({other.variant.text})")
    return found


def aligned(session: Session, trial: Trial) -> bool:
    """True if the first regained value equals the port's element by element, axes permuted at
    most."""
    proof = trial.judged.proof
    if proof is None or proof[1] < 0:
        return True
    theirs = session.index.entries[proof[1]].value
    if theirs is None:
        return True
    return squeezed_distance(to_numpy(proof[2]), theirs) <= session.tolerance(proof[0])


def _order_only(session: Session, trials: Sequence[Trial]) -> bool:
    """True if the best candidates hold their values in another order than the port: look
    further."""
    best = max(t.gain for t in trials)
    return not any(aligned(session, t) for t in trials if t.gain == best)


def sites(session: Session, front: Node) -> list[Node]:
    """Operations at which the divergence seen at `front` can have been made, the likeliest first.

    These are the operation itself, those before it that have no equal or only reorder, those found
    ones that a symmetric product can hide an order behind, and the next ones after it (the port may
    hold the next value only).
    """
    near: dict[int, int] = {front.index: 0}
    layer = [(front, 0)]
    for depth in range(1, 16):
        following: list[tuple[Node, int]] = []
        for node, crossed in layer:
            for ref in node.refs:
                producer = session.graph.producer[ref]
                if producer is None or producer in near:
                    continue
                before = session.graph.nodes[producer]
                found = session.status(ref) == "found" and session.root[ref] == ref
                plain = found and before.name not in REORDER
                cost = crossed + plain
                if cost > 2:
                    continue
                near[producer] = depth + 8 * cost
                following.append((before, cost))
        layer = following
        if not layer or len(near) > 48:
            break
    layer_after = [front]
    for depth in range(1, 13):
        after: list[Node] = []
        for node in layer_after:
            for out in node.outs:
                for user in session.graph.consumers.get(out, ()) if out is not None else ():
                    if user in near or user not in session.live:
                        continue
                    behind = session.graph.nodes[user]
                    if any(_open(session, o) for o in behind.outs if o is not None):
                        near[user] = depth + 3
                        after.append(behind)
        layer_after = after[:4]
    order = sorted(near, key=lambda i: (near[i], -i))
    return [session.graph.nodes[i] for i in order[:48]]


def _open(session: Session, value: int) -> bool:
    """True for a value that is lost, or that depends on an input and proves nothing."""
    status = session.status(value)
    return status == "lost" or (status == "" and value in session.graph.input_dependent())


def variants(
    session: Session, site: Node, family: str = "", fits: float = FITS
) -> Iterator[tuple[Cause, Variant]]:
    """Wrong versions of an operation, of one family of causes or of all."""
    claimed = session.claimed()
    if any(o in session.drawn for o in site.outs):
        return
    for cause in causes_on(site.name, session.what):
        if family and cause.family != family:
            continue
        if session.random.get(site.index) is site and cause.name != "dropout_missing":
            continue
        call = Call(session.graph, site, session.index, claimed)
        call.fits = fits
        call.train = "train" in session.what
        for out, theirs in zip(session.graph.outputs, session.port_outputs):
            if out in site.outs:
                call.target = theirs
        try:
            for variant in cause.generate(call) or ():
                yield cause, variant
        except Exception as error:  # a cause that does not apply here must not end the search
            session.errors[f"{cause.name} at {site.name}: {type(error).__name__}: {error}"] = None
