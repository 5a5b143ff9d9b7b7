"""Attention: scale, masks, softmax, the order of q, k, v and heads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch

from twinvit.port.call import Call
from twinvit.port.causes import Variant, cause
from twinvit.port.ops import SPLITS


def scales(call: Call, present: float) -> list[float]:
    """Scales that people write: none, by another dimension, squared, inverted."""
    found = {
        1.0: None,
        present**2: None,
        math.sqrt(abs(present)): None,
        1 / present if present else 1.0: None,
    }
    for n in call.widths():
        found.update({n**-0.5: None, 1 / n: None, n**-0.25: None, n**0.5: None})
    return [s for s in found if abs(s - present) > 1e-9 * abs(present)]


@cause("attention_scale", on=("mul", "div"))
def attention_scale(call: Call) -> Iterator[Variant]:
    """The port's attention has no scale, or one of another dimension."""
    if not call.leads_to("softmax", "_safe_softmax", steps=9):
        return
    scalar = call.argument(1)
    if isinstance(scalar, torch.Tensor) and scalar.numel() == 1 and call.fixed(1):
        scalar = float(scalar)
    if (
        not isinstance(scalar, int | float)
        or not isinstance(call.args[0], torch.Tensor)
        or scalar == 0
    ):
        return
    inverse = call.node.name == "div"
    present = 1 / scalar if inverse else float(scalar)
    for t in call.solve(lambda t: call.args[0] * t, 1e-5, 1e4, grid=scales(call, present)):
        yield Variant(
            f"the port scales attention by {_nice(t)}; the reference by {_nice(present)}",
            lambda x, *_, t=t, **__: x * t,
            solved=(t, present),
        )


@cause("attention_scale", on="softmax")
def attention_scale_elsewhere(call: Call) -> Iterator[Variant]:
    """The port scales attention where the reference does not."""
    for t in call.solve(lambda t: torch.softmax(call.args[0] * t, call.args[1]), 1e-3, 1e3):
        yield Variant(
            f"the port scales the attention's logits by {_nice(t)} more than the reference",
            call.with_args(a0=lambda x, t=t: x * t),
            solved=(t, 1.0),
        )


def _nice(t: float) -> str:
    """A scale as people write it, 64 ** -0.5."""
    if t > 0 and float(f"{t:.3g}") != t:
        for power in (-0.5, -1, 0.5):
            n = t ** (1 / power)
            if 1.5 < n < 1e6 and abs(n - round(n)) < 1e-6 * n:
                return f"{round(n)} ** {power:g}"
    return f"{t:g}"


@cause("softmax_axis", on=("softmax", "log_softmax", "_safe_softmax"))
def softmax_axis(call: Call) -> Iterator[Variant]:
    """The port's softmax is over another axis."""
    dim = call.args[1] % call.args[0].ndim
    for axis in range(call.args[0].ndim):
        if axis != dim:
            yield Variant(
                f"the port's softmax is over axis {axis}; the reference's over {dim}",
                call.with_args(a1=axis),
            )


@cause("softmax_missing", on=("softmax", "log_softmax"))
def softmax_missing(call: Call) -> Iterator[Variant]:
    """The port lacks a softmax, or has sigmoid or the logarithm in its place."""
    yield Variant("the port lacks this softmax", lambda x, *_, **__: x.clone())
    yield Variant("the port takes the sigmoid for softmax", lambda x, *_, **__: torch.sigmoid(x))
    yield Variant(
        "the port takes log softmax for softmax", lambda x, d, *_, **__: torch.log_softmax(x, d)
    )
    yield Variant(
        "the port takes softmax for log softmax", lambda x, d, *_, **__: torch.softmax(x, d)
    )
    yield Variant(
        "the port's softmax has one more term 1 in its denominator",
        lambda x, d, *_, **__: torch.softmax(
            torch.cat([x, torch.zeros_like(x.narrow(d, 0, 1))], d), d
        ).narrow(d, 0, x.shape[d]),
    )


VALUES = (
    -math.inf,
    -1e-9,
    1e9,
    1e-9,
    -1e9,
    -1e4,
    -1e10,
    -1e30,
    -3.4028234663852886e38,
    -1.7976931348623157e308,
    -65504.0,
    -100.0,
    -1e5,
    -1e6,
    0.0,
    -1.0,
)


