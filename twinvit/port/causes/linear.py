"""Products with weights: orientation, swapped and tied weights, biases."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from twinvit.port.call import Call
from twinvit.port.causes import Variant, cause
from twinvit.port.index import EQUAL, SMALLEST, layouts
from twinvit.port.ops import BIAS_AT, LAYOUT, WEIGHT_AT


@cause("weight_transposed", on=("addmm", "mm", "convolution", "bmm"))
def weight_transposed(call: Call) -> Iterator[Variant]:
    """The port's weight is transposed, or was reshaped where it had to be transposed."""
    position = WEIGHT_AT[call.node.name]
    if call.parameter(position) is None:
        return
    w = call.args[position]
    seen: list[torch.Tensor] = [w]
    for order in itertools.permutations(range(w.ndim)):
        moved = w.permute(order)
        for made in (moved, moved.reshape(w.shape)):
            if made.shape != w.shape or any(torch.equal(made, s) for s in seen):
                continue
            seen.append(made)
            direct = moved.shape == w.shape
            yield Variant(
                f"the port's weight has its axes in the order {order}"
                if direct and w.ndim > 2
                else "the port's weight is transposed"
                if direct
                else "the port's weight "
                "was reshaped where it "
                "had to be transposed "
                f"(from the order {order})",
                call.with_args(
                    **{f"a{position}": lambda v, o=order: v.permute(o).reshape(v.shape)}
                ),
            )


@cause(
    "weights_swapped",
    on=(
        "addmm",
        "mm",
        "convolution",
        "mul",
        "add",
        "native_layer_norm",
        "native_batch_norm",
        "native_group_norm",
    ),
)
def weights_swapped(call: Call) -> Iterator[Variant]:
    """The port has two weights of one shape in each other's place."""
    yield from _other_weights(call, tied=False)


@cause(
    "weights_swapped",
    on=(
        "native_layer_norm",
        "native_batch_norm",
        "native_group_norm",
        "_native_batch_norm_legit_no_training",
        "addmm",
        "convolution",
    ),
)
def modules_swapped(call: Call) -> Iterator[Variant]:
    """The port has two modules' weights and biases in each other's place."""
    graph = call.graph
    name = call.node.name
    positions = [p for p in range(len(call.args)) if call.parameter(p) is not None]
    if len(positions) < 2:
        return
    shapes = [tuple(call.args[p].shape) for p in positions]
    others = []
    for node in graph.nodes:
        if node.name != name or node.index == call.node.index:
            continue
        there = Call(graph, node)
        if (
            all(there.parameter(p) is not None for p in positions)
            and [tuple(there.args[p].shape) for p in positions] == shapes
        ):
            others.append(there)
    others.sort(key=lambda c: abs(c.node.index - call.node.index))

    def taking(owner: Call, values: list[torch.Tensor]) -> Any:
        return owner.with_args(**{f"a{p}": v for p, v in zip(positions, values)})

    for there in others[:8]:
        text = (
            f"the port has the weights of {there.node.scope} "
            f"here, and those of {call.node.scope} there"
        )
        yield Variant(
            text,
            taking(call, [there.args[p] for p in positions]),
            also=((there.node.index, taking(there, [call.args[p] for p in positions])),),
            key=f"module {there.node.scope.split('.')[-1]}",
        )


@cause("tied_weights", on=("addmm", "mm", "embedding"))
def tied_weights(call: Call) -> Iterator[Variant]:
    """The port uses another matrix for the head: it ties what the reference does not, or the other
    way."""
    yield from _other_weights(call, tied=True)


