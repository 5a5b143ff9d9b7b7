"""Values whose effect on everything that is found cancels, whatever the weights: a scale that is
divided out again, a shift that a softmax or a normalisation takes away. A port may leave them out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from twinvit.port.ops import DRAWS
from twinvit.port.record.graph import Graph
from twinvit.port.search.hidden import BLIND, sensitivities

SAME = 1e-9  # relative: values that other weights and inputs do not move


def cancelled(graph: Graph, found: Iterable[int], hidden: Iterable[int]) -> set[int]:
    """Those of `hidden` that change nothing found with other weights and inputs either, though some
    of what is computed from them does: the effects cancel in every model of these operations.

    What passes through a value that is the same for all weights and inputs (a softmax over one
    position) does not count: that is so at these shapes alone. Empty where the operations do not
    run with other weights.
    """
    values = sorted(hidden)
    if not values:
        return set()
    other = _elsewhere(graph)
    exact = sensitivities(other, found, values)
    still = [i for i in values if exact[i] < BLIND]
    if not still:
        return set()
    apart = sensitivities(other, found, still, mixed=_constants(graph, other))
    return {i for i in still if apart[i] >= BLIND}


def _elsewhere(graph: Graph) -> Graph:
    """The same operations with every number of every parameter and floating-point input moved by
    itself, zeros too; what is drawn stays."""
    generator = torch.Generator().manual_seed(5)

    def moved(x: torch.Tensor) -> torch.Tensor:
        r = torch.randn(x.shape, generator=generator, dtype=torch.float64).clamp(-2, 2)
        return torch.where(x == 0, 0.1 * r, x * (1 + 0.2 * r))

    changed = {
        i: moved(graph.values[i])
        for i, s in enumerate(graph.source)
        if s.startswith(("param:", "input:")) and graph.values[i].dtype == torch.float64
    }
    for node in graph.nodes:
        if node.name in DRAWS:
            changed.update({o: graph.values[o] for o in node.outs if o is not None})
    with torch.no_grad():
        run = graph.run({}, changed, everything=True)
    return graph.with_values(run)


def _constants(graph: Graph, other: Graph) -> set[int]:
    """Results of operations on what is moved that are not."""
    moved = {
        i
        for i, (a, b) in enumerate(zip(graph.values, other.values))
        if graph.producer[i] is None and not _equal(a, b)
    }
    found = set()
    for node in graph.nodes:
        if not any(r in moved for r in node.refs):
            continue
        for i in node.outs:
            if i is None:
                continue
            if _equal(graph.values[i], other.values[i]):
                found.add(i)
            else:
                moved.add(i)
    return found


def _equal(a: torch.Tensor, b: Any) -> bool:
    if a is b:
        return True
    if a.shape != b.shape:
        return False
    return torch.allclose(a, b, rtol=SAME, atol=0, equal_nan=True)
