"""Convolutions: padding, stride, dilation, groups, flipped kernels, transposed convolutions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from twinvit.port.call import Call
from twinvit.port.causes import Variant, cause


def _flat(pads: list[tuple[int, int]]) -> list[int]:
    """Padding of each axis as `F.pad` takes it."""
    return [p for low, high in reversed(pads) for p in (low, high)]


def _padded(
    pads: list[tuple[int, int]], mode: str = "constant", **changes: Any
) -> Callable[..., Any]:
    def fn(
        x: Any,
        w: Any,
        b: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        transposed: Any,
        output_padding: Any,
        groups: Any,
    ) -> Any:
        y = F.pad(x, _flat(pads), mode=mode)
        return torch.ops.aten.convolution.default(
            y,
            w,
            b,
            changes.get("stride", stride),
            [0] * len(padding),
            changes.get("dilation", dilation),
            False,
            output_padding,
            groups,
        )

    return fn


def _same(n: int, k: int, s: int, d: int) -> tuple[int, int]:
    """XLA's SAME padding: the odd one at the end."""
    total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
    return total // 2, total - total // 2


def _sizes(call: Call) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    x, w = call.args[0], call.args[1]
    n = x.ndim - 2

    def full(v: Any) -> list[int]:
        return list(v) * n if len(v) == 1 and n > 1 else list(v)

    return (
        list(x.shape[2:]),
        list(w.shape[2:]),
        full(call.args[3]),
        full(call.args[4]),
        full(call.args[5]),
    )