@cause("mask_value", on=("masked_fill", "where"))
def mask_value(call: Call) -> Iterator[Variant]:
    """The port masks with another value (-inf or finite), or inverted."""
    if call.node.name == "masked_fill":
        for value in VALUES:
            yield Variant(
                f"the port masks with {value:g}; the reference with {float(call.args[2]):g}",
                lambda x, m, *_, v=value, **__: x.masked_fill(m, v),
            )
        yield Variant(
            "the port masks what the reference keeps", lambda x, m, v, **__: x.masked_fill(~m, v)
        )
        return
    if len(call.args) < 3:
        return
    for value in VALUES:
        yield Variant(
            f"the port masks with {value:g}",
            lambda m, a, b, v=value, **__: torch.where(m, a, torch.full_like(call.out, v)),
        )
        yield Variant(
            f"the port masks with {value:g}",
            lambda m, a, b, v=value, **__: torch.where(m, torch.full_like(call.out, v), b),
        )
    yield Variant(
        "the port masks what the reference keeps", lambda m, a, b, **__: torch.where(~m, a, b)
    )


@cause("mask_value", on=("softmax", "_safe_softmax"))
def masked_rows(call: Call) -> Iterator[Variant]:
    """The port gives rows without any key other weights (uniform, zero, nan)."""
    x = call.args[0]
    if not bool(torch.isinf(x).all(-1).any()):
        return
    yield Variant(
        "the port's fully masked rows are uniform",
        lambda x, d, *_, **__: torch.softmax(x.clamp(min=-1e30), d),
    )
    yield Variant(
        "the port's fully masked rows are zero",
        lambda x, d, *_, **__: torch.nan_to_num(torch.softmax(x, d), nan=0.0),
    )


def _zeroes_rows(call: Call) -> bool:
    """True if an operation gives rows of a softmax that have no key (NaN, or uniform where the mask
    is finite) the weight zero."""
    mask, producer = call.argument(1), call.graph.producer[call.root(call.ref(0)) or 0]
    if call.node.name != "masked_fill" or producer is None or call.argument(2) != 0:
        return False
    if call.graph.nodes[producer].name not in ("softmax", "_safe_softmax"):
        return False
    if not isinstance(mask, torch.Tensor) or mask.ndim < 1 or mask.shape[-1] != 1:
        return False
    weights = call.args[0]
    rows = weights[mask.expand(*weights.shape[:-1], 1)[..., 0]]
    even = rows.isnan() | ((rows - rows[..., :1]).abs() <= 1e-12)
    return weights.shape[-1] > 1 and rows.numel() > 0 and bool(even.all())


@cause("mask_value", on="masked_fill")
def rows_without_keys(call: Call) -> Iterator[Variant]:
    """The port does not give rows without any key the weight zero."""
    if _zeroes_rows(call):
        yield Variant(
            "the port leaves the weights of rows without any key as its softmax makes them; the "
            "reference's are zero",
            lambda x, *_, **__: x.clone(),
        )


def _is_mask(call: Call, position: int) -> bool:
    """True for an added term that is no trained bias: it depends on no parameter and no input."""
    return isinstance(call.argument(position), torch.Tensor) and call.fixed(position)


@cause("mask_missing", on=("masked_fill", "where", "add"))
def mask_missing(call: Call) -> Iterator[Variant]:
    """The port lacks a mask."""
    if call.node.name == "add":
        for position in (0, 1):
            if _is_mask(call, position) and call.leads_to("softmax", steps=4):
                yield Variant(
                    "the port does not add this mask",
                    lambda *args, p=position, **_: args[1 - p].expand(call.out.shape).clone(),
                )
        return
    if _zeroes_rows(call):
        return
    if call.node.name == "masked_fill":
        yield Variant(
            "the port lacks this mask", lambda x, *_, **__: x.expand(call.out.shape).clone()
        )
    else:
        yield Variant(
            "the port lacks this mask", lambda m, a, b, **_: a.expand(call.out.shape).clone()
        )
        yield Variant(
            "the port lacks this mask", lambda m, a, b, **_: b.expand(call.out.shape).clone()
        )


def _shift(mask: torch.Tensor, axis: int, by: int) -> torch.Tensor:
    """A mask moved along an axis, its edge repeated."""
    n = mask.shape[axis]
    index = (torch.arange(n) - by).clamp(0, n - 1)
    return mask.index_select(axis, index)


