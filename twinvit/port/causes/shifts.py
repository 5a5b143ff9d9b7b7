"""Targets of a language model: which position's logits are compared with which token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from twinvit.port.call import Call
from twinvit.port.causes import Variant, cause
from twinvit.port.ops import VIEWS

THROUGH = frozenset((*VIEWS, "slice", "clone", "to", "_to_copy", "constant_pad_nd", "transpose"))
AHEAD = 24  # operations between targets and their loss
PAIRS = {
    "position t with token t": (0, 0, 0),
    "position t with token t + 1": (0, 1, 1),
    "position t + 1 with token t": (1, 0, 1),
    "position t with token t, without the last": (0, 0, 1),
    "position t with token t, without the first": (1, 1, 1),
}
"""The first position, the first token, and how many positions are left out."""


def _sources(call: Call, value: int | None, ndim: int) -> list[int]:
    """Values that one is a layout or a slice of, with so many axes, the first of all first."""
    found: list[int] = []
    for _ in range(8):
        if value is None:
            break
        if call.graph.values[value].ndim == ndim:
            found.insert(0, value)
        producer = call.graph.producer[value]
        node = call.graph.nodes[producer] if producer is not None else None
        if node is None or node.name not in THROUGH or not node.refs:
            break
        value = node.refs[0]
    return found


@cause("target_shift", on=("nll_loss_forward", "constant_pad_nd"))
def target_shift(call: Call) -> Iterator[Variant]:
    """The port compares the logits of a position with another token than the reference (the next
    one, or not)."""
    if call.node.name == "nll_loss_forward":
        yield from _shifts(call)
    elif not call.out.is_floating_point():  # targets that are shifted by padding
        for node in call.graph.nodes[call.node.index : call.node.index + AHEAD]:
            if node.name == "nll_loss_forward":
                yield from _shifts(Call(call.graph, node))


def _shifts(call: Call) -> Iterator[Variant]:
    graph = call.graph
    ref = call.ref(0)
    producer = graph.producer[ref] if ref is not None else None
    softmax = graph.nodes[producer] if producer is not None else None
    if softmax is None or softmax.name != "log_softmax" or int(call.args[3]) == 0:
        return
    logits = _sources(call, softmax.refs[0], 3)
    targets = _sources(call, call.ref(1), 2)
    pairs = [
        (a, b)
        for a in logits
        for b in targets
        if graph.values[a].shape[:2] == graph.values[b].shape
    ]
    if not pairs or graph.values[pairs[0][0]].shape[1] < 3:
        return
    a, b = pairs[0]
    reduction, ignore = ("none", "mean", "sum")[int(call.args[3])], int(call.args[4])

    def loss(x: torch.Tensor, y: torch.Tensor, part: tuple[int, int, int], weight: Any) -> Any:
        n = x.shape[1] - part[2]
        log = x.narrow(1, part[0], n).reshape(-1, x.shape[2]).log_softmax(-1)
        target = y.narrow(1, part[1], n).reshape(-1)
        return F.nll_loss(log, target, weight, reduction=reduction, ignore_index=ignore)

    plain = graph.recorded or graph  # without what was found so far
    own = float(plain.values[call.node.outs[0] or 0])
    losses = {
        text: float(loss(plain.values[a], plain.values[b], part, call.args[2]))
        for text, part in PAIRS.items()
    }
    mine = next((text for text, x in losses.items() if abs(x - own) <= 1e-12 * abs(own)), None)
    weight = call.ref(2)
    for text, part in PAIRS.items():
        if text != mine and mine is not None:
            yield Variant(
                f"the port compares {text}; the reference {mine}",
                lambda x, y, *w, part=part: loss(x, y, part, w[0] if w else None),
                refs=(a, b) if weight is None else (a, b, weight),
                node=call.node.index,
            )
