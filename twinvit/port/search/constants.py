"""Constants that one side computes in a narrower type: frequency tables, sin-cos embeddings.

A module often makes such a table in float32 when it is built; the other side computes it inline in
the model's type. After widening the two are 1e-9 to 1e-6 apart: rounding, not a formula.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import ml_dtypes
import numpy as np
import torch

from twinvit.port.index import SMALLEST, Index, distance, fingerprint, layouts
from twinvit.port.record.graph import Node
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.search.candidates import sites, variants
from twinvit.port.search.edits import edits_of
from twinvit.port.search.session import Session
from twinvit.port.search.trial import NARROW, AppliedEdit

REPEATS = 16
LIKELY = 200


def narrow_constants(session: Session) -> AppliedEdit | None:
    """Take the port's constants into the reference where they differ by a narrow type's rounding.

    The candidates are the last values of the reference that depend on no input. None if there are
    none, or if nothing is found again with the port's in their place.
    """
    graph = session.graph
    dependent = graph.input_dependent() | graph.trained()
    fixed = [i for i in range(len(graph.values)) if i not in dependent]
    held = {i: graph.values[i] for i in fixed}
    values, worst, entry = _rounded(session, _boundary(session), held)
    if not values:
        return None
    producers = sorted({p for v in values if (p := graph.producer[v]) is not None})
    users = sorted(u for v in values for u in graph.consumers.get(v, ()))
    nodes = [graph.nodes[i] for i in producers or users]
    judged = session.judge({}, nodes[0], values, window=400, patience=40)
    if judged is not None and judged.regained == judged.broken == 0:
        # a port that goes token by token holds the parts of what comes next, and the outputs whole
        whole = len(graph.nodes)
        judged = session.judge({}, nodes[0], values, window=whole, patience=whole)
    if judged is None or judged.regained <= judged.broken:
        return None
    pinned = session.pin(values)
    where = session.index.entries[entry].where
    text = f"constants that one side makes in a narrower type, up to {worst:.1e} apart"
    places = list(dict.fromkeys(n.place for n in nodes))
    found = AppliedEdit("precision", "", text, nodes[0], {}, values, where, worst, 0.0, places)
    return found.took(*pinned)


def rounded_positions(session: Session, front: Node) -> tuple[AppliedEdit, AppliedEdit] | None:
    """A wrong base or offset of rotary positions under a table that one side rounds.

    With the right edit the tables are still a narrow type's rounding apart, so that nothing is
    found again before the port's are put in place.
    """
    graph = session.graph
    dependent = graph.input_dependent()
    if any(o in dependent for o in front.outs):
        return None
    boundary = _boundary(session)
    last = max((graph.producer[v] or 0 for v in boundary), default=0)
    for site in sites(session, front):
        if any(o in dependent for o in site.outs):
            continue
        for cause, variant in variants(session, site, "rope", NARROW):
            try:
                edits = edits_of(graph, site, variant)
                changed = graph.run(edits, first=min(edits), until=last)
            except Exception:  # a variant that does not fit here
                continue
            values, after, entry = _rounded(session, [v for v in boundary if v in changed], changed)
            if not values:
                continue
            judged = session.judge(edits, front, values, window=400, patience=40)
            if judged is None or judged.regained <= judged.broken:
                continue
            before = max(
                distance(to_numpy(graph.values[v]), to_numpy(t)) for v, t in values.items()
            )
            session.apply(edits)
            pinned = session.pin(values)
            where = session.index.entries[entry].where
            named = AppliedEdit(
                "cause",
                cause.name,
                variant.text,
                site,
                edits,
                {},
                where,
                before,
                after,
                [site.place],
                settled=True,
            )
            places = list(dict.fromkeys(graph.nodes[graph.producer[v] or 0].place for v in values))
            text = f"constants that one side makes in a narrower type, up to {after:.1e} apart"
            rounding = AppliedEdit(
                "precision", "", text, site, {}, values, where, after, 0.0, places
            )
            return named, rounding.took(*pinned)
    return None


def _rounded(
    session: Session, ids: list[int], held: Mapping[int, torch.Tensor]
) -> tuple[dict[int, torch.Tensor], float, int]:
    """The port's tables that those held by these ids, or those that they were computed from, are
    within a narrow type's rounding of; the largest distance, and its entry of the port."""
    values: dict[int, torch.Tensor] = {}
    worst, entry = 0.0, -1
    wanted = list(ids)
    for out in wanted:
        mine = to_numpy(held[out])
        best = None
        if mine.dtype == np.float64 and mine.size >= SMALLEST:
            best = min(_candidates(session.index, mine), key=lambda c: c[0], default=None)
        if best is not None and _narrowed(mine, best[1]):
            if best[0] > session.tolerance(out):
                values[out] = torch.from_numpy(np.array(best[1]))
                if best[0] > worst:
                    worst, entry = best[0], best[2]
            continue
        producer = session.graph.producer[out]  # the port may hold what this was computed from
        refs = session.graph.nodes[producer].refs if producer is not None else ()
        wanted += [r for r in dict.fromkeys(refs) if r in held and r not in wanted]
    return values, worst, entry


