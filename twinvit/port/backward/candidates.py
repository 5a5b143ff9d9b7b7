"""What the port may do to a gradient at one operation, in the order in which it is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from twinvit.port.backward.flow import Flow
from twinvit.port.backward.rules import (
    Made,
    Rule,
    at_operand,
    at_result,
    clipped_norm,
    clipped_to,
    cut,
    instead,
    plain,
    scaled_by,
    straight,
)
from twinvit.port.backward.solve import EQUAL, bounds, factor_between, factors, range_between
from twinvit.port.backward.written import written
from twinvit.port.index import Index
from twinvit.port.ops import ACTIVATIONS, ELEMENTWISE, LAYOUT, STEPS
from twinvit.port.record.graph import Node
from twinvit.port.record.torch_gradients import CustomBackward
from twinvit.port.search.region import RUN
from twinvit.port.verdict import relative

BACK = 8  # operations that a gradient may be passed straight over
OTHERS = 4  # values that it may be passed to over other operations
SIZES = (0.02, 1.0, 30.0)  # of the gradients that a function's own backward is tried with
PORTS = 3  # entries of the port that are tried with one constant


@dataclass
class Candidate:
    """An edit of the backward at one operation.

    Attributes:
        cause, text: as of a finding.
        place: the operation.
        made: the edits so far and this one.
        entry: the port's gradient that it is solved from; None without one.
        lines, torch_lines: either side's lines, where they are others than those of the entry and
            of the operation.
    """

    cause: str
    text: str
    place: Node
    made: Made
    entry: int | None = None
    lines: list[str] = field(default_factory=list)
    torch_lines: list[str] = field(default_factory=list)
    kind: str = "cause"
    operations: tuple[int, int] | None = None
    formulas: Mapping[str, str] = field(default_factory=dict)


def named(
    flow: Flow, node: Node, bad: list[int], index: Index, own: Mapping[int, np.ndarray]
) -> Iterator[Candidate]:
    """Edits with a name at an operation, for operands whose gradients the port lacks.

    Args:
        own: the port's gradients of parameters, by the parameter's id.
    """
    now = flow.made.node(flow.graph, node.index)
    yield from _solved_at_results(flow, node, now, index)
    for r in bad:
        yield from _solved_at_operand(flow, node, now, r, index)
        if r in own:
            yield from _solved_at_parameter(flow, node, r, own[r])
    yield from _straight(flow, node, now, bad)
    yield from _activations(flow, node, now)
    yield from _blocked(flow, node, now, bad)


def derived(flow: Flow, node: Node) -> Candidate:
    """The derivative for a function's own backward, in words of what that one does."""
    now = flow.made.node(flow.graph, node.index)
    if not isinstance(node.op, CustomBackward):
        text = "the reference detaches this; in the port a gradient flows through it"
        return Candidate("grad_detached", text, node, flow.made.plus(node, plain(now)))
    made = flow.made.plus(node, plain(now, node.op.results))
    own = written(flow, node)
    lines = list(dict.fromkeys([*own.lines, node.where]))
    said = _in_words(flow, node)
    if said is not None:
        return Candidate(*said, node, made, torch_lines=lines)
    theirs = f"the derivative of {node.op.name}'s result"
    if own.formula and own.operations <= RUN:
        text = f"the reference: {own.short}\nthe port:      {theirs}"
        return Candidate(
            "", text, node, made, torch_lines=lines, kind="expression",
            operations=(own.operations, 1), formulas={"torch": own.formula, "jax": theirs},
        )  # fmt: skip
    text = (
        f"the backward of {node.op.name} is its own in the reference; in the port the gradient is "
        "the derivative of what it computes"
    )
    return Candidate("grad_custom", text, node, made, torch_lines=lines)


