"""Rotary positions: layout, base, offset."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from twinvit.port.call import Call
from twinvit.port.causes import Variant, cause

BASES = (100.0, 1e3, 1e4, 2e4, 5e4, 1e5, 5e5, 1e6, 1e7)


def _half(x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)


def _interleaved(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)


def _pairs(table: torch.Tensor) -> torch.Tensor:
    """A table of halves (c, c) as pairs (c0, c0, c1, c1, ...)."""
    return table.chunk(2, -1)[0].repeat_interleave(2, -1)


def _halves(table: torch.Tensor) -> torch.Tensor:
    return torch.cat([table[..., ::2], table[..., ::2]], -1)


def _rotation(call: Call) -> tuple[int, int, int, bool] | None:
    """Ids of x, cos and sin, and whether halves are rotated, of `x * cos + rotate(x) * sin`."""
    graph = call.graph
    found = []
    for position in (0, 1):
        ref = call.ref(position)
        producer = graph.producer[ref] if ref is not None else None
        node = graph.nodes[producer] if producer is not None else None
        if node is None or node.name != "mul" or len(node.refs) != 2:
            return None
        found.append(node)
    for plain, turned in (found, found[::-1]):
        for x in plain.refs:
            cos = plain.refs[1 - plain.refs.index(x)]
            for rot in turned.refs:
                sin = turned.refs[1 - turned.refs.index(rot)]
                if (
                    graph.values[x].shape != call.out.shape
                    or graph.values[rot].shape != call.out.shape
                ):
                    continue
                value, turned_value = graph.values[x], graph.values[rot]
                if value.shape[-1] % 2 == 0:
                    if torch.equal(_half(value), turned_value):
                        return x, cos, sin, True
                    if torch.equal(_interleaved(value), turned_value):
                        return x, cos, sin, False
    return None


@cause("rope_layout", on="add")
def rope_layout(call: Call) -> Iterator[Variant]:
    """The port rotates pairs of neighbours for pairs of halves, or the other way, or backwards."""
    found = _rotation(call)
    if found is None:
        return
    x, cos, sin, half = found
    rotate, tables = (_interleaved, _pairs) if half else (_half, _halves)
    own = _half if half else _interleaved
    words = ("neighbours", "halves") if half else ("halves", "neighbours")
    makers: list[tuple[str, Callable[..., Any]]] = [
        (
            f"the port rotates pairs of {words[0]}; the reference pairs of {words[1]}",
            lambda x, c, s: x * tables(c) + rotate(x) * tables(s),
        ),
        (
            f"the port rotates pairs of {words[0]} with the reference's order of angles",
            lambda x, c, s: x * c + rotate(x) * s,
        ),
        (
            f"the port's angles are for pairs of {words[0]}, its rotation for {words[1]}",
            lambda x, c, s: x * tables(c) + own(x) * tables(s),
        ),
        ("the port rotates backwards", lambda x, c, s: x * c - own(x) * s),
        ("the port does not rotate", lambda x, c, s: x.clone()),
        ("the port has sine and cosine in each other's place", lambda x, c, s: x * s + own(x) * c),
    ]
    for text, fn in makers:
        yield Variant(text, fn, refs=(x, cos, sin), key=text)


def _turns(cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The angles of the first position and the step from one position to the next, of tables (...,
    positions, width)."""
    if (
        cos.ndim < 2
        or cos.shape != sin.shape
        or not torch.allclose(cos**2 + sin**2, torch.ones_like(cos), atol=1e-6)
    ):
        return None
    axis = next((a for a in range(cos.ndim - 2, -1, -1) if cos.shape[a] > 1), None)
    if axis is None:
        return None
    c, s = (
        cos.movedim(axis, 0).reshape(cos.shape[axis], -1, cos.shape[-1])[:, 0],
        sin.movedim(axis, 0).reshape(cos.shape[axis], -1, cos.shape[-1])[:, 0],
    )
    first = torch.atan2(s[0], c[0])
    step = torch.atan2(s[1] * c[0] - c[1] * s[0], c[1] * c[0] + s[1] * s[0])
    return first, step


