"""How many of the reference's values a port computes, by which one of several ways to run it is
chosen: the layout of its images, the map of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from twinvit.port.index import Index, evidence
from twinvit.port.pair import Pair
from twinvit.port.record import jax_trace
from twinvit.port.record.graph import Graph
from twinvit.port.record.jax_interpreter import Interpreter
from twinvit.port.record.jax_trace import Traced
from twinvit.port.record.torch_values import to_numpy

EQUAL = 1e-11


def targets_of(graph: Graph) -> list[np.ndarray]:
    """The reference's values that depend on its inputs and prove something."""
    dependent = graph.input_dependent()
    values = [
        to_numpy(graph.values[i])
        for i in sorted(dependent)
        if graph.source[i] == "node" and graph.values.shaped(i).dtype.is_floating_point
    ]
    return [v for v in values if evidence(v)]


def count_found(targets: Sequence[np.ndarray], traced: Traced, values: Sequence[Any]) -> int:
    """How many of the targets the port computes of these parameters and inputs."""
    index = Index()
    interpreter = Interpreter(index.add)
    jax_trace.evaluate(traced, values, [-1] * len(values), interpreter)
    return sum(index.find(t, EQUAL) is not None for t in targets)


def settle_layout(pair: Pair, graph: Graph, train: bool) -> None:
    """Choose NCHW or NHWC for a port that takes both, as images with as many channels as columns
    are: the one by which more of the reference's values are found."""
    pair.layout = 0
    if not pair.ambiguous_layout:
        return
    targets = targets_of(graph)
    counts = []
    for layout in (0, 1):
        pair.layout = layout
        said = list(pair.notes)
        try:
            traced, arrays, _ = pair.trace(train=train)
            counts.append(count_found(targets, traced, [*pair.leaves.arguments(), *arrays]))
        except Exception:  # a layout that does not run
            counts.append(-1)
        pair.notes[:] = said
    pair.layout = int(counts[1] > counts[0])
    if min(counts) >= 0:
        pair.notes.append(
            "the port takes its images as NCHW and as NHWC; they were given as "
            f"{('NCHW', 'NHWC')[pair.layout]}, by which {max(counts)} of the reference's values "
            f"are found, {min(counts)} otherwise"
        )
