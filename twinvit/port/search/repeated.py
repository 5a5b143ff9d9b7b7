"""Operations that one trial runs on the very values of the trial before it are run once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from twinvit.port.ops import FRESH_DRAWS, RANDOM
from twinvit.port.record.graph import Edit, Graph, Node
from twinvit.port.record.graph_values import writes

Results = list[tuple[int, torch.Tensor]]
"""What an operation returns, by id."""

_BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


@dataclass
class _Run:
    """One operation as it was run; without a node where an edit stood in its place."""

    node: Node | None
    operands: tuple[object, ...]
    made: Results
    written: list[int] = field(init=False)
    """How often something was written to each of the results then."""

    def __post_init__(self) -> None:
        self.written = self._writes()

    def _writes(self) -> list[int]:
        return [writes(t) for _, t in self.made if isinstance(t, torch.Tensor)]

    def whole(self) -> bool:
        """True unless something was written to a result since."""
        return self.written == self._writes()


class Repeated:
    """The operations of the present trial and of the one before it.

    Results are taken again where the operation and each of its operands are the same objects; an
    edit is always run, and what it returns counts as the same where every bit is.

    Args:
        room: bytes of results that are held of one trial, at most.
    """

    def __init__(self, room: int) -> None:
        self.room = self._left = room
        self._last: dict[int, _Run] = {}
        self._now: dict[int, _Run] = {}

    def begin(self) -> None:
        """The next trial."""
        self._last, self._now, self._left = self._now, {}, self.room

    def step(
        self,
        graph: Graph,
        index: int,
        edits: Mapping[int, Edit],
        changed: Mapping[int, torch.Tensor],
    ) -> Results:
        """As `Graph.step`."""
        node, last = graph.nodes[index], self._last.get(index)
        if last is not None and not last.whole():
            last = None
        if index in edits:
            made = graph.step(index, edits, changed)
            if last is not None and _alike(made, last.made):
                made = last.made
            self._keep(index, _Run(None, (), made))
            return made
        if not any(r in changed for r in node.refs):
            return []
        operands = tuple(changed[r] if r in changed else graph.values.kept[r] for r in node.refs)
        if last is not None and last.node is node and _same(operands, last.operands):
            if [o for o in node.outs if o is not None and o not in changed] == [
                o for o, _ in last.made
            ]:
                self._keep(index, last)
                return last.made
        made = graph.step(index, edits, changed)
        self._keep(index, _Run(node, operands, made))
        return made

    def _keep(self, index: int, run: _Run) -> None:
        self._left -= sum(t.nbytes for _, t in run.made if isinstance(t, torch.Tensor))
        if self._left >= 0:
            self._now[index] = run


def draws(graph: Graph) -> bool:
    """True if an operation of the graph draws random numbers, each time others."""
    return any(node.name in RANDOM or node.name in FRESH_DRAWS for node in graph.nodes)


def _same(a: tuple[object, ...], b: tuple[object, ...]) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b))


def _alike(a: Results, b: Results) -> bool:
    """True if two results are the same to the last bit, laid out alike in memory."""
    return len(a) == len(b) and all(i == j and _identical(x, y) for (i, x), (j, y) in zip(a, b))


def _identical(x: torch.Tensor, y: torch.Tensor) -> bool:
    if not (isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor)):
        return False
    if x.layout != torch.strided or y.layout != torch.strided:
        return False
    if (x.dtype, x.shape, x.stride()) != (y.dtype, y.shape, y.stride()):
        return False
    bits = _BITS.get(x.element_size()) if not x.is_complex() else None
    return bits is not None and torch.equal(x.detach().view(bits), y.detach().view(bits))
