"""Recurrent cells: gates' order, the reset's place, the forget gate's bias."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from twinvit.port.call import Call
from twinvit.port.causes import Variant, cause
from twinvit.port.causes.attention import _gates
from twinvit.port.ops import SPLITS


@cause("gate_order", on=SPLITS)
def gate_order(call: Call) -> Iterator[Variant]:
    """The port takes an LSTM's or GRU's gates in another order."""
    outs = [o for o in call.outs if o is not None]
    if (
        not 2 <= len(outs) <= 4
        or len({o.shape for o in outs}) != 1
        or (
            not _gates(call)
            and call.leads_to("softmax", steps=24, before=("addmm", "mm", "convolution"))
        )
    ):
        return
    names = {
        4: ("input", "forget", "cell", "output"),
        3: ("reset", "update", "new"),
        2: ("value", "gate"),
    }[len(outs)]
    graph = call.graph
    near = [
        n
        for n in graph.nodes[max(0, call.node.index - 8) : call.node.index + 9]
        if n.index != call.node.index and n.name in SPLITS and len(n.outs) == len(outs)
    ]

    def taking(op: Callable[..., Any], order: tuple[int, ...]) -> Callable[..., Any]:
        return lambda *args, **kw: [op(*args, **kw)[i] for i in order]

    for order in itertools.permutations(range(len(outs))):
        if order == tuple(range(len(outs))):
            continue
        text = (
            f"the port's gates are in the order {', '.join(names[i] for i in order)}; "
            f"the reference's {', '.join(names)}"
        )
        for other in near[:2]:  # a GRU splits the input's and the state's product
            also = ((other.index, taking(other.op, order)),)
            yield Variant(text, taking(call.node.op, order), also=also, key=f"both {order}")
        yield Variant(text, taking(call.node.op, order))


@cause("forget_bias", on="sigmoid")
def forget_bias(call: Call) -> Iterator[Variant]:
    """The port adds a constant to a gate before its sigmoid."""
    for by in (1.0, -1.0, 2.0):
        yield Variant(
            f"the port adds {by:g} to this gate", lambda x, b=by, **_: torch.sigmoid(x + b)
        )


@cause("gru_reset", on="mul")
def gru_reset(call: Call) -> Iterator[Variant]:
    """The port's GRU applies the reset gate to the state before the product; the reference after
    it."""
    for refs, k, n in _reset(call):
        if call.graph.values[refs[2]].shape != call.out.shape:
            continue

        def fn(
            g: torch.Tensor,
            b: torch.Tensor,
            h: torch.Tensor,
            w: torch.Tensor,
            k: int = k,
            n: int = n,
        ) -> torch.Tensor:
            return (g * h) @ w.chunk(n, 1)[k] + b.chunk(n)[k]

        yield Variant(
            "the port applies the reset gate before the product; the reference after it",
            fn,
            refs=refs,
            key="reset",
        )


@cause("bias_missing", on="mul")
def gru_bias(call: Call) -> Iterator[Variant]:
    """The port's GRU lacks the bias that the reset gate is applied to (Flax's cells have none)."""
    for (gate, _, state, weight), k, n in _reset(call):

        def fn(
            g: torch.Tensor, h: torch.Tensor, w: torch.Tensor, k: int = k, n: int = n
        ) -> torch.Tensor:
            return g * (h @ w.chunk(n, 1)[k])

        yield Variant(
            "the port's GRU lacks the bias of the new gate's state (b_hn), which the reset gate is "
            "applied to",
            fn,
            refs=(gate, state, weight),
            key="b_hn",
        )


def _reset(call: Call) -> Iterator[tuple[tuple[int, int, int, int], int, int]]:
    """Of a gate times a part of the state's product: the ids of the gate, and of that product's
    bias, state and weight; which part, of how many."""
    graph = call.graph
    for position in (0, 1):
        ref = call.ref(position)
        producer = graph.producer[graph_root(call, ref)] if ref is not None else None
        node = graph.nodes[producer] if producer is not None else None
        if node is None or node.name not in SPLITS:
            continue
        source = graph.producer[graph_root(call, node.refs[0])]
        product = graph.nodes[source] if source is not None else None
        gate = call.ref(1 - position)
        if product is None or product.name != "addmm" or gate is None:
            continue
        part = node.outs.index(graph_root(call, ref))
        bias, state, weight = product.refs[:3]
        yield (gate, bias, state, weight), part, len(node.outs)


def graph_root(call: Call, ref: int | None) -> int:
    return call.root(ref) or 0