@cause("mask_offset", on=("masked_fill", "where", "add"))
def mask_offset(call: Call) -> Iterator[Variant]:
    """The port's causal mask is off by one, or its padding is on the other side."""
    name = call.node.name
    position = {"masked_fill": 1, "where": 0}.get(name)
    positions = (
        [position]
        if position is not None
        else [p for p in (0, 1) if _is_mask(call, p) and call.leads_to("softmax", steps=4)]
    )
    for p in positions:
        mask = call.argument(p)
        if not isinstance(mask, torch.Tensor) or mask.ndim < 2 or mask.shape[-1] < 2:
            continue
        for by in (1, -1, 2, -2):
            yield Variant(
                f"the port's mask is {abs(by)} {'later' if by > 0 else 'earlier'} along the keys",
                call.with_args(**{f"a{p}": lambda m, b=by: _shift(m, -1 % m.ndim, b)}),
            )
        yield Variant(
            "the port's mask is reversed along the keys (padding on the other side)",
            call.with_args(**{f"a{p}": lambda m: m.flip(-1)}),
        )
        if mask.shape[-1] == mask.shape[-2]:
            yield Variant(
                "the port's mask is transposed",
                call.with_args(**{f"a{p}": lambda m: m.transpose(-1, -2)}),
            )
            if mask.dtype == torch.bool:
                n = mask.shape[-1]
                for diagonal in (0, 1, -1, 2):
                    upper = torch.ones(n, n, dtype=torch.bool).triu(diagonal)
                    yield Variant(
                        f"the port masks from diagonal {diagonal} on",
                        call.with_args(**{f"a{p}": lambda m, u=upper: u.expand(m.shape)}),
                    )
                    yield Variant(
                        f"the port keeps diagonals up to {diagonal - 1}",
                        call.with_args(**{f"a{p}": lambda m, u=upper: ~u.expand(m.shape)}),
                    )


@cause("mask_offset", on=("masked_fill", "where", "add"))
def mask_band(call: Call) -> Iterator[Variant]:
    """The port's sliding window is wider or narrower than the reference's."""
    if not call.leads_to("softmax", steps=4):
        return
    hides = call.node.name == "masked_fill"  # true is hidden
    for p in {"add": (0, 1), "masked_fill": (1,), "where": (0,)}[call.node.name]:
        mask, ref = call.argument(p), call.ref(p)
        if not isinstance(mask, torch.Tensor) or mask.ndim < 2 or min(mask.shape[-2:]) < 3:
            continue
        low, high = mask.min(), mask.max()
        two = bool(low != high) and bool(((mask == low) | (mask == high)).all())
        if ref is None or ref in call.graph.input_dependent() or not two:
            continue
        kept = mask == (low if hides else high)
        rows, columns = mask.shape[-2:]
        diagonal = torch.arange(columns)[None] - torch.arange(rows)[:, None]
        seen = diagonal[kept.reshape(-1, rows, columns)[0]]
        first, last = int(seen.min()), int(seen.max())
        if first == 1 - rows or not (kept == ((diagonal >= first) & (diagonal <= last))).all():
            continue
        for start in (first - 1, first + 1, first - 2, 1 - rows):
            band = (diagonal >= start) & (diagonal <= last)
            new = torch.where(~band if hides else band, high, low).expand(mask.shape)
            told = f"holds {1 - start} positions" if start > 1 - rows else "is missing"
            text = f"the port's sliding window {told}; the reference's holds {1 - first}"
            yield Variant(text, call.with_args(**{f"a{p}": lambda m, new=new: new}))


@cause("mask_offset", on=("tril", "triu"))
def triangle(call: Call) -> Iterator[Variant]:
    """The port's triangular mask begins at another diagonal."""
    own = call.argument(1, 0)
    for d in (-2, -1, 0, 1, 2):
        if d != own:
            yield Variant(
                f"the port's triangle begins at diagonal {d}; the reference's at {own}",
                call.with_args(a1=d),
            )


@cause("mask_offset", on="softmax")
def causal_added(call: Call) -> Iterator[Variant]:
    """The port masks causally where the reference does not."""
    n, m = call.out.shape[-2:] if call.out.ndim >= 2 else (0, 0)
    if n != m or n < 2 or not call.comes_from("bmm", "baddbmm", "matmul", steps=6):
        return
    for d in (1, 0):
        later = torch.ones(n, n, dtype=torch.bool).triu(d)
        later[:, 0] = False
        yield Variant(
            "the port masks causally; the reference does not",
            call.with_args(a0=lambda x, m=later: x.masked_fill(m, -math.inf)),
        )