@cause("rope_offset", on="add")
def rotation_offset(call: Call) -> Iterator[Variant]:
    """The port rotates queries or keys by positions that are off."""
    found = _rotation(call)
    if found is None:
        return
    x, cos, sin, half = found
    turns = _turns(call.graph.values[cos], call.graph.values[sin])
    if turns is None:
        return
    rotate = _half if half else _interleaved
    step = turns[1]
    for by in (1, -1, 2, -2):

        def fn(x: torch.Tensor, c: torch.Tensor, s: torch.Tensor, by: int = by) -> torch.Tensor:
            a, b = (by * step).cos(), (by * step).sin()
            return x * (c * a - s * b) + rotate(x) * (s * a + c * b)

        yield Variant(f"the port's positions are {by:+d} off here", fn, refs=(x, cos, sin))


@cause("rope_base", on="add")
def rotation_base(call: Call) -> Iterator[Variant]:
    """The port rotates by angles of another base."""
    found = _rotation(call)
    if found is None:
        return
    x, cos, sin, half = found
    turns = _turns(call.graph.values[cos], call.graph.values[sin])
    if turns is None or not bool((turns[1] > 0).all()):
        return
    rotate = _half if half else _interleaved
    first, step = turns
    width = step.numel() // 2
    high, low = float(step.max()), float(step.min())
    if high == low or width < 2:
        return
    base = (high / low) ** (width / (width - 1))
    shape = call.graph.values[cos].shape
    axis = next(a for a in range(len(shape) - 2, -1, -1) if shape[a] > 1)
    for new in BASES:
        if abs(new - base) < 1e-3 * base:
            continue
        power = math.log(new) / math.log(base)

        def fn(x: torch.Tensor, c: torch.Tensor, s: torch.Tensor, p: float = power) -> torch.Tensor:
            n = torch.arange(shape[axis], dtype=c.dtype).reshape(
                [-1 if a == axis else 1 for a in range(len(shape))]
            )
            angle = n * high * (step / high) ** p + (first / step)[:1] * high * (step / high) ** p
            return x * angle.cos() + rotate(x) * angle.sin()

        yield Variant(
            f"the port's rotary base is {new:g}; the reference's {base:.6g}",
            fn,
            refs=(x, cos, sin),
            key=f"base {new}",
        )


def _angles(call: Call) -> torch.Tensor | None:
    """The frequencies, if the operation's output is a table of angles, position times frequency."""
    out = call.out
    if not out.is_floating_point() or out.ndim < 2 or out.shape[-2] < 3 or out.shape[-1] < 2:
        return None
    table = out.reshape(-1, *out.shape[-2:])[0]
    step = table[1] - table[0]
    n = torch.arange(table.shape[0], dtype=table.dtype)[:, None]
    if not bool((step > 0).all()) or not torch.allclose(
        table, table[:1] + n * step, rtol=1e-9, atol=1e-12
    ):
        return None
    return step


@cause("rope_base", on=("mul", "bmm", "cat", "mm", "div", "stack", "view"))
def rope_base(call: Call) -> Iterator[Variant]:
    """The port's rotary angles have another base."""
    step = _angles(call)
    if step is None or float(step.max()) == float(step.min()):
        return
    first = float(step.max())
    lowest = float(step.min())
    half = int((step == step[0]).sum() > 1) + 1
    width = step.numel() if half == 1 else step.numel() // 2
    ratio = (first / lowest) ** (1 / max(1, width - 1))
    base = ratio**width

    def changed(new: float) -> Callable[..., Any]:
        power = math.log(new) / math.log(base)

        def fn(*args: Any, **kw: Any) -> torch.Tensor:
            out = call.run(*args, **kw)
            return out * (step / first) ** (power - 1)

        return fn

    grid = [b for b in BASES if abs(b - base) > 1e-3 * base]
    for new in call.solve(lambda t: changed(t)(*call.args, **call.kwargs), 2.0, 1e9, grid=grid):
        if abs(new - base) > 1e-6 * base:
            yield Variant(
                f"the port's rotary base is {new:g}; the reference's {base:.6g}", changed(new)
            )


LLAMA3 = ((8.0, 8192.0), (32.0, 8192.0), (4.0, 8192.0), (16.0, 8192.0))
"""Factors of Llama 3's scaling, and the lengths that it was trained with before."""