def _other_weights(call: Call, tied: bool) -> Iterator[Variant]:
    graph = call.graph
    weight = WEIGHT_AT[call.node.name]
    positions = sorted({weight, BIAS_AT.get(call.node.name, weight)})
    if call.node.name in ("mul", "add"):
        positions = [0, 1]
    for position in positions:
        mine = call.parameter(position)
        if mine is None:
            continue
        own = call.root(call.ref(position))
        value = graph.values[own or 0]
        same = [
            (name, i)
            for name, i in graph.params().items()
            if i != own
            and graph.values.shaped(i).shape == value.shape
            and graph.values.shaped(i).dtype == value.dtype
            and value.numel() >= 2
        ]
        same.sort(key=lambda item: (_unlike(item[0], mine), item[0]))
        for name, i in same[:10]:
            users = [graph.nodes[u] for u in _users(graph, i)]
            embeds = any(u.name == "embedding" for u in users) or call.node.name == "embedding"
            if embeds != tied:
                continue
            other = graph.values[i]
            also = []
            for user in users:
                if user.name != call.node.name or tied:
                    continue
                there = Call(graph, user)
                for p in positions:
                    if there.root(there.ref(p)) == i:
                        also.append(
                            (user.index, there.with_args(**{f"a{p}": _layout(there, p, value)}))
                        )
            text = (
                f"the port uses {name} here, too; the reference has {mine}"
                if tied
                else f"the port has {name} "
                f"in the place of {mine}" + (", and the other way" if also else "")
            )
            yield Variant(
                text,
                call.with_args(**{f"a{position}": _layout(call, position, other)}),
                also=tuple(also[:1]),
                key=text,
            )
            if also:
                yield Variant(
                    f"the port uses {name} for {mine}",
                    call.with_args(**{f"a{position}": _layout(call, position, other)}),
                )


@cause("tied_weights", on=("addmm", "mm"))
def untied(call: Call) -> Iterator[Variant]:
    """The port's head has a matrix of its own where the reference shares the embedding's."""
    yield from _ports_value(call, shared=True)


@cause(
    "weights",
    on=(
        "addmm",
        "mm",
        "convolution",
        "mul",
        "add",
        "native_layer_norm",
        "native_batch_norm",
        "native_group_norm",
        "_native_batch_norm_legit_no_training",
        "embedding",
        "cat",
        "expand",
        "index",
    ),
)
def other_value(call: Call) -> Iterator[Variant]:
    """The port holds other values for a parameter (not loaded, rounded, or of another
    checkpoint)."""
    yield from _ports_value(call, shared=False)


def _ports_value(call: Call, shared: bool) -> Iterator[Variant]:
    """A parameter that has no equal in the port, replaced by a parameter of the port that has none
    in the reference."""
    if call.index is None:
        return
    graph = call.graph
    for position, arg in enumerate(call.args):
        name = call.parameter(position) if isinstance(arg, torch.Tensor) else None
        if name is None or arg.numel() < SMALLEST:
            continue
        root = call.root(call.ref(position)) or 0
        ties = len({graph.nodes[u].index for u in _users(graph, root)}) > 1
        value = graph.values[root]
        if ties != shared or (not shared and call.index.find(value.numpy(), EQUAL) is not None):
            continue
        near = [
            e
            for e in call.index.ids(value.numel())
            if call.index.entries[e].name == "parameter" and e not in call.claimed
        ]
        print_ = value.double().pow(2).mean().sqrt()
        entries = call.index.entries

        def apart(e: int, entries: Any = entries, size: float = float(print_)) -> float:
            held = entries[e].value
            if held is None:
                return 9e9
            return abs(float(np.sqrt(np.mean(np.square(held)))) - size)

        near.sort(key=apart)
        for entry in near[:4]:
            theirs = call.index.entries[entry]
            if theirs.value is None:
                continue
            for moved in layouts(theirs.value, tuple(arg.shape))[:3]:
                other = torch.from_numpy(np.array(moved))
                far = float((other - arg).norm() / arg.norm())
                text = (
                    "the port has a "
                    "matrix of its own "
                    f"({theirs.where}); the "
                    f"reference shares {name}"
                    if shared
                    else "the port holds other "
                    f"numbers for {name} "
                    f"({theirs.where}), {far:.1e} "
                    "apart: load or "
                    "convert it again"
                )
                yield Variant(text, call.with_args(**{f"a{position}": other}), key=text)


def _layout(call: Call, position: int, value: torch.Tensor) -> torch.Tensor:
    """Another parameter in the layout in which the operation takes its own."""
    present = call.args[position]
    own = call.graph.values[call.root(call.ref(position)) or 0]
    if present.shape == value.shape and (value.ndim < 2 or torch.equal(present, own)):
        return value
    if present.ndim == value.ndim == 2 and present.shape == value.t().shape:
        return value.t()
    return value.reshape(present.shape)


