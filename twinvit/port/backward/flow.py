"""The gradients at every value of the reference, which the port has an equal of, and the operations
where those that the port lacks begin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from twinvit.port.backward.rules import Made, ruled
from twinvit.port.index import Index, evidence
from twinvit.port.record.graph import Graph, Node, flat_tensors
from twinvit.port.record.torch_values import to_numpy

TOLERANCE = 1e-10
CUSTOM = ("custom_backward", "custom_backwards", "written_over", "detach")
GIVEN = -1  # the entry of a gradient that is a cotangent of an output


def run_backward(
    graph: Graph, cotangents: Sequence[torch.Tensor], made: Made
) -> tuple[dict[str, torch.Tensor], dict[int, torch.Tensor], Any]:
    """The parameters by name, every value by id, and sum(outputs * cotangents), with a graph."""
    ids = graph.params()
    leaves = {
        name: graph.values[i].detach().clone().requires_grad_(True)
        for name, i in ids.items()
        if graph.values.shaped(i).dtype == torch.float64 and name not in graph.buffers
    }
    with torch.enable_grad():
        changed = {
            ids[n]: ruled(t, made.leaves[ids[n]]) if ids[n] in made.leaves else t
            for n, t in leaves.items()
        }
        values = graph.run(dict(made.edits), changed, everything=True)
        total = sum((values[o] * c).sum() for o, c in zip(graph.outputs, cotangents) if c.any())
    return leaves, values, total


def derivatives(total: Any, by: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    """Derivatives by each of these; None where it depends on none."""
    wanted = [t for t in by if t.requires_grad]
    if not isinstance(total, torch.Tensor) or not total.requires_grad or not wanted:
        return [None] * len(by)
    grads = iter(torch.autograd.grad(total, wanted, allow_unused=True))
    return [next(grads) if t.requires_grad else None for t in by]


def parameter_gradients(
    graph: Graph, cotangents: Sequence[torch.Tensor], made: Made
) -> dict[str, np.ndarray]:
    """Gradients by each parameter's name, zeros where nothing depends on it."""
    leaves, _, total = run_backward(graph, cotangents, made)
    grads = derivatives(total, list(leaves.values()))
    return {
        n: np.zeros(tuple(t.shape)) if g is None else to_numpy(g)
        for (n, t), g in zip(leaves.items(), grads)
    }


@dataclass
class Flow:
    """The reference's gradients with the edits made so far.

    Attributes:
        gradients: of the sum of outputs * cotangents, by the value's id, of the values that it
            depends on.
        entries: by a value's id, the port's entry that is its gradient; None where there is none.
        values: the values themselves.
        given: the cotangents.
    """

    graph: Graph
    made: Made
    index: Index
    values: Mapping[int, torch.Tensor]
    given: Index
    gradients: dict[int, np.ndarray] = field(default_factory=dict)
    entries: dict[int, int | None] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph, cotangents: Sequence[torch.Tensor], made: Made, index: Index) -> Flow:
        _, values, total = run_backward(graph, cotangents, made)
        ids = [i for i, v in values.items() if v.is_floating_point() and v.requires_grad]
        grads = derivatives(total, [values[i] for i in ids])
        given = Index()
        for c in cotangents:
            given.add(to_numpy(c), "cotangent", "", [])
        flow = cls(graph, made, index, {**dict(enumerate(graph.values)), **values}, given)
        for i, g in zip(ids, grads):
            if g is not None:
                flow._add(i, to_numpy(g))
        flow._into_steps()
        return flow

    def _into_steps(self) -> None:
        """Gradients of values that nothing flows on from: what a step returns."""
        trained = self.graph.following(*self.graph.params().values())
        for node in reversed(self.graph.nodes):
            if not any(o in self.gradients for o in node.outs):
                continue
            for r in node.refs:
                if r not in trained or self.values[r].requires_grad:
                    continue
                part = self.at_operand(node, r)
                if part is not None:
                    self._add(r, part + self.gradients.get(r, np.zeros(part.shape)))

    def _add(self, i: int, g: np.ndarray) -> None:
        self.gradients[i] = g
        if evidence(g):
            hit = self.index.find(g, TOLERANCE)
            if hit is None and self.given.find(g, TOLERANCE) is not None:
                hit = GIVEN
            self.entries[i] = hit

    def found(self) -> int:
        """How many gradients the port has an equal of."""
        return sum(e is not None and e != GIVEN for e in self.entries.values())

    def at_operand(self, node: Node, operand: int, size: float = 1.0) -> np.ndarray | None:
        """What an operation gives to the gradient of one of its operands, where its results'
        gradients are `size` times as large."""
        node = self.made.node(self.graph, node.index)
        x = self.values[operand].detach().clone()
        if not x.is_floating_point():
            return None
        with torch.enable_grad():
            x.requires_grad_(True)
            given = {r: self.values[r].detach() for r in node.refs}
            made = flat_tensors(node.run({**given, operand: x}))
            total: Any = sum(
                (t * torch.from_numpy(size * self.gradients[o])).sum()
                for o, t in zip(node.outs, made)
                if o in self.gradients and t is not None and t.requires_grad
            )
        found = derivatives(total, [x])[0]
        return None if found is None else to_numpy(found)

    def custom(self, wrong: Sequence[str]) -> list[Node]:
        """Operations whose backward is their own, or that let no gradient flow, on the way to a
        wrong parameter, the last ones first."""
        ids = self.graph.params()
        reach = self.graph.following(*(ids[n] for n in wrong))
        return [
            node
            for node in reversed(self.graph.nodes)
            if node.name in CUSTOM
            and node.index not in self.made.edits
            and any(r in reach for r in node.refs)
        ]

    def fronts(self, wrong: Sequence[str]) -> Iterator[tuple[Node, list[int]]]:
        """Operations whose results' gradients the port has, and those of whose operands it lacks,
        the last ones first, each with these operands; only what leads to a wrong parameter."""
        graph, ids = self.graph, self.graph.params()
        reach = graph.following(*(ids[n] for n in wrong))
        below = self._below()
        covered: list[tuple[Node, list[int]]] = []
        for node in reversed(graph.nodes):
            outs = [o for o in node.outs if o is not None and o in self.gradients]
            if not outs or not any(self.gradients[o].any() for o in outs):
                continue
            if not all(o in graph.outputs or self.entries.get(o, 0) is not None for o in outs):
                continue
            bad = [r for r in node.refs if r in reach and self._lacks(node, r, ids, wrong)]
            if bad and all(r in below for r in bad):
                covered.append((node, bad))
            elif bad:
                yield node, bad
        yield from covered

    def _lacks(self, node: Node, r: int, ids: Mapping[str, int], wrong: Sequence[str]) -> bool:
        if any(ids[n] == r for n in wrong):
            return True
        g = self.gradients.get(r)
        if g is None or not g.any():
            return True
        if self.entries.get(r, 0) is not None:
            return False
        if len(self.graph.consumers.get(r, ())) < 2:
            return True
        part = self.at_operand(node, r)
        return part is None or not evidence(part) or self.index.find(part, TOLERANCE) is None

    def _below(self) -> set[int]:
        """Values that another one comes before, whose gradient the port has."""
        below: set[int] = set()
        for node in self.graph.nodes:
            if any(r in below or self.entries.get(r) is not None for r in node.refs):
                below.update(o for o in node.outs if o is not None)
        return below
