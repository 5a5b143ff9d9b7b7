"""Pooling: padding and what it counts, kinds, and reductions over tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from twinvit.port.call import Call
from twinvit.port.causes import Variant, cause
from twinvit.port.causes.convolution import _flat, _same
from twinvit.port.ops import POOLS


def _settings(call: Call) -> tuple[list[int], list[int], list[int]]:
    """Kernel, stride and padding of a pooling over a plane."""

    def full(v: Any, default: Any) -> list[int]:
        v = default if v is None or v == [] else v
        v = [v] if isinstance(v, int) else list(v)
        return v * 2 if len(v) == 1 else v

    kernel = full(call.args[1], 1)
    return kernel, full(call.argument(2), kernel), full(call.argument(3), 0)


def _pool(
    kind: str,
    kernel: list[int],
    stride: list[int],
    pads: list[tuple[int, int]],
    fill: float,
    count_pad: bool,
) -> Callable[..., Any]:
    def fn(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        y = F.pad(x, _flat(pads), value=fill)
        if kind == "max":
            return F.max_pool2d(y, kernel, stride)
        total = F.avg_pool2d(y, kernel, stride)
        if count_pad:
            return total
        ones = F.pad(torch.ones_like(x), _flat(pads))
        return total / F.avg_pool2d(ones, kernel, stride)

    return fn


@cause("pool_padding", on=POOLS)
def pool_padding(call: Call) -> Iterator[Variant]:
    """The port pads a pooling otherwise, counts the padding, or rounds the size up."""
    kernel, stride, pad = _settings(call)
    kind = "max" if "max" in call.node.name else "avg"
    sizes = list(call.args[0].shape[2:])
    same = [_same(n, k, s, 1) for n, k, s in zip(sizes, kernel, stride)]
    own = [(p, p) for p in pad]
    high = [(p, p + s - 1) for p, s in zip(pad, stride)]
    low = [(h, lo) for lo, h in same]
    fills = ((-math.inf, "-inf"), (0.0, "zeros")) if kind == "max" else ((0.0, "zeros"),)
    counts = (True,) if kind == "max" else (True, False)
    for pads, text in (
        (own, "as the reference"),
        (same, f"SAME, {same}"),
        (low, f"{low}"),
        ([(0, 0)] * 2, "VALID, none"),
        (high, f"{high} (ceil_mode)"),
    ):
        for fill, name in fills:
            for count in counts:
                yield Variant(
                    "the port pads "
                    f"this pooling {text}"
                    + (
                        f" with {name}"
                        if kind == "max"
                        else f", padding {'' if count else 'not '}counted"
                    ),
                    _pool(kind, kernel, stride, pads, fill, count),
                    reshapes=True,
                )


@cause("pool_kind", on=(*POOLS, "mean", "amax"))
def pool_kind(call: Call) -> Iterator[Variant]:
    """The port pools with another function (mean, maximum), or other positions."""
    name = call.node.name
    if name in POOLS:
        kernel, stride, pad = _settings(call)
        own = [(p, p) for p in pad]
        other = "avg" if "max" in name else "max"
        yield Variant(
            f"the port takes the {'mean' if other == 'avg' else 'maximum'} of each window",
            _pool(other, kernel, stride, own, 0.0 if other == "avg" else -math.inf, True),
        )
    else:
        x, dims = call.args[0], call.argument(1)
        keep = bool(call.argument(2, False))
        if dims is None or dims == []:
            return
        dims = [d % x.ndim for d in (dims if isinstance(dims, list | tuple) else [dims])]
        word, opposite = ("mean", "maximum") if name == "mean" else ("maximum", "mean")

        def reduce(x: torch.Tensor, kind: str, over: list[int]) -> torch.Tensor:
            fn = x.mean if kind == "mean" else x.amax
            return fn(over, keepdim=keep)

        def axes(fn: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
            return lambda x, *_, **__: fn(x)

        yield Variant(
            f"the port takes the {opposite}; the reference the {word}",
            axes(lambda x: reduce(x, opposite, dims)),
        )
        if len(dims) != 1:
            return
        # These run when the search has gone on: no name that they read may be bound again.
        if x.ndim >= 3:
            d = dims[0]
            n = x.shape[d]
            for text, place in (("first", 0), ("last", n - 1)):
                yield Variant(
                    f"the port takes the {text} position; the reference the {word}",
                    axes(
                        lambda x, place=place: (  # type: ignore[misc]
                            x.narrow(d, place, 1) if keep else x.select(d, place)
                        )
                    ),
                )
            if n > 2:
                yield Variant(
                    f"the port leaves the first position out of the {word}",
                    axes(lambda x: reduce(x.narrow(d, 1, n - 1), word, dims)),
                )
        for axis in range(x.ndim):
            if [axis] != dims:
                yield Variant(
                    f"the port takes the {word} over axis {axis}; the reference over {dims[0]}",
                    axes(lambda x, a=axis: reduce(x, word, [a])),  # type: ignore[misc]
                )


@cause("pool_kind", on="select")
def pool_token(call: Call) -> Iterator[Variant]:
    """The port takes the mean of the tokens where the reference takes one."""
    if call.args[0].ndim < 3 or not call.out.is_floating_point():
        return
    dim = call.args[1]
    n = call.args[0].shape[dim]
    yield Variant(
        "the port takes the mean of all positions; the reference one position",
        lambda x, d, *_, **__: x.mean(d),
    )
    if n > 2:
        yield Variant(
            "the port takes the mean of all positions but the first",
            lambda x, d, *_, **__: x.narrow(d, 1, x.shape[d] - 1).mean(d),
        )
    yield Variant("the port takes the maximum over positions", lambda x, d, *_, **__: x.amax(d))


@cause("reduction", on=("mean", "sum", "amax"))
def reduction(call: Call) -> Iterator[Variant]:
    """The port sums where the reference takes the mean, or the other way."""
    if call.leads_to("rsqrt", steps=3) or not isinstance(call.args[0], torch.Tensor):
        return
    n = call.args[0].numel() / max(1, call.out.numel())
    if call.node.name == "mean":
        yield Variant(
            "the port takes the sum; the reference the mean",
            lambda *args, **kw: call.run(*args, **kw) * n,
        )
        if n > 1:
            yield Variant(
                "the port divides the sum by n - 1",
                lambda *args, **kw: call.run(*args, **kw) * n / (n - 1),
            )
    elif call.node.name == "sum":
        yield Variant(
            "the port takes the mean; the reference the sum",
            lambda *args, **kw: call.run(*args, **kw) / n,
        )