def _narrowed(mine: np.ndarray, theirs: np.ndarray) -> bool:
    """True if one of two tables is the other, rounded to a narrow type: within what float32 makes
    of it, or exactly bfloat16's or float16's numbers."""
    near = distance(mine, theirs) < NARROW and narrow_everywhere(mine, theirs)
    with np.errstate(over="ignore"):
        return near or any(
            np.array_equal(a.astype(dtype).astype(np.float64), b)
            for dtype in (ml_dtypes.bfloat16, np.float16)
            for a, b in ((mine, theirs), (theirs, mine))
        )


def narrow_everywhere(mine: np.ndarray, theirs: np.ndarray) -> bool:
    """True if each number is a narrow type's rounding off, of its own size; of sines and cosines,
    whose arguments are rounded, of one."""
    size = np.abs(mine)
    if size.max(initial=0.0) <= 1 and (mine < 0).any():
        size = np.ones_like(size)
    return bool((np.abs(mine - theirs) <= NARROW * size).all())


def _boundary(session: Session) -> list[int]:
    """The reference's different constants that an operation on the input's values takes."""
    graph = session.graph
    dependent = graph.input_dependent()
    found = []
    for node in graph.nodes:
        if node.index not in session.live or not any(o in dependent for o in node.outs):
            continue
        for ref in node.refs:
            if ref not in dependent | graph.trained() and graph.producer[ref] is not None:
                if session.status(ref) != "found" and ref not in found:
                    found.append(ref)
    return found


def _candidates(index: Index, mine: np.ndarray) -> Iterator[tuple[float, np.ndarray, int]]:
    """(distance, array of `mine`'s shape, entry) of the port's values, repeated ones included."""
    for repeats in range(1, REPEATS + 1):
        for entry in _likely(index, mine, mine.size * repeats):
            theirs = index.entries[entry].value
            if theirs is None or theirs.dtype != np.float64:
                continue
            if repeats > 1:
                theirs = _once(theirs, repeats)
            if theirs is None:
                continue
            for moved in layouts(theirs, mine.shape)[:6]:
                yield distance(mine, moved), moved, entry


def _likely(index: Index, mine: np.ndarray, size: int) -> list[int]:
    """Entries of this size, of very many those whose numbers are alike; copies change nothing."""
    ids = index.ids(size)
    if len(ids) <= LIKELY:
        return ids
    with np.errstate(all="ignore"):
        far = np.abs(index.table(size) - fingerprint(mine)).max(1)
    return [ids[i] for i in np.argsort(far, kind="stable")[:LIKELY]]


def _once(array: np.ndarray, repeats: int) -> np.ndarray | None:
    """One copy of an array that holds `repeats` copies along its first axis."""
    if array.ndim < 2 or array.shape[0] != repeats or not (array == array[:1]).all():
        return None
    return array[0]
