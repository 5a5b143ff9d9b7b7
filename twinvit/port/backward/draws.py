"""Gradients on other inputs, weights and cotangents, with the edits that are to be proven."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from twinvit.port import verdict
from twinvit.port.backward.flow import parameter_gradients
from twinvit.port.backward.ported import Backward, PortGradients, largest
from twinvit.port.backward.rules import Made
from twinvit.port.draws import Sample
from twinvit.port.record.graph import Graph
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.redraw import redrawn_inputs, redrawn_weights

if TYPE_CHECKING:
    from twinvit.port.verify import Program

SIZES = (30.0, 0.02)
"""How large the cotangents are: what depends on a gradient's size (a clip) is another there."""
EQUAL = 1e-8  # relative L2 of two gradients there, whose rounding is not measured


class Draws:
    """Draws on which the reference with the edits of the forward pass is the port.

    Attributes:
        samples: of inputs or weights, each with the reference's graph there and its cotangents.
    """

    def __init__(self, program: Program, graph: Graph, backward: Backward) -> None:
        self._backward = backward
        self.samples: list[tuple[Graph, list[torch.Tensor], PortGradients]] = []
        for k, sample in enumerate(_samples(program)):
            try:
                self._add(program, graph, sample, SIZES[k % len(SIZES)], k)
            except Exception:
                continue

    def _add(self, program: Program, plain: Graph, sample: Sample, size: float, k: int) -> None:
        graph = program.reference(sample.mine, sample.weights)
        if [n.name for n in graph.nodes] != [n.name for n in plain.nodes]:
            return
        theirs = program.port(sample.arrays, sample.weights)
        outs = [to_numpy(graph.values[o]) for o in graph.outputs]
        if any(verdict.judge(x, y).relative > verdict.MOST for x, y in zip(outs, theirs)):
            return
        generator = torch.Generator().manual_seed(100 + k)
        cotangents = [
            size
            * torch.randn(graph.values[o].shape, generator=generator, dtype=torch.float64)
            * graph.values[o].is_floating_point()
            for o in graph.outputs
        ]
        reference = parameter_gradients(graph, cotangents, Made())
        leaves = list(program.pair.leaves)
        if sample.weights is not None:
            for i, place in enumerate(program.leaves):
                leaves[place] = sample.weights.theirs[i]
        found = self._backward.at(graph, sample.arrays, leaves, cotangents, largest(reference))
        self.samples.append((graph, cotangents, found))

    def wrong(self, made: Made, judged: Sequence[str]) -> list[str]:
        """Parameters whose gradients are others on some draw, with these edits made; None of them
        where nothing was drawn."""
        names: dict[str, None] = {}
        for graph, cotangents, theirs in self.samples:
            grads = parameter_gradients(graph, cotangents, made)
            names.update((n, None) for n in judged if not theirs.has(n, grads[n], EQUAL))
        return list(names)


def _samples(program: Program) -> Iterator[Sample]:
    weights = redrawn_weights(
        list(program.params.values()),
        [program.pair.leaves[k] for k in program.leaves],
        program.fixed,
        11,
    )
    if weights.moved and not any(weights.alone):
        yield Sample("weights", "other weights", program.inputs, program.arrays, weights)
    if not program.unmatched():
        mine = redrawn_inputs(program.inputs, 12)
        yield Sample("inputs", "other inputs", mine, program.convert(mine))