def _scaled(
    frequencies: torch.Tensor, factor: float, old: float, low: float = 1.0, high: float = 4.0
) -> torch.Tensor:
    """Frequencies (n,) scaled as Llama 3.1 scales them: long waves by 1 / factor, short ones not,
    those between by a mean."""
    waves = 2 * math.pi / frequencies
    share = ((old / waves - low) / (high - low)).clamp(0, 1)
    return (1 - share) * frequencies / factor + share * frequencies


def _geometric(base: float, n: int) -> torch.Tensor:
    return 1.0 / base ** (torch.arange(n, dtype=torch.float64) / n)


def _bases(frequencies: torch.Tensor) -> list[float]:
    """Bases of frequencies (n,): of the shortest waves, which no scaling changes, and of all."""
    n = frequencies.numel()
    found = [
        float((frequencies[0] / frequencies[1]) ** n),
        float((frequencies[0] / frequencies[-1]) ** (n / (n - 1))),
    ]
    return [float(f"{b:.4g}") for b in found if math.isfinite(b) and b > 1]


@cause("rope_scaling", on=("mul", "bmm", "cat", "mm", "stack", "view"))
def rope_scaling(call: Call) -> Iterator[Variant]:
    """The port does not scale its rotary frequencies for longer texts, or scales them otherwise."""
    step = _angles(call)
    if step is None:
        return
    twice = step.numel() % 2 == 0 and bool((step.chunk(2)[0] == step.chunk(2)[1]).all())
    own = step.chunk(2)[0] if twice else step
    if own.numel() < 3 or bool((own[1:] >= own[:-1]).any()) or abs(float(own[0]) - 1) > 1e-6:
        return
    bases = dict.fromkeys((*_bases(own), *BASES))
    rounded = bool((own == own.float().double()).all())
    plain = next((b for b in bases if _near(own, _geometric(b, own.numel()))), None)
    ways: list[tuple[str, torch.Tensor]] = []
    for base in bases:
        table = _geometric(base, own.numel())
        if plain is None:
            text = (
                f"the port does not scale its rotary frequencies, of base {base:g}; the reference"
            )
            ways.append((f"{text} scales them by up to {float((table / own).max()):.4g}", table))
        for factor, old in LLAMA3 if plain in (None, base) else ():
            scaled = _scaled(table, factor, old)
            text = f"the port scales its rotary frequencies of base {base:g} as Llama 3 does, with"
            if not _near(own, scaled) and not _near(table, scaled):
                ways.append((f"{text} a factor of {factor:g} and {old:g} positions", scaled))
    for text, table in ways:
        new = table.float().double() if rounded else table
        ratio = (torch.cat([new, new]) if twice else new) / step
        yield Variant(text, lambda *args, r=ratio, **kw: call.run(*args, **kw) * r)


def _near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(torch.allclose(a, b, rtol=1e-6, atol=0))


@cause("rope_offset", on=("mul", "bmm", "cat", "mm", "stack", "view"))
def rope_offset(call: Call) -> Iterator[Variant]:
    """The port's positions begin elsewhere, or are scaled."""
    step = _angles(call)
    if step is None:
        return
    for by in (1, -1, 2, -2):
        yield Variant(
            f"the port's positions begin {by:+d} off",
            lambda *args, b=by, **kw: call.run(*args, **kw) + b * step,
        )
    for t in call.solve(lambda t: call.out * t, 1e-3, 1e3, grid=(2 * math.pi, 0.5, 2.0)):
        yield Variant(
            f"the port's positions are scaled by {t:g}",
            lambda *args, t=t, **kw: call.run(*args, **kw) * t,
        )


@cause("rope_base", on=("pow", "reciprocal", "exp"))
def rope_frequencies(call: Call) -> Iterator[Variant]:
    """The port's rotary frequencies have another base."""
    out = call.out
    if out.ndim != 1 or out.numel() < 2 or not bool((out > 0).all()):
        return
    logs = out.log()
    steps = logs[1:] - logs[:-1]
    if (
        not torch.allclose(steps, steps[:1].expand_as(steps), rtol=1e-9, atol=1e-12)
        or float(steps[0]) == 0
    ):
        return
    base = math.exp(abs(float(steps[0])) * out.numel())
    for new in BASES:
        if abs(new - base) > 1e-3 * base:
            power = math.log(new) / math.log(base)
            yield Variant(
                f"the port's rotary base is {new:g}; the reference's {base:.6g}",
                lambda *args, p=power, **kw: call.run(*args, **kw) ** p,
            )
