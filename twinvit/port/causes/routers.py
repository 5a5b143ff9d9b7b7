"""Routers of experts: which are chosen, how many, and how their weights are normalised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from twinvit.port.call import Call
from twinvit.port.causes import Variant, cause

SCORES = ("softmax", "_safe_softmax", "sigmoid")
MOST = 16  # experts that are chosen, at most


def _axis(call: Call) -> int:
    return int(call.argument(2, call.kwargs.get("dim", -1)))


def _routes(call: Call) -> bool:
    """True for a choice among scores of a softmax or sigmoid, or whose values go into one."""
    return call.comes_from(*SCORES, steps=3) or call.leads_to(*SCORES, steps=3)


def _producer(call: Call, value: int | None, *names: str) -> Any:
    """The operation that makes a value, or another layout of it, if it has one of these names."""
    root = call.root(value)
    producer = call.graph.producer[root] if root is not None else None
    node = call.graph.nodes[producer] if producer is not None else None
    return node if node is not None and node.name in names else None


def _ported(call: Call, value: torch.Tensor) -> bool | None:
    """Whether the port has a value: the softmax of those chosen is the softmax of all over its
    sum, and this decides which of them a port computes. None without a port."""
    if call.index is None:
        return None
    array = np.ascontiguousarray(value.detach().numpy(), np.float64)
    return call.index.find(array, call.fits) is not None


@cause("router_order", on="topk")
def softmax_of_chosen(call: Call) -> Iterator[Variant]:
    """The port takes the softmax of the chosen scores where the reference chooses among the
    softmax of all, or the other way."""
    scores = _producer(call, call.ref(0), "softmax")
    if scores is None or call.out.ndim == 0 or _ported(call, call.args[0]) is True:
        return

    def fn(x: torch.Tensor, k: int = call.args[1], axis: int = _axis(call)) -> Any:
        values, chosen = x.topk(k, axis)
        return values.softmax(axis), chosen

    text = (
        "the port takes the softmax of the chosen scores; the reference chooses after the softmax"
    )
    yield Variant(text, fn, refs=(scores.refs[0],))


@cause("router_order", on="softmax")
def choice_of_softmax(call: Call) -> Iterator[Variant]:
    """The port chooses among the softmax of all scores where the reference takes the softmax of
    those chosen."""
    chosen = _producer(call, call.ref(0), "topk")
    if chosen is None or len(chosen.outs) != 2 or call.root(call.ref(0)) != chosen.outs[0]:
        return
    axis = int(chosen.args[2]) if len(chosen.args) > 2 else -1
    if call.graph.values[chosen.outs[0]].shape != call.out.shape:
        return
    yield Variant(
        "the port chooses among the softmax of all scores; the reference takes the softmax of "
        "those chosen",
        lambda x, i, axis=axis: x.softmax(axis).gather(axis, i),
        refs=(chosen.refs[0], chosen.outs[1]),
    )


@cause("router_norm", on="topk")
def normalised(call: Call) -> Iterator[Variant]:
    """The port divides the chosen weights by their sum where the reference does not, or the other
    way."""
    if not call.comes_from(*SCORES, steps=3) or _ported(call, call.args[0]) is False:
        return

    def fn(*args: Any, axis: int = _axis(call), **kwargs: Any) -> Any:
        values, chosen = call.run(*args, **kwargs)
        return values / values.sum(axis, keepdim=True), chosen

    yield Variant("the port divides the chosen weights by their sum; the reference does not", fn)


@cause("router_norm", on="div")
def not_normalised(call: Call) -> Iterator[Variant]:
    """The port does not divide the chosen weights by their sum; the reference does."""
    total = _producer(call, call.ref(1), "sum", "add", "clamp_min", "clamp")
    if total is not None and total.name != "sum":  # with an eps
        total = _producer(call, total.refs[0], "sum")
    if total is None or call.root(total.refs[0]) != call.root(call.ref(0)):
        return
    if not call.comes_from("topk", "gather", steps=3) or not call.comes_from(*SCORES, steps=6):
        return
    value = call.ref(0)
    if value is not None and call.graph.values[value].shape == call.out.shape:
        yield Variant(
            "the port does not divide the chosen weights by their sum; the reference does",
            lambda x: x.clone(),
            refs=(value,),
        )


@cause("router_k", on="topk")
def router_k(call: Call) -> Iterator[Variant]:
    """The port chooses another number of experts."""
    k, axis = int(call.args[1]), _axis(call)
    chosen = call.node.outs[1] if len(call.node.outs) > 1 else None
    if chosen is None or not call.graph.consumers.get(chosen):  # it routes nothing
        return
    if not _routes(call):
        return
    for other in range(1, min(MOST, call.args[0].shape[axis]) + 1):
        if other != k:
            yield Variant(
                f"the port chooses {other} of {call.args[0].shape[axis]}; the reference {k}",
                call.with_args(a1=other),
                reshapes=True,
            )
