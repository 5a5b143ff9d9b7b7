"""The map of weights is checked before the port is called wrong: what names alone decided is
decided again once the port's other differences are known."""

from __future__ import annotations

import numpy as np

from twinvit.port.comparison import Comparison
from twinvit.port.outputs import pick_torch
from twinvit.port.pair import Pair, shortened
from twinvit.port.record import torch_program, torch_values
from twinvit.port.weight_map import WeightMap, orders_of
from twinvit.port.weight_search import WeightSearch

WEIGHTS = ("weights_swapped", "weight_transposed", "tied_weights", "qkv_order")
"""Causes that a wrong map makes of a right port."""


def map_again(pair: Pair, comparison: Comparison) -> bool:
    """Decide again what the proposed map left open; True if the port holds other weights now.

    The reference is run with the edits that were proven, those of weights left out, and the arrays
    that names alone had placed are exchanged where more of its values appear in the port.
    """
    proposed = pair.weight_map
    if proposed is None or not proposed.open:
        return False
    accepted = comparison.session.accepted
    if not _doubtful(comparison):
        return False
    graph = torch_program.record(
        pair.torch_model,
        pair.inputs,
        lambda out: [t for _, t in pick_torch(out, pair.output)],
    )
    edits = {}
    for a in accepted:
        if a.kind in ("cause", "precision") and a.cause not in WEIGHTS and not a.values:
            edits.update(a.edits)
    try:
        graph = graph.with_values(graph.run(edits))
    except Exception:  # an edit that rests on one of weights
        return False
    state = torch_values.widened(pair.torch_model).state_dict()
    rules = list(proposed.rules)
    search = WeightSearch(
        pair,
        graph,
        rules,
        proposed.open,
        lambda rule: orders_of(pair.pure.kind, rule),
        {k: np.asarray(v, np.float64) for k, v in state.items()},
    )
    before = {r.jax: r for r in proposed.rules}
    open_ = search.decide()
    moved = [r.jax for r in rules if r != before[r.jax]]
    if not moved:
        return False
    pair.place(WeightMap(rules, proposed.ambiguous, proposed.unused, open_))
    pair.notes.append(
        f"the map of weights had placed {shortened(moved)} by name alone, and wrongly: that was "
        "our map, not your port; it was corrected"
    )
    return True


def _doubtful(comparison: Comparison) -> bool:
    """True if a finding could come of a wrong map: one of weights, or one that is unknown."""
    accepted = comparison.session.accepted
    return any(a.kind not in ("cause", "precision") or a.cause in WEIGHTS for a in accepted)


def left_open(pair: Pair, comparison: Comparison) -> list[str]:
    """A note about arrays that names alone have placed."""
    proposed = pair.weight_map
    if proposed is None or not proposed.open or not _doubtful(comparison):
        return []
    return [
        f"{shortened(sorted(proposed.open))}: placed by name alone, as no value decided it; where "
        "a finding is about one of them, doubt our map first, not your port"
    ]
