"""What a cause is called with: one operation of the reference, its arguments, and what surrounds
it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from twinvit.port.index import SMALLEST, Index, fingerprint
from twinvit.port.ops import ELEMENTWISE, LAYOUT
from twinvit.port.record.graph import Graph, Node, Ref, flat_tensors

FITS = 1e-11


class Call:
    """An operation with its present arguments, as a cause sees it.

    Attributes:
        node: the operation: `name`, `scope`, `where`.
        args, kwargs: its arguments, tensors resolved.
        outs: its present results (None where there is no tensor).
        out: the first of them.
        fits: the relative distance up to which a solved value counts as one of the port's.
        train: True in train mode.
    """

    def __init__(
        self, graph: Graph, node: Node, index: Index | None = None, claimed: Iterable[int] = ()
    ) -> None:
        self._graph = weakref.ref(graph)
        self.node = node
        self.index = index
        self.claimed = claimed
        self.target: np.ndarray | None = (
            None  # the port's output that the operation's first result is
        )
        self.fits = FITS
        self.train = False
        self.args, self.kwargs = graph.arguments(node)
        self.outs = [None if i is None else graph.values[i] for i in node.outs]
        self.out: torch.Tensor = next((o for o in self.outs if o is not None), torch.zeros(0))

    @property
    def graph(self) -> Graph:
        """The reference as it is while causes are tried. A variant's function, which is stored with
        the finding, does not store it: each edited graph has its own values.

        Raises:
            ReferenceError: it no longer exists; a variant's function is to use what it read before.
        """
        graph = self._graph()
        if graph is None:
            raise ReferenceError("the graph that the cause was asked about is gone")
        return graph

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The operation itself on other arguments."""
        return self.node.op(*args, **kwargs)

    def argument(self, position: int, default: Any = None) -> Any:
        return self.args[position] if position < len(self.args) else default

    def ref(self, position: int) -> int | None:
        """The id of a tensor argument."""
        value = self.node.args[position] if position < len(self.node.args) else None
        return value.id if isinstance(value, Ref) else None

    def with_args(self, **changes: Any) -> Callable[..., Any]:
        """The operation with some positional arguments (a0, a1, ...) replaced: values or functions
        of the present ones."""
        op = self.node.op
        edits = {int(k[1:]): v for k, v in changes.items()}

        def fn(*args: Any, **kwargs: Any) -> Any:
            new = list(args) + [None] * (max(edits) + 1 - len(args))
            for i, v in edits.items():
                new[i] = v(new[i]) if callable(v) else v
            return op(*new, **kwargs)

        return fn

    def root(self, value_id: int | None) -> int | None:
        """The value that this one is only another layout of."""
        while value_id is not None:
            producer = self.graph.producer[value_id]
            if producer is None:
                return value_id
            node = self.graph.nodes[producer]
            if node.name not in LAYOUT or not node.refs:
                return value_id
            source = node.refs[0]
            if (
                self.graph.values.shaped(source).numel()
                != self.graph.values.shaped(value_id).numel()
            ):
                return value_id
            value_id = source
        return None

    def parameter(self, position: int) -> str | None:
        """The name of the parameter that an argument is (another layout of); None if it is none."""
        root = self.root(self.ref(position))
        source = self.graph.source[root] if root is not None else ""
        return source[6:] if source.startswith("param:") else None

    def fixed(self, position: int) -> bool:
        """True for an argument that depends on no input and no trained parameter: a number, a
        table, a mask."""
        ref = self.ref(position)
        return ref is None or (
            ref not in self.graph.input_dependent() and ref not in self.graph.trained()
        )

    def solve(
        self,
        fn: Callable[[float], torch.Tensor],
        low: float,
        high: float,
        *,
        grid: Sequence[float] = (),
        count: int = 6,
    ) -> Iterator[float]:
        """Values t for which `fn(t)` can be one of the port's arrays, solved from the root mean
        square.

        The order of the array's axes does not matter. `grid` values that fit are preferred; without
        a port they
        are all there is.
        """
        if self.index is None:
            yield from grid
            return
        yielded: set[float] = set()
        yield from self._solve(fn, low, high, grid, count, yielded)
        if not yielded:  # the port may hold what follows only
            yield from grid

    def _solve(
        self,
        fn: Callable[[float], torch.Tensor],
        low: float,
        high: float,
        grid: Sequence[float],
        count: int,
        yielded: set[float],
    ) -> Iterator[float]:
        assert self.index is not None

        def size(t: float) -> tuple[float, np.ndarray]:
            array = np.ascontiguousarray(fn(t).detach().numpy())
            return float(fingerprint(array)[1]), array

        for t in grid:
            if self._fits(size(t)[1]):
                yielded.add(t)
                yield t
        bottom, array = size(low)
        top, _ = size(high)
        if array.size < SMALLEST or not np.isfinite([bottom, top]).all() or bottom == top:
            return
        table = self.index.table(array.size)
        ids = self.index.ids(array.size)
        inside = [
            (abs(table[k][1] - float(self.out.double().pow(2).mean().sqrt())), k)
            for k in range(len(ids))
            if ids[k] not in self.claimed and min(bottom, top) <= table[k][1] <= max(bottom, top)
        ]
        log = low > 0
        for _, k in sorted(inside)[:count]:
            goal = float(table[k][1])
            t = _root(
                lambda u, g=goal: size(np.exp(u) if log else u)[0] - g,  # type: ignore[misc]
                np.log(low) if log else low,
                np.log(high) if log else high,
            )
            t = float(np.exp(t)) if log else float(t)
            for nice in (*(float(f"{t:.{d}g}") for d in (1, 2, 3, 4, 6)), t):
                if nice not in yielded and self._fits(size(nice)[1]):
                    yielded.add(nice)
                    yield nice
                    break

    def solve_factor(
        self, kept: torch.Tensor, term: torch.Tensor, count: int = 8
    ) -> Iterator[float]:
        """Factors t for which `kept + t * term` can be one of the port's arrays, from the mean
        square (a quadratic)."""
        if self.index is None:
            return
        kept, term = torch.broadcast_tensors(kept, term)
        a = float((term * term).mean())
        b = 2 * float((kept * term).mean())
        table = self.index.table(kept.numel())
        ids = self.index.ids(kept.numel())
        now = float((kept + term).pow(2).mean().sqrt())
        near = sorted(
            (abs(table[k][1] - now), k) for k in range(len(ids)) if ids[k] not in self.claimed
        )
        seen: set[float] = set()
        for _, k in near[:count]:
            c = float((kept * kept).mean()) - float(table[k][1]) ** 2
            root = b * b - 4 * a * c
            if root < 0 or a == 0:
                continue
            for t in ((-b + root**0.5) / (2 * a), (-b - root**0.5) / (2 * a)):
                for nice in (*(float(f"{t:.{d}g}") for d in (1, 2, 3, 4, 6)), t):
                    if nice not in seen and self._fits((kept + nice * term).detach().numpy()):
                        seen.add(nice)
                        yield nice
                        break

    def _fits(self, array: np.ndarray) -> bool:
        assert self.index is not None
        return self.index.find(np.ascontiguousarray(array, np.float64), self.fits) is not None

    def leads_to(self, *names: str, steps: int = 10, before: tuple[str, ...] = ()) -> bool:
        """True if an operation of one of these names follows within so many steps, none of `before`
        between."""
        layer = [o for o in self.node.outs if o is not None]
        for _ in range(steps):
            following: list[int] = []
            for value in layer:
                for user in self.graph.consumers.get(value, ()):
                    node = self.graph.nodes[user]
                    if node.name in names:
                        return True
                    if node.name not in before:
                        following += [o for o in node.outs if o is not None]
            layer = list(dict.fromkeys(following))[:16]
        return False

    def comes_from(self, *names: str, steps: int = 10) -> bool:
        """True if an operation of one of these names comes before within so many steps."""
        layer = list(self.node.refs)
        for _ in range(steps):
            following: list[int] = []
            for value in layer:
                producer = self.graph.producer[value]
                if producer is None:
                    continue
                node = self.graph.nodes[producer]
                if node.name in names:
                    return True
                following += node.refs
            layer = following[:16]
        return False

    def widths(self) -> list[int]:
        """Sizes that a constant may have been derived from: axes of the arguments and of
        parameters."""
        sizes: dict[int, None] = {}
        for arg in (*self.args, *self.outs):
            if isinstance(arg, torch.Tensor):
                sizes.update(dict.fromkeys(arg.shape))
        for value_id in self.graph.params().values():
            sizes.update(dict.fromkeys(self.graph.values.shaped(value_id).shape))
        return [s for s in sizes if s > 1][:24]

    def elementwise_regions(self) -> list[tuple[int, int]]:
        """Expressions of one variable that this operation begins: (last operation, id of the
        variable).

        E.g. `0.5 * x * (1 + erf(x / sqrt(2)))` begins at its first operation on x and ends at the
        last product.
        """
        if self.node.name not in ELEMENTWISE and self.node.name != "pow":
            return []
        result: list[tuple[int, int]] = []
        for source in self.node.refs:
            if (
                self.graph.values.shaped(source).shape != self.out.shape
                or source not in self.graph.input_dependent()
            ):
                continue
            region = {source}
            ends: list[int] = []
            for node in self.graph.nodes[self.graph.first_use(source) : self.node.index + 24]:
                if not node.refs or not any(r in region for r in node.refs):
                    continue
                inputs = [r for r in node.refs if self.graph.values.shaped(r).numel() > 1]
                if node.name not in ELEMENTWISE or not all(r in region for r in inputs):
                    continue

                if self.graph.values.shaped(node.outs[0] or 0).shape != self.out.shape:
                    continue
                region.add(node.outs[0])  # type: ignore[arg-type]
                if node.index > self.node.index:
                    ends.append(node.index)
            for end in ends:
                out = self.graph.nodes[end].outs[0]
                users = self.graph.consumers.get(out or -1, ())
                if any(u not in ends for u in users) or not users:
                    result.append((end, source))
        return result[:3]


def _root(f: Callable[[float], float], low: float, high: float, steps: int = 60) -> float:
    """A root of a monotonic function by the Illinois form of regula falsi."""
    a, b = low, high
    fa, fb = f(a), f(b)
    if fa * fb > 0:
        return a if abs(fa) < abs(fb) else b
    side = 0
    c = a
    for _ in range(steps):
        c = (fa * b - fb * a) / (fa - fb) if fa != fb else (a + b) / 2
        fc = f(c)
        if fc == 0 or abs(b - a) < 1e-15 * max(1.0, abs(c)):
            break
        if fc * fb > 0:
            b, fb = c, fc
            if side == -1:
                fa /= 2
            side = -1
        else:
            a, fa = c, fc
            if side == 1:
                fb /= 2
            side = 1
    return c


def results(out: Any, node: Node, outs: Sequence[torch.Tensor | None]) -> Any:
    """What a variant returned as what the operation returns: missing further results are the
    present ones."""
    given = flat_tensors(out)
    if len(given) == len(outs):
        return out
    if len(given) == 1 and len(outs) > 1:
        return (out if isinstance(out, torch.Tensor) else given[0], *outs[1:])
    raise ValueError(f"{node.name} returns {len(outs)} values, the variant {len(given)}")