def _users(graph: Any, value_id: int) -> list[int]:
    """Operations that take a value, seen through layouts."""
    result: list[int] = []
    for user in graph.consumers.get(value_id, ()):
        node = graph.nodes[user]
        if node.name in LAYOUT:
            for out in node.outs:
                if out is not None:
                    result += _users(graph, out)
        else:
            result.append(user)
    return result


def _unlike(a: str, b: str) -> int:
    """How many parts of two names differ."""
    x, y = a.split("."), b.split(".")
    return sum(p != q for p, q in zip(x, y)) + abs(len(x) - len(y))


@cause("bias_missing", on=(*BIAS_AT, "add"))
def bias_missing(call: Call) -> Iterator[Variant]:
    """The port lacks a bias."""
    name = call.node.name
    if name == "add":
        for position in (0, 1):
            if (
                call.parameter(position) is not None
                and isinstance(call.argument(1 - position), torch.Tensor)
                and bool(call.args[position].any())
                and not (call.fixed(position) and call.leads_to("softmax", steps=4))  # a mask
                and not _folded(call, position)
            ):
                yield Variant(
                    "the port does not add this parameter",
                    lambda *args, p=position, **_: args[1 - p].expand(call.out.shape).clone(),
                )
        return
    position = BIAS_AT[name]
    bias = call.argument(position)
    if not isinstance(bias, torch.Tensor) or not bool(bias.any()) or _folded(call, position):
        return
    if name in ("addmm", "baddbmm"):
        yield Variant("the port lacks this bias", lambda b, x, w, **_: x @ w)
    else:
        yield Variant("the port lacks this bias", call.with_args(**{f"a{position}": None}))


def _folded(call: Call, position: int) -> bool:
    """True if the port holds this bias added to another one of the module (an LSTM's b_ih + b_hh):
    it adds it elsewhere."""
    name = call.parameter(position)
    if name is None or call.index is None:
        return False
    graph, own = call.graph, call.root(call.ref(position))
    value = graph.values[own or 0]
    module = name.rpartition(".")[0]
    return any(
        call.index.find((value + graph.values[i]).numpy(), EQUAL) is not None
        for other, i in graph.params().items()
        if i != own
        and other.rpartition(".")[0] == module
        and graph.values.shaped(i).shape == value.shape
    )


def _biases(call: Call) -> list[int]:
    """Positions of the arguments that are a bias, a parameter."""
    positions = (0, 1) if call.node.name == "add" else (BIAS_AT[call.node.name],)
    return [
        p
        for p in positions
        if isinstance(call.argument(p), torch.Tensor) and call.parameter(p) is not None
    ]


@cause("bias_doubled", on=(*BIAS_AT, "add"))
def bias_doubled(call: Call) -> Iterator[Variant]:
    """The port adds a bias twice."""
    for position in _biases(call):
        yield Variant(
            "the port adds this bias twice", call.with_args(**{f"a{position}": lambda b: 2 * b})
        )


@cause("bias_sign", on=(*BIAS_AT, "add"))
def bias_sign(call: Call) -> Iterator[Variant]:
    """The port subtracts a bias."""
    for position in _biases(call):
        yield Variant(
            "the port subtracts this bias", call.with_args(**{f"a{position}": lambda b: -b})
        )


@cause("bias_order", on=("addmm", "add", "convolution"))
def bias_order(call: Call) -> Iterator[Variant]:
    """The port's bias is reversed or its halves are swapped."""
    for position in _biases(call):
        b = call.args[position]
        if b.ndim == 1:
            yield Variant(
                "the port's bias is reversed",
                call.with_args(**{f"a{position}": lambda b: b.flip(0)}),
            )
            if b.numel() % 2 == 0:
                yield Variant(
                    "the halves of the port's bias are swapped",
                    call.with_args(**{f"a{position}": lambda b: b.roll(b.numel() // 2)}),
                )
