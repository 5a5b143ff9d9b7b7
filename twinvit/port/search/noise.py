"""What rounding alone does to each value of the reference, measured at every operation."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from twinvit.port.index import distance
from twinvit.port.ops import AXIS_AT, DRAWS, EXACT, LAYOUT, STEPS, WHOLE
from twinvit.port.record.graph import Graph, Node, Ref, flat_tensors
from twinvit.port.record.torch_calls import aten_name
from twinvit.port.record.torch_values import to_numpy

RUNS = 3
LARGE = 1 << 16  # elements of a parameter whose changed copy is not stored


@dataclass
class Noise:
    """Measured rounding.

    Attributes:
        relative: the largest relative L2 distance of each value, by its id, between runs of the
            reference whose every result, parameter, input and constant is changed by one eps.
        elements: of the kept values, the largest absolute move of each number; float64.
    """

    relative: dict[int, float] = field(default_factory=dict)
    elements: dict[int, np.ndarray] = field(default_factory=dict)

    def get(self, value_id: int, default: float = 0.0) -> float:
        return self.relative.get(value_id, default)


AMPLIFIED = 1024.0
"""Nudges are so many times one eps, and what they do is divided by it: there are then enough
numbers between that two roundings do not cancel by chance."""


NUDGE: ContextVar[Callable[..., torch.Tensor] | None] = ContextVar("NUDGE", default=None)
"""What moves the results of operations inside an edit, for those that are no operations of
PyTorch's."""