def _permuted(n: int) -> list[tuple[int, ...]]:
    return [p for p in itertools.permutations(range(n)) if p != tuple(range(n))]


@cause("qkv_order", on=SPLITS)
def qkv_order(call: Call) -> Iterator[Variant]:
    """The port takes q, k and v in another order, or interleaves them with the heads otherwise."""
    outs = [o for o in call.outs if o is not None]
    if (
        not 2 <= len(outs) <= 4
        or len({o.shape for o in outs}) != 1
        or _gates(call)
        or not call.leads_to("softmax", steps=24, before=("addmm", "mm", "convolution"))
    ):
        return
    names = "qkv" if len(outs) == 3 else "abcd"
    for order in _permuted(len(outs)):
        yield Variant(
            f"the port takes the parts in the order {', '.join(names[i] for i in order)}; "
            f"the reference {', '.join(names[: len(outs)])}",
            lambda *args, o=order, **kw: [call.run(*args, **kw)[i] for i in o],
        )
    if call.node.name != "unbind":
        axis = int(call.argument(2, call.kwargs.get("dim", 0)) or 0) % call.args[0].ndim
        n = len(outs)
        yield Variant(
            "the port takes every n-th number for a part; the reference takes neighbouring blocks",
            lambda x, *args, **kw: [
                t.movedim(-1, axis) for t in x.movedim(axis, -1).unflatten(-1, (-1, n)).unbind(-1)
            ],
        )
        for heads in _heads(call, axis, n):
            yield Variant(
                "the port's packed product "
                "holds q, k, v of each of "
                f"{heads} heads together; "
                "the reference all of q first",
                lambda x, *args, h=heads, **kw: [
                    t.flatten(-2).movedim(-1, axis)
                    for t in x.movedim(axis, -1).unflatten(-1, (h, n, -1)).unbind(-2)
                ],
            )


def _heads(call: Call, axis: int, n: int) -> list[int]:
    width = call.args[0].shape[axis] // n
    return [h for h in (2, 3, 4, 6, 8, 12, 16, 20, 24, 32) if width % h == 0 and h < width]


def _gates(call: Call) -> bool:
    users = [
        call.graph.nodes[u].name
        for o in call.node.outs
        if o is not None
        for u in call.graph.consumers.get(o, ())
    ]
    return "sigmoid" in users


@cause("qkv_order", on="select")
def qkv_select(call: Call) -> Iterator[Variant]:
    """The port takes q, k and v in another order where the reference indexes them one by one."""
    source = call.ref(0)
    dim, index = call.args[1], call.args[2]
    size = call.args[0].shape[dim]
    if source is None or size not in (2, 3):
        return
    siblings = {
        n.args[2]: n
        for n in (call.graph.nodes[u] for u in call.graph.consumers[source])
        if n.name == "select" and n.args[1] == dim
    }
    if len(siblings) != size or index != min(siblings):
        return
    for order in _permuted(size):
        edits = {siblings[i]: order[k] for k, i in enumerate(sorted(siblings))}

        def taking(i: int) -> Any:
            return lambda x, d, *_, **__: x.select(d, i)

        yield Variant(
            f"the port takes q, k, v in the order {', '.join('qkv'[i] for i in order)}",
            taking(order[0]),
            also=tuple(
                (n.index, taking(i)) for n, i in edits.items() if n.index != call.node.index
            ),
        )


@cause("qkv_order", on=("bmm", "baddbmm"))
def queries_by_keys(call: Call) -> Iterator[Variant]:
    """The port takes queries for keys."""
    if call.out.shape[-1] == call.out.shape[-2] and call.leads_to("softmax", steps=6):
        yield Variant(
            "the port takes queries for keys and keys for queries: its scores are transposed",
            lambda *args, **kw: call.run(*args, **kw).transpose(-1, -2),
        )


@cause("operand_transposed", on="bmm")
def operand_transposed(call: Call) -> Iterator[Variant]:
    """The port multiplies by a transposed matrix (attention weights the wrong way round)."""
    a, b = call.args[0], call.args[1]
    if a.shape[-1] == a.shape[-2]:
        yield Variant(
            "the port multiplies by the transposed weights",
            lambda a, b, **_: a.transpose(-1, -2) @ b,
        )
    if b.shape[-1] == b.shape[-2]:
        yield Variant(
            "the port multiplies by the transposed matrix",
            lambda a, b, **_: a @ b.transpose(-1, -2),
        )
