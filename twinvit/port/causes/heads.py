"""Heads of attention: which queries use which keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from twinvit.port.call import Call
from twinvit.port.causes import Variant, cause
from twinvit.port.ops import VIEWS
from twinvit.port.record.graph import Graph, Node

EACH = "each head of keys and values in turn (0, 0, 1, 1)"
ALL = "all heads of keys and values at once (0, 1, 0, 1)"
TEXT = "the port repeats {}; the reference {}"


def repeated_axis(call: Call) -> tuple[int, int] | None:
    """Of a view that merges two neighbouring axes, one of which repeats the other's numbers, that
    one and the first of the two; None for another view."""
    x, out = call.argument(0), call.out
    if not isinstance(x, torch.Tensor) or x.ndim != 5 or out.ndim != 4:
        return None
    if not call.comes_from("expand", "repeat", steps=2):
        return None
    for first in range(x.ndim - 1):
        merged = (*x.shape[:first], x.shape[first] * x.shape[first + 1], *x.shape[first + 2 :])
        if tuple(out.shape) != merged or min(x.shape[first : first + 2]) < 2:
            continue
        for axis in (first, first + 1):
            if bool((x == x.narrow(axis, 0, 1)).all()):
                return axis, first
    return None


@cause("kv_repeat", on=VIEWS)
def kv_repeat(call: Call) -> Iterator[Variant]:
    """The port repeats keys and values for the queries' heads in another order (0, 1, 0, 1 for
    0, 0, 1, 1)."""
    found = repeated_axis(call)
    if found is None:
        return
    axis, low = found
    out = call.out
    theirs, mine = (ALL, EACH) if axis > low else (EACH, ALL)
    yield Variant(
        TEXT.format(theirs, mine),
        lambda x, *_, a=low, s=tuple(out.shape), **__: x.transpose(a, a + 1).reshape(s),
        key=theirs,
    )


@cause("kv_repeat", on=("repeat", "cat"))
def kv_repeat_each(call: Call) -> Iterator[Variant]:
    """The port repeats each head in turn where the reference repeats all at once."""
    if call.out.ndim != 4 or not call.leads_to("bmm", "baddbmm", "matmul", steps=8):
        return
    if call.node.name == "cat":
        refs = call.node.refs
        if len(set(refs)) != 1 or len(refs) < 2 or len(call.args[0]) != len(refs):
            return
        n, axis = len(refs), int(call.argument(1, call.kwargs.get("dim", 0))) % 4
        value = refs[0]
    else:
        times = list(call.args[1])
        axes = [a for a, n in enumerate(times) if n != 1]
        if len(times) != 4 or len(axes) != 1 or call.args[0].ndim != 4:
            return
        n, axis, value = int(times[axes[0]]), axes[0], call.node.refs[0]
    yield Variant(
        TEXT.format(EACH, ALL),
        lambda x, n=n, axis=axis: x.repeat_interleave(n, axis),
        refs=(value,),
        key=EACH,
    )


@dataclass
class Attention:
    """Attention as a reference writes it out, from flat queries, keys and values (batch, tokens,
    width) to flat results.

    Attributes:
        q, k, v: ids of these values.
        heads, width: of the queries: how many heads, and how wide they are together.
        scale: what the scores are multiplied by.
        masks: operations on the scores after that, with the id of their mask.
        end: the operation that merges the heads.
    """

    q: int
    k: int
    v: int
    heads: int
    width: int
    scale: float
    masks: list[tuple[Node, int]]
    end: int


PASSED = ("transpose", "permute", "clone", "contiguous", "expand", "view", "_unsafe_view",
          "reshape", "unsqueeze", "squeeze")  # fmt: skip
SIZED = ("view", "_unsafe_view", "reshape")


def _number(graph: Graph, node: Node) -> float | None:
    """The number that an operation multiplies by; None for another one."""
    if node.name not in ("mul", "div") or len(node.args) < 2:
        return None
    other = graph.arguments(node)[0][1]
    if isinstance(other, torch.Tensor):
        fixed = node.refs[-1] not in graph.input_dependent() | graph.trained()
        if other.numel() != 1 or len(node.refs) != 2 or not fixed:
            return None
        other = float(other)
    if not isinstance(other, int | float) or not other:
        return None
    return 1 / other if node.name == "div" else float(other)


def _flat(graph: Graph, ref: int) -> tuple[int, int, float] | None:
    """Of heads that go into a product: the flat value that they were split from, how many there
    are, and what they were multiplied by since."""
    scale = 1.0
    for _ in range(10):
        producer = graph.producer[ref]
        node = graph.nodes[producer] if producer is not None else None
        if node is None or not node.refs:
            return None
        x, out = graph.values[node.refs[0]], graph.values[node.outs[0] or 0]
        factor = _number(graph, node)
        if node.name in SIZED and x.ndim == 3 and out.ndim == 4 and x.shape[:2] == out.shape[:2]:
            return node.refs[0], int(out.shape[2]), scale
        if factor is None and node.name not in PASSED:
            return None
        scale *= 1.0 if factor is None else factor
        ref = node.refs[0]
    return None


def attention_at(graph: Graph, scores: Node) -> Attention | None:
    """The attention whose scores a product computes; None if it is written in another way."""
    first, second = (_flat(graph, ref) for ref in scores.refs[:2])
    if scores.outs[0] is None or first is None or second is None:
        return None
    (q, heads, a), (k, _, b) = first, second
    found = Attention(q, k, -1, heads, int(graph.values[q].shape[-1]), a * b, [], -1)
    value, weighted = scores.outs[0], False
    for _ in range(16):
        users = graph.consumers.get(value, ())
        if len(users) != 1:
            return None
        node = graph.nodes[users[0]]
        out, factor = node.outs[0], _number(graph, node)
        if out is None:
            return None
        if node.name == "softmax" and not weighted:
            weighted = True
        elif node.name == "bmm" and weighted and found.v < 0 and node.refs[0] == value:
            side = _flat(graph, node.refs[1])
            if side is None or side[2] != 1.0:
                return None
            found.v = side[0]
        elif factor is not None and not weighted and not found.masks:
            found.scale *= factor
        elif node.name in ("add", "masked_fill") and not weighted and len(node.refs) == 2:
            mask = node.refs[1] if node.refs[0] == value else node.refs[0]
            if graph.values[mask].ndim > 2 and graph.values[mask].shape[-3] != 1:
                return None
            found.masks.append((node, mask))
        elif node.name not in PASSED:
            return None
        shape = graph.values[out].shape
        if found.v >= 0 and node.name in SIZED and len(shape) == 3 and shape[-1] == found.width:
            found.end = node.index
            return found
        value = out
    return None


def _with_heads(found: Attention, width: int, scale: float) -> Callable[..., torch.Tensor]:
    """The attention with heads of another width."""
    values = [n.args[2] if n.name == "masked_fill" else None for n, _ in found.masks]

    def fn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.reshape(*x.shape[:2], -1, width).transpose(1, 2) for x in (q, k, v))
        times = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(times, 1) if times > 1 else x for x in (k, v))
        scores = q @ k.transpose(-1, -2) * scale
        for mask, value in zip(masks, values):
            scores = scores + mask if value is None else scores.masked_fill(mask, value)
        y = scores.softmax(-1) @ v
        return y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1)

    return fn


@cause("head_count", on="bmm")
def head_count(call: Call) -> Iterator[Variant]:
    """The port's attention has another number of heads."""
    if not call.leads_to("softmax", steps=8):
        return
    graph = call.graph
    found = attention_at(graph, call.node)
    if found is None:
        return
    refs = (found.q, found.k, found.v, *(mask for _, mask in found.masks))
    widths = [int(graph.values[i].shape[-1]) for i in (found.q, found.k, found.v)]
    for heads in (n for n in range(1, found.width + 1) if found.width % n == 0):
        own = found.width // heads
        if heads == found.heads or widths[1] != widths[2] or widths[1] % own:
            continue
        if heads % (widths[1] // own):
            continue
        for scale, tail in (
            (found.scale * (heads / found.heads) ** 0.5, ""),
            (found.scale, ", and the reference's scale"),
        ):
            yield Variant(
                f"the port's attention has {heads} head{'s' * (heads > 1)} of width {own}{tail}; "
                f"the reference's {found.heads} of width {found.width // found.heads}",
                _with_heads(found, own, scale),
                refs=refs,
                node=found.end,
            )