class _Nudge:
    """Multiplies numbers by 1 + AMPLIFIED eps r, |r| between 0.5 and 1."""

    def __init__(self, seed: int, largest: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        size = min(max(largest, 1), 1 << 20) + 9973
        drawn = torch.rand(size, generator=generator, dtype=torch.float64) - 0.5
        drawn += 0.5 * drawn.sign()  # none is small: one operation's rounding is not missed
        self.pool = 1 + AMPLIFIED * torch.finfo(torch.float64).eps * drawn
        self.at = 0

    def __call__(self, x: torch.Tensor, *, whole: bool = False) -> torch.Tensor:
        """`whole`: integers stay as they are."""
        if x.dtype not in (torch.float64, torch.complex128) or not x.numel():
            return x
        self.skip(x)
        moved = self._times(x)
        if whole and x.dtype == torch.float64:
            return torch.where(x == x.round(), x, moved)
        return moved

    def rows(self, x: torch.Tensor, start: int, places: torch.Tensor, count: int) -> torch.Tensor:
        """Rows `x` (R, D) of a matrix of `count` numbers, moved as in the whole matrix: `places`
        (R,) are theirs in it, and with `start` as `at` it is moved."""
        at = self._next(start)
        flat = places[:, None] * x.shape[1] + torch.arange(x.shape[1])
        if count + at <= len(self.pool):
            factor = self.pool[flat + at]
        else:
            factor = self.pool[flat % (len(self.pool) - 1 - at % 97)]
        return torch.where(x == x.round(), x, x * factor)

    def skip(self, x: torch.Tensor) -> None:
        """Go on as if these values had been moved."""
        if x.dtype in (torch.float64, torch.complex128) and x.numel():
            self.at = self._next(self.at)

    def _next(self, at: int) -> int:
        return (at + 7919) % 9973

    def _times(self, x: torch.Tensor) -> torch.Tensor:
        n = x.numel()
        if n + self.at <= len(self.pool):
            return x * self.pool[self.at : self.at + n].view(x.shape)
        # an array beyond the pool: repeated, at an odd offset
        factor = self.pool[: len(self.pool) - 1 - self.at % 97]
        if not x.is_contiguous():
            return x * factor.repeat(-(-n // len(factor)))[:n].view(x.shape)
        moved, flat = torch.empty_like(x), x.view(-1)
        parts = moved.view(-1).split(len(factor))
        for part, own in zip(parts, flat.split(len(factor))):
            torch.mul(own, factor[: len(own)], out=part)
        return moved


def measure_noise(graph: Graph, keep: Iterable[int] = (), runs: int = RUNS) -> Noise:
    """What rounding does to each value; of those in `keep`, and of the outputs, to each number."""
    noise = _measured(graph, {*keep, *graph.outputs}, None, runs)
    noise.relative.update(_by_one_eps(graph))
    return noise


def output_noise(graph: Graph, runs: int = RUNS) -> Noise:
    """What rounding does to the outputs alone, and to each of their values."""
    outputs = set(graph.outputs)
    return _measured(graph, outputs, outputs, runs)


def _measured(graph: Graph, kept: set[int], wanted: set[int] | None, runs: int) -> Noise:
    """Rounding of the wanted values, by default of all that operations compute; of those in `kept`
    of each number."""
    noise = Noise()
    places = range(len(graph.values))
    largest = max((graph.values.shaped(i).numel() for i in places), default=0)
    known = _by_one_eps(graph) if wanted is None else {}

    def on_value(i: int, value: torch.Tensor) -> None:
        if value.dtype not in (torch.float64, torch.complex128):
            return
        told = i not in known and (wanted is None or i in wanted)
        first = graph.values[i] if told or i in kept else value
        if told and value.dtype == torch.float64 and value.numel() >= 2:
            d = distance(to_numpy(first), to_numpy(value)) / AMPLIFIED
            noise.relative[i] = max(noise.relative.get(i, 0.0), d if np.isfinite(d) else 0.0)
        if i in kept:
            with np.errstate(all="ignore"):
                moved = np.abs(to_numpy(value) - to_numpy(first)) / AMPLIFIED
            moved = np.where(np.isfinite(moved), moved, 0.0)
            old = noise.elements.get(i)
            noise.elements[i] = moved if old is None else np.maximum(old, moved)

    whole: dict[int, bool] = {}
    for seed in range(runs):
        run_nudged(graph, _Nudge(seed, largest), on_value, kept, whole)
    return noise


def _by_one_eps(graph: Graph) -> dict[int, float]:
    """The values that are given, and other layouts of them, each of whose numbers moves by at most
    one eps: nothing has to be measured for that."""
    eps = torch.finfo(torch.float64).eps
    known = {i: eps for i, source in enumerate(graph.source) if source != "node"}
    for node in graph.nodes:
        if node.name not in LAYOUT & EXACT or not isinstance(node.op, torch._ops.OpOverload):
            continue
        source, out = node.refs[:1], node.outs[:1]
        if source and out and out[0] is not None and source[0] in known:
            if graph.values.shaped(source[0]).numel() == graph.values.shaped(out[0]).numel():
                known[out[0]] = eps
    return {i: eps for i in known if graph.values.shaped(i).dtype == torch.float64}


def run_nudged(
    graph: Graph,
    nudge: _Nudge,
    on_value: Callable[[int, torch.Tensor], None],
    told: Container[int] = (),
    whole: dict[int, bool] | None = None,
) -> None:
    """Run the graph with every result moved; steps and draws keep their recorded results.

    Args:
        on_value: told of each result, and of what is given where that is in `told`.
        whole: which of the large given values hold integers other than zero, as far as that is
            known; it is added to.
    """
    held: dict[int, torch.Tensor] = {}
    again: dict[int, Callable[[], torch.Tensor]] = {}
    starts: dict[int, int] = {}
    whole = {} if whole is None else whole
    for i, source in enumerate(graph.source):
        if source == "node":
            continue
        value = graph.values.shaped(i)
        if value.numel() < LARGE:
            held[i] = nudge(graph.values[i], whole=True)
        else:  # moved where it is used, alike each time
            if i not in whole:
                whole[i] = _has_whole(graph.values[i])
            again[i] = partial(_moved_leaf, graph, i, nudge, nudge.at, whole[i])
            starts[i] = nudge.at
            nudge.skip(value)
        if i in told:
            on_value(i, held[i] if i in held else again[i]())
    with torch.no_grad():
        for node in graph.nodes:
            if _takes_rows(graph, node, starts):
                outs = nudged_results(graph, *_rows_taken(graph, node, starts, held, nudge), nudge)
            else:
                held.update({ref: again[ref]() for ref in node.refs if ref in again})
                outs = nudged_results(graph, node, held, nudge)
            for out, value in zip(node.outs, outs):
                if out is not None:
                    held[out] = value
                    on_value(out, value)
            for ref in node.refs:
                if ref in again or graph.consumers[ref][-1] == node.index:
                    held.pop(ref, None)


def _moved_leaf(graph: Graph, i: int, nudge: _Nudge, at: int, whole: bool) -> torch.Tensor:
    """A parameter, input or constant, moved by the numbers that start there; alike each time."""
    nudge.at, present = at, nudge.at
    moved = nudge(graph.values[i], whole=whole)
    nudge.at = present
    return moved


def _takes_rows(graph: Graph, node: Node, starts: Mapping[int, int]) -> bool:
    """True for an embedding: of a large table few rows are asked for."""
    own = node.name == "embedding" and isinstance(node.op, torch._ops.OpOverload)
    if not own or len(node.refs) != 2 or node.args[:2] != tuple(map(Ref, node.refs)):
        return False
    table = graph.values.shaped(node.refs[0])
    return node.refs[0] in starts and table.ndim == 2 and table.dtype == torch.float64


def _rows_taken(
    graph: Graph,
    node: Node,
    starts: Mapping[int, int],
    held: Mapping[int, torch.Tensor],
    nudge: _Nudge,
) -> tuple[Node, dict[int, torch.Tensor]]:
    """An embedding of the rows alone that it takes, moved as in the whole table, and its
    operands."""
    table, asked = node.refs
    indices = held[asked] if asked in held else graph.values[asked]
    places, again = torch.unique(indices, return_inverse=True)
    rows = graph.values.rows(table, places)
    count = graph.values.shaped(table).numel()
    moved = nudge.rows(rows, starts[table], places, count)
    return replace(node, args=node.args[:2], kwargs={}), {table: moved, asked: again}


def _has_whole(value: torch.Tensor) -> bool:
    """True if there are integers, zero left out: those stay as they are."""
    if value.dtype != torch.float64:
        return False
    parts = value.reshape(-1).split(1 << 18)
    return any(bool(((x == x.round()) & (x != 0)).any()) for x in parts)


def nudged_results(
    graph: Graph,
    node: Node,
    held: Mapping[int, torch.Tensor],
    nudge: Callable[..., torch.Tensor],
) -> list[Any]:
    """An operation's results on moved operands, moved themselves; None where there is no tensor."""
    first = [None if i is None else graph.values[i] for i in node.outs]
    if node.name in STEPS or node.name in DRAWS or not any(_moves(t) for t in first):
        return first
    args, kwargs = graph.arguments(node, held)
    own = isinstance(node.op, torch._ops.OpOverload)  # an edit computes something else
    special = _SPECIAL.get(node.name) if own else None
    made = None if special is None else special(node, args, kwargs, first)
    inside = _INSIDE.get(node.name) if own else None
    if inside is not None and made is None:
        made = inside(nudge, *args, **kwargs)
    if made is None and not own:
        made = _edited(graph, node, args, kwargs, nudge)
    if made is None:
        made = flat_tensors(node.op(*args, **kwargs))
    results: list[Any] = []
    for value, recorded in zip(made, first):
        if recorded is None or value is None or not _moves(recorded):
            results.append(recorded)
        elif value.shape != recorded.shape:  # as many rows as a condition chose
            results.append(recorded)
        elif node.name in EXACT:
            results.append(value)
        else:
            results.append(nudge(value, whole=node.name in WHOLE))
    return results


class _Steps(TorchDispatchMode):
    """Keeps what comparisons, roundings to integers and draws inside an edit come to."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[str, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = aten_name(func)
        if _stays(name, made):
            self.kept.append((name, made))
        return made


def _stays(name: str, made: Any) -> bool:
    """Whether rounding does not change an operation's results: steps, draws, integers."""
    return name in STEPS or name in DRAWS or not any(_moves(t) for t in flat_tensors(made))


class _Inside(TorchDispatchMode):
    """Nudges what is computed inside an edit, which is an operation of several: parts may cancel
    where its own result is nudged too late (1 + tanh of GELU far below zero)."""

    def __init__(self, nudge: Callable[..., torch.Tensor], steps: list[tuple[str, Any]]) -> None:
        super().__init__()
        self.nudge, self.steps = nudge, iter(steps)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = aten_name(func)
        if name in _INSIDE:
            return _INSIDE[name](self.nudge, *args, **kwargs)[0]
        made = func(*args, **kwargs)
        if _stays(name, made):
            first, recorded = next(self.steps, ("", None))
            # a view of integers is made of what those come to already
            return recorded if first == name and not func.is_view else made
        if name in EXACT or func._schema.is_mutable:
            return made
        return tree_map(lambda t: self._moved(t, name), made)

    def _moved(self, value: Any, name: str) -> Any:
        if not isinstance(value, torch.Tensor) or not _moves(value):
            return value
        return self.nudge(value, whole=name in WHOLE)


def _edited(graph: Graph, node: Node, args: Any, kwargs: Any, nudge: Any) -> list[Any]:
    """The results of an edit on moved operands, with every operation inside it moved as well."""
    with _Steps() as steps:
        first_args, first_kwargs = graph.arguments(node)
        node.op(*first_args, **first_kwargs)
    token = NUDGE.set(nudge)
    try:
        with _Inside(nudge, steps.kept):
            return flat_tensors(node.op(*args, **kwargs))
    finally:
        NUDGE.reset(token)


def first_above(graph: Graph, noise: Noise, value_id: int, limit: float) -> str:
    """Where rounding first moves something that a value depends on by more than `limit`."""
    above = graph.ancestors(value_id)
    for node in graph.nodes:
        if any(o in above and noise.get(o) > limit for o in node.outs if o is not None):
            return f"{node.place}{', ' + node.where if node.where else ''}"
    return ""


def _moves(t: torch.Tensor | None) -> bool:
    return t is not None and (t.is_floating_point() or t.is_complex())


def _remainder(node: Node, args: Any, kwargs: Any, first: list[Any]) -> list[Any] | None:
    """x - n y with the recorded n, the integral number of times that y goes into x."""
    x, y = args[0], args[1]
    if not isinstance(x, torch.Tensor):
        return None
    quotient = (x - first[0]) / y
    return [x - quotient.round() * y]


def _by_indices(node: Node, args: Any, kwargs: Any, first: list[Any]) -> list[Any] | None:
    """Values taken by the recorded indices (sort, topk, max along an axis)."""
    if len(first) < 2 or first[1] is None or first[1].dtype != torch.int64:
        return None
    x = args[0]
    axis = kwargs.get("dim")
    if axis is None:
        place = AXIS_AT[node.name]
        axis = args[place] if place < len(args) and isinstance(args[place], int) else -1
    keeps = first[1].ndim == x.ndim
    if not x.ndim:
        return [x.clone(), first[1]]
    indices = first[1] if keeps else first[1].unsqueeze(axis)
    values = x.gather(axis, indices)
    return [values if keeps else values.squeeze(axis), first[1]]


def _dropout(node: Node, args: Any, kwargs: Any, first: list[Any]) -> list[Any] | None:
    """Dropout with the recorded mask."""
    if len(first) < 2 or first[1] is None:
        return None
    rate = args[1]
    scale = 0.0 if rate == 1 else 1 / (1 - rate)
    return [args[0] * first[1] * scale, first[1]]


def _gelu(nudge: Any, x: torch.Tensor, approximate: str = "none") -> list[Any]:
    """1 + erf cancels where x is far below zero."""
    if approximate == "tanh":
        inner = torch.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))
    else:
        inner = torch.erf(x * 0.5**0.5)
    return [0.5 * x * (1 + nudge(inner))]


def _log_softmax(nudge: Any, x: torch.Tensor, dim: int, *_: Any) -> list[Any]:
    """The logarithm of a probability near one is a difference of large numbers."""
    return [x - nudge(torch.logsumexp(x, dim, keepdim=True))]


_INSIDE: dict[str, Callable[..., list[Any]]] = {"gelu": _gelu, "log_softmax": _log_softmax}
"""Operations in one piece whose parts cancel: the rounding inside them is nudged, too."""
_SPECIAL: dict[str, Callable[..., list[Any] | None]] = {
    "remainder": _remainder,
    "fmod": _remainder,
    "sort": _by_indices,
    "topk": _by_indices,
    "max": _by_indices,
    "min": _by_indices,
    "cummax": _by_indices,
    "cummin": _by_indices,
    "native_dropout": _dropout,
}
