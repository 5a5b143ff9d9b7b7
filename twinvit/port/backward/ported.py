"""The port's gradients, and what they are compared with."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from twinvit.port.backward.flow import TOLERANCE
from twinvit.port.index import Index, distance, evidence, layouts
from twinvit.port.record import jax_trace
from twinvit.port.record.graph import Graph
from twinvit.port.record.jax_interpreter import Interpreter
from twinvit.port.record.jax_tape import Slot, Tape, Taping
from twinvit.port.record.torch_values import to_numpy

LAYERS = 64  # a longer first axis is none of stacked layers


class PortGradients:
    """The port's gradients.

    Attributes:
        index: every value of its backward pass that can be looked up.
        own: by the name of a parameter of the reference, the gradient of the port's one array that
            holds the same values, each number in the place of the parameter's.
        values: those parameters.
        few: gradients and parts of them with too few elements to be looked up, sorted, by size.
        zeros: how many gradients and parts of them are zero, by size.
        broken: of each gradient that holds NaN or infinity their counts, by `kinds`.
        size: the largest finite number in a gradient of the reference.
        first: the line of the port whose derivative first makes NaN of numbers; "" where none does.
        tape: how its backward pass was computed.
        lines: by the id of a value of the reference the line at which the port computes it.
    """

    first = ""
    lines: Mapping[int, str] = {}
    tape: Tape | None = None

    def __init__(
        self,
        index: Index,
        own: Mapping[str, tuple[np.ndarray, np.ndarray]],
        gradients: Sequence[np.ndarray],
        size: float,
    ) -> None:
        """`own`: the parameters and their gradients."""
        self.index = index
        self.own = {name: g for name, (_, g) in own.items()}
        self.values = {name: value for name, (value, _) in own.items()}
        self.size = size
        self.few: dict[int, list[np.ndarray]] = {}
        self.zeros: Counter[int] = Counter()
        self.broken = {kinds(g) for g in gradients if not np.isfinite(g).all()}
        for part in (part for g in gradients for part in _parts(g)):
            if not np.any(part):
                self.zeros[part.size] += 1
            elif not evidence(part):
                self.few.setdefault(part.size, []).append(np.sort(part, axis=None))

    def has(self, name: str, g: np.ndarray, tolerance: float = TOLERANCE) -> bool:
        """True if this is the port's gradient of a parameter; one of few elements is not judged.

        A parameter whose numbers one array of the port holds is compared with that array's
        gradient. Of another one (fused, split, tied, or all ones) the gradient, or its equal parts
        along the first axis, must be anywhere in the port's backward pass: what the port does to
        the gradient behind that value is not seen.
        """
        if not np.isfinite(g).all():
            if name not in self.own:
                return kinds(g) in self.broken
            theirs = self.own[name]
            return kinds(g) == kinds(theirs) and _finite_apart(g, theirs) <= tolerance
        if name in self.own:
            theirs = self.own[name]
            if not np.isfinite(theirs).all():
                return False
            return (
                not np.any(np.abs(theirs) > tolerance * self.size)
                if self._is_rounding(g)
                else self.apart(name, g) <= tolerance
            )
        return (
            not evidence(g)
            or self._holds(g, tolerance)
            or any(
                g.shape[0] % n == 0
                and g.shape[0] > n
                and self._holds_parts(np.split(g, n), tolerance)
                for n in (2, 3, 4)
            )
        )

    def apart(self, name: str, g: np.ndarray) -> float:
        """Distance of a gradient of a parameter in `own` from the port's, number by number; those
        of equal numbers of the parameter in any order."""
        value = self.values[name].reshape(-1)
        mine, theirs = g.reshape(-1), self.own[name].reshape(-1)
        return distance(mine[np.lexsort((mine, value))], theirs[np.lexsort((theirs, value))])

    def has_cut(self, g: np.ndarray) -> bool:
        """True if the port has a gradient of zeros of this size, or parts of this one."""
        return any(g.size % n == 0 and self.zeros[g.size // n] >= n for n in (1, 2, 3, 4))

    def _holds(self, g: np.ndarray, tolerance: float) -> bool:
        if self._is_rounding(g):
            return True
        if evidence(g):
            return self.index.find(g, tolerance) is not None
        mine = np.sort(g, axis=None)
        return any(distance(mine, few) <= tolerance for few in self.few.get(g.size, ()))

    def _holds_parts(self, parts: list[np.ndarray], tolerance: float) -> bool:
        left = [part for part in parts if np.any(part)]
        cut = len(parts) - len(left)  # zeros are no evidence: the port must have as many
        return self.zeros[parts[0].size] >= cut and all(
            self._holds(part, tolerance) for part in left
        )

    def _is_rounding(self, g: np.ndarray) -> bool:
        """True for a gradient that is zero but for rounding (the bias of attention's keys)."""
        return not np.any(np.abs(g) > 1e-12 * self.size)


def kinds(g: np.ndarray) -> tuple[int, int, int, int]:
    """How many elements a gradient has, and how many are NaN, infinity and minus infinity."""
    return g.size, int(np.isnan(g).sum()), int((g == np.inf).sum()), int((g == -np.inf).sum())


def _finite_apart(x: np.ndarray, y: np.ndarray) -> float:
    """Distance of the finite values of two arrays that have as many."""
    x, y = np.sort(x[np.isfinite(x)]), np.sort(y[np.isfinite(y)])
    return distance(x, y) if x.size else 0.0


def _parts(g: np.ndarray) -> Iterator[np.ndarray]:
    """A gradient, those of a stack's layers, and equal parts along each axis."""
    yield g
    if g.ndim >= 2 and 1 < g.shape[0] <= LAYERS:
        yield from g
    for axis, n in itertools.product(range(g.ndim), (2, 3, 4)):
        if g.shape[axis] % n == 0 and g.shape[axis] > n:
            yield from np.split(g, n, axis)


def _own(
    graph: Graph, leaves: Sequence[np.ndarray], gradients: Sequence[np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each parameter whose numbers exactly one of the port's arrays holds, and that one's gradient
    with each number in the place of the parameter's."""

    def key(x: np.ndarray) -> bytes:
        return np.sort(x, axis=None).tobytes()

    mine: dict[bytes, list[tuple[str, np.ndarray]]] = {}
    for name, i in graph.params().items():
        value = to_numpy(graph.values[i])
        if name not in graph.buffers and evidence(value):
            mine.setdefault(key(value), []).append((name, value))
    theirs: dict[bytes, list[tuple[np.ndarray, np.ndarray]]] = {}
    for leaf, g in zip(leaves, gradients):
        stacked = leaf.ndim >= 2 and 1 < leaf.shape[0] <= LAYERS
        for x, part in ((leaf, g), *(zip(leaf, g) if stacked else ())):
            theirs.setdefault(key(x), []).append((x, part))
    return {
        named[0][0]: (named[0][1], _placed(named[0][1], *theirs[k][0]))
        for k, named in mine.items()
        if len(named) == len(theirs.get(k, ())) == 1
    }


def _placed(value: np.ndarray, leaf: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The gradient of an array as that of a parameter with the same numbers in other places."""
    made = np.empty(value.size)
    by_value = np.argsort(value, axis=None, kind="stable")
    made[by_value] = g.reshape(-1)[np.argsort(leaf, axis=None, kind="stable")]
    return made.reshape(value.shape)


def largest(gradients: Mapping[Any, np.ndarray]) -> float:
    """The largest finite number in gradients."""
    return max(
        (float(abs(g[np.isfinite(g)]).max(initial=0)) for g in gradients.values()), default=0
    )


@dataclass
class Backward:
    """The port's backward pass as a function of numbers.

    Attributes:
        pair, recorded: both models, and as they were compared.
        graph: the reference, with the edits of its outputs.
    """

    pair: Any
    recorded: Any
    graph: Graph
    _last: tuple[Any, list[Any], int] | None = None
    """The program that was run last, its arguments, and how many of them are no cotangents."""

    def scaled(self, size: float) -> list[np.ndarray]:
        """The gradients that were computed last, of cotangents that are `size` times as large."""
        assert self._last is not None
        traced, values, count = self._last
        given = [*values[:count], *(size * c for c in values[count:])]
        outs, _ = jax_trace.evaluate(traced, given, [-1] * len(given), Interpreter())
        return [np.asarray(g) for g in outs]

    def at(
        self,
        graph: Graph,
        arrays: Sequence[np.ndarray],
        leaves: Sequence[Any],
        cotangents: Sequence[torch.Tensor],
        size: float,
        taped: bool = False,
    ) -> PortGradients:
        """The port's gradients on these inputs and parameters.

        Args:
            graph: the reference there.
            arrays, leaves: its inputs and parameters.
            cotangents: of the reference's outputs.
            size: the largest finite number in a gradient of the reference.
            taped: write down how the backward pass is computed, too.
        """
        pair = self.pair
        traced, given = self.traced(arrays, cotangents)
        values = [*leaves, *given]
        self._last = traced, values, len(leaves) + len(arrays)
        index = Index()
        watch = _Watch(index)
        taping = Taping(index)
        taping.sink = watch.add
        if taped:
            outs, _ = jax_trace.evaluate(
                traced, values, self._slots(taping, values, len(leaves)), taping
            )
        else:
            outs, _ = jax_trace.evaluate(traced, values, [-1] * len(values), Interpreter(watch.add))
        gradients = [np.asarray(g) for g in outs]
        floats = pair.floats()
        for g, i in zip(gradients, floats):
            index.add(np.array(g), "gradient", pair.pure.names[i], [])
            if g.ndim >= 2 and 1 < g.shape[0] <= LAYERS:
                for k in range(g.shape[0]):
                    index.add(np.array(g[k]), "gradient", f"{pair.pure.names[i]}[{k}]", [])
        own = _own(graph, [np.asarray(leaves[i]) for i in floats], gradients)
        found = PortGradients(index, own, gradients, size)
        found.first, found.tape = watch.first, taping.tape if taped else None
        return found

    def _slots(self, taping: Taping, values: Sequence[Any], parameters: int) -> list[int]:
        """What the program is given, on the tape; none of it is a gradient to be found."""
        names = [*self.pair.pure.names, *(f"input {k}" for k in range(len(values) - parameters))]
        slots = []
        for k, (value, name) in enumerate(zip(values, names)):
            kind = "parameter" if k < parameters else "input"
            entry = taping.index.add(None, kind, name, [])
            slots.append(taping.tape.add(Slot(entry, kind, value=np.asarray(value))))
        return slots

    def traced(
        self, arrays: Sequence[np.ndarray], cotangents: Sequence[torch.Tensor]
    ) -> tuple[Any, list[Any]]:
        """The program of the gradients, and what it takes after the parameters."""
        aligned = [
            as_port(to_numpy(self.graph.values[o]), c.numpy(), theirs)
            for o, c, theirs in zip(self.graph.outputs, cotangents, self.recorded.port)
        ]
        places = {p: c for p, c in zip(self.recorded.chosen, aligned) if c.any()}
        traced, given = self.pair.gradient(self.recorded.pure, arrays, places)
        return traced, list(given)


class _Watch:
    """Passes values on to an index. `first`: the line that first makes a NaN of numbers that are
    none."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.first = ""

    def add(self, value: Any, name: str, where: str, parents: list[int]) -> int:
        if not self.first and getattr(value, "dtype", None) == np.float64:
            self.first = where if np.isnan(value).any() else ""
        return self.index.add(value, name, where, parents)


def as_port(mine: np.ndarray, cotangent: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The cotangent in the order of the port's axes."""
    if mine.shape == theirs.shape:
        return cotangent
    best = min(
        ((float(np.linalg.norm(a - theirs)), i) for i, a in enumerate(layouts(mine, theirs.shape))),
        default=None,
    )
    if best is None:
        return cotangent.reshape(theirs.shape)
    return np.array(layouts(cotangent, theirs.shape)[best[1]])