def _in_words(flow: Flow, node: Node) -> tuple[str, str] | None:
    """What a function's own backward does to the derivative, with cotangents of several sizes."""
    operands = [r for r in node.refs[1:] if flow.values[r].is_floating_point()]
    out = node.outs[0]
    if len(operands) != 1 or len(node.outs) != 1 or out not in flow.gradients:
        return None
    derivative = _through(flow, node, operands[0])
    if derivative is None:
        return None
    mine: list[np.ndarray] = []
    theirs: list[np.ndarray] = []
    whole: list[np.ndarray] = []
    for size in SIZES:
        found = flow.at_operand(node, operands[0], size)
        mine.append(size * derivative)
        theirs.append(np.zeros_like(derivative) if found is None else found)
        whole.append(size * flow.gradients[out])
    if not any(x.any() for x in theirs):
        return (
            "grad_detached",
            "no gradient flows through this in the reference; in the port one does",
        )
    factors_ = {factor_between(x, y) for x, y in zip(mine, theirs)}
    if len(factors_) == 1 and (factor := factors_.pop()) is not None:
        name = "grad_reversed" if factor < 0 else "grad_scale"
        return (
            name,
            f"the reference multiplies the gradient by {factor:.10g} here; the port does not",
        )
    found_range = range_between(mine[-1], theirs[-1])
    if found_range is not None:
        low, high = found_range
        if all(relative(y, np.clip(x, low, high)) <= EQUAL for x, y in zip(mine, theirs)):
            limits = f"[{low:.6g}, {high:.6g}]"
            return (
                "grad_clip",
                f"the reference clips the gradient to {limits} here; the port does not",
            )
    most = float(np.linalg.norm(theirs[-1]))
    norms = [x * min(1.0, most / max(float(np.linalg.norm(x)), 1e-300)) for x in mine]
    if all(relative(y, x) <= EQUAL for x, y in zip(norms, theirs)):
        text = f"the reference clips the gradient's norm to {most:.6g} here; the port does not"
        return "grad_clip", text
    if all(np.array_equal(x, y) for x, y in zip(whole, theirs)):
        return "straight_through", (
            "the reference passes the gradient straight through this; in the port it is the "
            "derivative"
        )
    return None


def _through(flow: Flow, node: Node, operand: int) -> np.ndarray | None:
    """The gradient that a value would get of a function's result by its derivative."""
    graph = flow.graph
    start = graph.producer[operand]
    x = flow.values[operand].detach().clone()
    with torch.enable_grad():
        x.requires_grad_(True)
        edits = {**flow.made.edits, node.index: plain(flow.made.node(graph, node.index), 1)}
        first = 0 if start is None else start + 1
        values = graph.run(edits, {operand: x}, first=first, until=node.index)
        out = values.get(node.outs[0] if node.outs[0] is not None else -1)
        if out is None or not out.requires_grad:
            return np.zeros(tuple(x.shape))
        g = torch.from_numpy(flow.gradients[node.outs[0]])  # type: ignore[index]
        (found,) = torch.autograd.grad((out * g).sum(), [x], allow_unused=True)
    return np.zeros(tuple(x.shape)) if found is None else np.array(found.numpy())


def _solved_at_results(flow: Flow, node: Node, now: Node, index: Index) -> Iterator[Candidate]:
    for o in node.outs:
        g = flow.gradients.get(o) if o is not None else None
        if o is None or g is None:
            continue
        for cause, text, rule, entry in _solved(index, g):
            made = flow.made.plus(node, at_result(now, o, rule))
            yield Candidate(cause, text, node, made, entry)


def _solved_at_operand(
    flow: Flow, node: Node, now: Node, r: int, index: Index
) -> Iterator[Candidate]:
    g = flow.at_operand(node, r)
    if g is None:
        return
    for cause, text, rule, entry in _solved(index, g):
        made = flow.made.plus(node, at_operand(now, r, rule))
        yield Candidate(cause, text, node, made, entry)


def _solved(index: Index, g: np.ndarray) -> Iterator[tuple[str, str, Rule, int]]:
    """Rules that make one of the port's gradients of this one."""
    found = list(factors(index, g))
    seen: set[float] = set()
    for factor, entry in found:
        if factor not in seen and len(seen) < PORTS:
            seen.add(factor)
            yield *_scaled(factor), entry
    for low, high, entry in list(bounds(index, g))[:PORTS]:
        text = (
            f"the port clips the gradient to [{low:.6g}, {high:.6g}] here; the reference does not"
        )
        yield "grad_clip", text, clipped_to(low, high), entry
    for factor, entry in found[:PORTS]:
        if 0 < factor < 1:
            most = float(np.linalg.norm(g)) * factor
            text = f"the port clips the gradient's norm to {most:.6g} here; the reference does not"
            yield "grad_clip", text, clipped_norm(most), entry


def _scaled(factor: float) -> tuple[str, str, Rule]:
    text = f"the port multiplies the gradient by {factor:.10g} here; the reference does not"
    return ("grad_reversed" if factor < 0 else "grad_scale"), text, scaled_by(factor)


def _solved_at_parameter(flow: Flow, node: Node, r: int, theirs: np.ndarray) -> Iterator[Candidate]:
    """A rule for the whole gradient of a parameter, solved from the port's."""
    mine = flow.gradients.get(r)
    if mine is None:
        return
    alone = Index()
    alone.add(np.array(theirs), "gradient", "", [])
    for cause, text, rule, _ in _solved(alone, mine):
        yield Candidate(cause, text, node, flow.made.at_leaf(r, rule))


