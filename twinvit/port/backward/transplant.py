"""The port's own backward of an operation in the reference's place, where none with a name fits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from twinvit.port.backward.candidates import Candidate, paths
from twinvit.port.backward.flow import TOLERANCE, Flow
from twinvit.port.backward.rules import instead
from twinvit.port.index import evidence
from twinvit.port.ops import LAYOUT
from twinvit.port.record.graph import Graph, Node
from twinvit.port.record.graph_values import Values
from twinvit.port.record.jax_tape import Tape
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.search.folding import count
from twinvit.port.search.formula import port_formula, printed, value_name
from twinvit.port.search.program import Piece, piece_of
from twinvit.port.search.region import RUN, Held, Order, Refused, Region, orders, region_behind

DEEP = 40  # steps of the port that are walked from a gradient on
SLOTS = 16  # of its values, how many are tried as gradients of an operand
ORDERS = 2  # orders of axes that are tried of each
GRADIENT = "gradient"  # the source of the gradient that arrives, as formulas name it


def transplants(flow: Flow, node: Node, bad: Sequence[int], tape: Tape) -> Iterator[Candidate]:
    """Parts of the port's backward that compute the gradient of an operand, or of what operands
    are computed from, of that of a result and the values of the forward pass."""
    for o in node.outs:
        moves = node.name in LAYOUT and flow.values[node.refs[0]].is_floating_point()
        if o is None or o not in flow.gradients or moves:
            continue
        held, gradient = _held(flow, node, o, tape)
        slots = _slots_of(tape, held, flow.gradients[o], gradient)
        for slot in _reached(tape, slots):
            try:
                region = region_behind(tape, held, slot, node.index + 1)
                if gradient in (value for value, _ in region.inputs.values()):
                    yield from _placed(flow, node, o, bad, tape, region, gradient, held.graph)
            except Refused:
                continue


def _held(flow: Flow, node: Node, out: int, tape: Tape) -> tuple[Held, int]:
    """Which values of the forward pass, and the gradient that arrives, the port's slots are; and
    that gradient's id."""
    graph, gradient = flow.graph, len(flow.graph.values)
    extended = replace(
        graph,
        values=Values([*graph.values.kept, torch.from_numpy(flow.gradients[out])]),
        source=(*graph.source, GRADIENT),
        producer=(*graph.producer, None),
    )
    found: dict[object, list[int]] = {}
    for i, value in enumerate(extended.values):
        producer = extended.producer[i]
        if producer is not None and producer > node.index:
            continue
        array = to_numpy(value)
        hit = flow.index.find(array, TOLERANCE) if evidence(array) else None
        if hit is not None:
            found.setdefault(flow.index.key(hit), []).append(i)
    near = {i: 1 for i in (*node.refs, *(o for o in node.outs if o is not None))}
    near[gradient] = 0
    return Held(extended, tape, found, lambda i: TOLERANCE, near), gradient


def _slots_of(tape: Tape, held: Held, g: np.ndarray, gradient: int) -> list[int]:
    """The port's slots that are the gradient that arrives, in any order of axes."""
    return [
        number
        for number, slot in enumerate(tape.slots)
        if slot.kind != "literal"
        and (value := tape.value(number)) is not None
        and value.size == g.size
        and any(i == gradient for i, _ in held.all_of(number))
    ]


def _reached(tape: Tape, start: Sequence[int]) -> list[int]:
    """Slots that are computed from these, the nearest first."""
    known = {i: 0 for i in start}
    found: list[int] = []
    for step in tape.steps:
        far = min((known[i] for i in step.operands if i in known), default=DEEP)
        if far >= DEEP:
            continue
        for out in step.outs:
            known.setdefault(out, far + (not step.layout))
            found.append(out)
    found = [i for i in found if not tape.steps[tape.slots[i].step].layout]
    return sorted(found, key=lambda i: known[i])[: 4 * SLOTS]


def _placed(
    flow: Flow,
    node: Node,
    out: int,
    bad: Sequence[int],
    tape: Tape,
    region: Region,
    gradient: int,
    graph: Graph,
) -> Iterator[Candidate]:
    """A part of the port as the gradient of each value that it may be of."""
    theirs = tape.value(region.out)
    if theirs is None:
        return
    formula = port_formula(tape, region, graph)
    run = count(formula)
    if not 0 < run <= RUN:
        return
    reads = [value for value, _ in region.inputs.values()]
    values = [*bad, *(r for r in reads if r != gradient and r not in node.outs)]
    for value in dict.fromkeys(values):
        x = flow.values[value]
        if x.numel() != theirs.size or not x.is_floating_point():
            continue
        fits = _likely(region, gradient, theirs.shape, x.shape)
        for order, without in itertools.product(fits, paths(flow, node, value)):
            piece = piece_of(tape, region, order)
            rule = _rule(piece, reads, gradient)
            rest = [r for r in reads if r != gradient]
            now = flow.made.node(flow.graph, node.index)
            edit = instead(now, out, value, rule, rest, without)
            mine = f"the derivative of {node.name}, at {value_name(flow.graph, value)}"
            text = f"the reference: {mine}\nthe port:      {printed(formula)}"
            yield Candidate(
                "",
                text,
                node,
                flow.made.plus(node, edit),
                lines=region.lines(tape),
                kind="expression",
                operations=(1, run),
                formulas={"torch": mine, "jax": printed(formula, None)},
            )


def _likely(
    region: Region, gradient: int, shape: Sequence[int], target: Sequence[int]
) -> list[Order]:
    """Orders of axes that make the reference's array of the port's, first that by which the
    gradient that arrives was ordered."""
    fits = orders(shape, target)[:24]
    taken = next(o for value, o in region.inputs.values() if value == gradient)
    back = tuple(int(i) for i in np.argsort(taken.axes))
    return sorted(fits, key=lambda o: o.axes != back)[:ORDERS]


def _rule(piece: Piece, reads: Sequence[int], gradient: int) -> Callable[..., torch.Tensor]:
    """A part of the port as a rule, which takes the gradient first."""

    def rule(g: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        values = iter(rest)
        arrays = [to_numpy(g if r == gradient else next(values)) for r in reads]
        return torch.from_numpy(np.array(piece.run(arrays), order="C"))

    return rule