@cause("padding", on="convolution")
def padding(call: Call) -> Iterator[Variant]:
    """The port pads a convolution otherwise (SAME pads unevenly at stride 2), or with other
    values."""
    if call.args[6]:
        return
    sizes, kernel, stride, pad, dilation = _sizes(call)
    same = [_same(n, k, s, d) for n, k, s, d in zip(sizes, kernel, stride, dilation)]
    own = [(p, p) for p in pad]
    tried = {tuple(own)}
    candidates = [
        (same, f"SAME, {tuple(same)}"),
        ([(h, lo) for lo, h in same], f"{tuple((h, lo) for lo, h in same)}"),
        ([(0, 0)] * len(pad), "VALID, none"),
    ]
    reach = [(k - 1) * d for k, d in zip(kernel, dilation)]
    for low, high in itertools.product(range(max(reach) + 2), repeat=2):
        pads = [(low, high)] * len(pad)
        candidates.append((pads, f"{(low, high)} on each axis"))
    for pads, text in candidates:
        if tuple(pads) in tried:
            continue
        tried.add(tuple(pads))
        shape = [
            (n + lo + hi - (k - 1) * d - 1) // s + 1
            for n, (lo, hi), k, s, d in zip(sizes, pads, kernel, stride, dilation)
        ]
        if any(v <= 0 for v in shape):
            continue
        fits = shape == list(call.out.shape[2:])
        if not fits and pads not in (
            same,
            [(0, 0)] * len(pad),
            [((k - 1) * d // 2,) * 2 for k, d in zip(kernel, dilation)],
        ):
            continue
        yield Variant(
            f"the port pads this convolution by {text}; "
            f"the reference by {tuple(pad)} on both sides",
            _padded(pads),
            reshapes=not fits,
            key=f"padding {text}",
        )
    if any(pad):
        for mode in ("reflect", "replicate", "circular"):
            yield Variant(
                f"the port pads with mode {mode}; the reference with zeros", _padded(own, mode)
            )


@cause(
    "padding",
    on=(
        "constant_pad_nd",
        "reflection_pad2d",
        "reflection_pad1d",
        "replication_pad2d",
        "replication_pad1d",
    ),
)
def padding_written_out(call: Call) -> Iterator[Variant]:
    """The port pads otherwise than the reference's own padding."""
    pads = list(call.args[1])
    swapped = [p for low, high in zip(pads[::2], pads[1::2]) for p in (high, low)]
    for mode in ("constant", "reflect", "replicate", "circular"):
        for these in (pads, swapped):
            if mode == "constant" and these == pads and call.node.name == "constant_pad_nd":
                continue
            yield Variant(
                f"the port pads {these} with mode {mode}; the reference {pads}",
                lambda x, *_, m=mode, p=these, **__: F.pad(x, p, mode=m),
            )


@cause("stride", on="convolution")
def stride(call: Call) -> Iterator[Variant]:
    """The port's convolution has another stride."""
    if call.args[6]:
        return
    sizes, kernel, own, pad, dilation = _sizes(call)
    for s in (1, 2, 3, 4):
        if [s] * len(own) == own:
            continue
        for pads, text in (
            ([(p, p) for p in pad], "the same padding"),
            ([_same(n, k, s, d) for n, k, d in zip(sizes, kernel, dilation)], "SAME padding"),
        ):
            yield Variant(
                f"the port's stride is {s} with {text}; the reference's {tuple(own)}",
                _padded(pads, stride=[s] * len(own)),
                reshapes=True,
            )


@cause("stride", on="convolution")
def stride_elsewhere(call: Call) -> Iterator[Variant]:
    """The port strides in another convolution of the block."""
    if call.args[6]:
        return
    graph = call.graph
    later = [
        n
        for n in graph.nodes[call.node.index + 1 : call.node.index + 12]
        if n.name == "convolution"
    ]
    own = list(call.args[3])
    for node in later[:2]:
        there = Call(graph, node)
        theirs = list(there.args[3])
        if theirs != own and not there.args[6]:
            yield Variant(
                "the port strides by "
                f"{tuple(theirs)} here and by "
                f"{tuple(own)} in "
                f"{node.scope}; "
                "the reference the other way",
                call.with_args(a3=theirs),
                also=((node.index, there.with_args(a3=own)),),
                reshapes=True,
                key=f"stride {own} {theirs}",
            )


@cause("dilation", on="convolution")
def dilation(call: Call) -> Iterator[Variant]:
    """The port's convolution has another dilation."""
    if call.args[6]:
        return
    sizes, kernel, stride, pad, own = _sizes(call)
    if max(kernel) == 1:
        return
    for d in (1, 2, 3, 4):
        if [d] * len(own) == own:
            continue
        half = [((k - 1) * d // 2,) * 2 for k in kernel]
        for pads in (
            [(p, p) for p in pad],
            half,
            [_same(n, k, s, d) for n, k, s in zip(sizes, kernel, stride)],
        ):
            if all(n + lo + hi > (k - 1) * d for n, (lo, hi), k in zip(sizes, pads, kernel)):
                yield Variant(
                    f"the port's dilation is {d}; the reference's {tuple(own)}",
                    _padded(pads, dilation=[d] * len(own)),
                    reshapes=True,
                    key=f"dilation{d}{pads}",
                )


@cause("kernel_flipped", on="convolution")
def kernel_flipped(call: Call) -> Iterator[Variant]:
    """The port convolves with the kernel flipped, where the reference correlates."""
    w = call.args[1]
    if call.args[6] or w.ndim < 3 or max(w.shape[2:]) == 1:
        return
    axes = range(2, w.ndim)
    for n in range(len(axes), 0, -1):
        for flipped in itertools.combinations(axes, n):
            yield Variant(
                "the port's kernel is flipped", call.with_args(a1=lambda w, f=flipped: w.flip(f))
            )


@cause("conv_groups", on="convolution")
def conv_groups(call: Call) -> Iterator[Variant]:
    """The port's grouped convolution takes or gives the channels of a group in another order."""
    groups = call.args[8]
    if groups < 2 or call.args[6]:
        return

    def shuffle(t: torch.Tensor, g: int) -> torch.Tensor:
        return t.reshape(t.shape[0], g, -1, *t.shape[2:]).transpose(1, 2).reshape(t.shape)

    yield Variant(
        "the port's groups take every g-th channel; the reference's neighbouring ones",
        call.with_args(a0=lambda x: shuffle(x, x.shape[1] // groups)),
    )
    yield Variant(
        "the port gives the groups' channels interleaved",
        lambda *args, **kw: shuffle(call.run(*args, **kw), groups),
    )
    for axis in (0, 1):
        yield Variant(
            "the port's weight holds the groups' channels interleaved",
            call.with_args(
                a1=lambda w, a=axis: (
                    shuffle(w, groups)
                    if a
                    else w.reshape(groups, -1, *w.shape[1:]).transpose(0, 1).reshape(w.shape)
                )
            ),
        )


@cause("channel_order", on="convolution")
def channel_order(call: Call) -> Iterator[Variant]:
    """The port takes an image's channels in reverse (BGR for RGB)."""
    if call.args[0].shape[1] in (2, 3, 4) and not call.args[6]:
        yield Variant(
            "the port takes the channels in reverse (BGR for RGB)",
            call.with_args(a0=lambda x: x.flip(1)),
        )


@cause("conv_transpose", on="convolution")
def conv_transpose(call: Call) -> Iterator[Variant]:
    """The port's transposed convolution has a flipped kernel, or places its output otherwise."""
    if not call.args[6]:
        return
    w = call.args[1]
    axes = tuple(range(2, w.ndim))
    out = list(call.out.shape[2:])
    op = call.node.op

    def at(flip: bool, swap: bool, offset: int) -> Callable[..., Any]:
        def fn(x: Any, w: Any, b: Any, s: Any, p: Any, d: Any, t: Any, o: Any, g: Any) -> Any:
            w = w.flip(axes) if flip else w
            w = w.transpose(0, 1) if swap else w
            y = op(x, w, None, s, [0] * len(p), d, True, [0] * len(p), g)
            for axis, size in zip(axes, out):
                low = p[axis - 2] + offset
                if low < 0:
                    y = F.pad(
                        y,
                        _flat([(0, 0)] * (axis - 2) + [(-low, 0)] + [(0, 0)] * (y.ndim - 1 - axis)),
                    )
                    low = 0
                high = max(0, low + size - y.shape[axis])
                if high:
                    y = F.pad(
                        y,
                        _flat([(0, 0)] * (axis - 2) + [(0, high)] + [(0, 0)] * (y.ndim - 1 - axis)),
                    )
                y = y.narrow(axis, low, size)
            return y if b is None else y + b.reshape(1, -1, *(1,) * len(axes))

        return fn

    square = w.shape[0] == w.shape[1] and call.args[8] == 1
    for offset in (0, 1, -1, 2, -2):
        for flip in (False, True):
            for swap in (False, True) if square else (False,):
                if not (flip or swap or offset):
                    continue
                words = [
                    *(["a flipped kernel"] if flip else []),
                    *(["its input and output channels swapped"] if swap else []),
                    *([f"its output cut {offset} further in"] if offset else []),
                ]
                yield Variant(
                    f"the port's transposed convolution has {', '.join(words)}",
                    at(flip, swap, offset),
                )