def _straight(flow: Flow, node: Node, now: Node, bad: list[int]) -> Iterator[Candidate]:
    """The gradient of a result passed on as it is, over this operation or several."""
    for o in node.outs:
        if o is None or o not in flow.gradients or node.name in LAYOUT or not bad:
            continue
        for value in _before(flow, node, flow.values[o].shape, ELEMENTWISE | LAYOUT | STEPS):
            yield from _passed(flow, node, now, o, value)


def over_others(flow: Flow, node: Node, bad: list[int]) -> Iterator[Candidate]:
    """The same over whatever operations: the rows of a table that are chosen."""
    now = flow.made.node(flow.graph, node.index)
    for o in node.outs:
        if o is None or o not in flow.gradients or node.name in LAYOUT or not bad:
            continue
        near = set(_before(flow, node, flow.values[o].shape, ELEMENTWISE | LAYOUT | STEPS))
        every = _before(flow, node, flow.values[o].shape, None)
        for value, _ in zip((v for v in every if v not in near), range(OTHERS)):
            yield from _passed(flow, node, now, o, value)


def _passed(flow: Flow, node: Node, now: Node, out: int, value: int) -> Iterator[Candidate]:
    text = "the port passes the gradient straight through this; the reference does not"
    for without in paths(flow, node, value):
        edit = instead(now, out, value, straight, (), without)
        yield Candidate("straight_through", text, node, flow.made.plus(node, edit))


def _activations(flow: Flow, node: Node, now: Node) -> Iterator[Candidate]:
    """The derivative of another activation."""
    out, floats = node.outs[0], [r for r in node.refs if flow.values[r].is_floating_point()]
    if node.name not in ACTIVATIONS or len(floats) != 1 or out not in flow.gradients:
        return
    assert out is not None
    for name, function in _ACTIVATIONS.items():
        edit = instead(now, out, floats[0], _derivative_of(function), floats, floats)
        text = f"the port's backward is the derivative of {name}; the reference's of {node.name}"
        yield Candidate("grad_activation", text, node, flow.made.plus(node, edit))


def _derivative_of(function: Callable[[torch.Tensor], torch.Tensor]) -> Rule:
    def rule(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            (found,) = torch.autograd.grad(function(leaf), [leaf], [g])
        return found

    return rule


_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "GELU's tanh form": partial(F.gelu, approximate="tanh"),
    "quick GELU": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
}


def paths(flow: Flow, node: Node, value: int) -> list[list[int]]:
    """Which operands get no other gradient where a value gets one of its own: that value alone, or
    all, as the others may be computed from it."""
    floats = [r for r in node.refs if flow.values[r].is_floating_point()]
    return [[value], floats] if value in floats and len(floats) > 1 else [floats]


def _before(
    flow: Flow, node: Node, shape: torch.Size, through: frozenset[str] | None
) -> Iterator[int]:
    """Values of one shape that an operation's operands are computed from by these operations
    (None: by any), the nearest first."""
    layer, seen = [r for r in node.refs], set(node.refs)
    for _ in range(BACK):
        for r in layer:
            if flow.values[r].is_floating_point() and flow.values[r].shape == shape:
                yield r
        following: list[int] = []
        for r in layer:
            producer = flow.graph.producer[r]
            before = flow.graph.nodes[producer] if producer is not None else None
            if before is None or (through is not None and before.name not in through):
                continue
            following += [i for i in before.refs if i not in seen]
            seen.update(before.refs)
        layer = following
        if len(seen) > 3 * BACK:
            return


def _blocked(flow: Flow, node: Node, now: Node, bad: list[int]) -> Iterator[Candidate]:
    """No gradient for one operand, or for all that are lost."""
    floats = [r for r in node.refs if flow.values[r].is_floating_point()]
    for operands in dict.fromkeys([*((r,) for r in bad), tuple(bad)]):
        name = _name_of(flow, operands[0])
        one = len(floats) > 1 and len(operands) == 1
        text = "no gradient flows " + (
            f"into {name} from here in the port (stop_gradient); the reference does not detach it"
            if one
            else "through this in the port (stop_gradient); the reference does not detach it"
        )
        made = flow.made.plus(node, cut(now, operands))
        yield Candidate("grad_detached", text, node, made)


def _name_of(flow: Flow, value: int) -> str:
    from twinvit.port.search.formula import value_name

    return value_name(flow.graph, value)
