"""Orders: of tokens, of flattened axes, of concatenated parts, of positions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from twinvit.port.call import Call
from twinvit.port.causes import Variant, cause
from twinvit.port.causes.heads import repeated_axis
from twinvit.port.ops import VIEWS


def groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Which axes of a shape a reshape merges into which axes of the other."""
    result: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) and j < len(after):
        a, b = [i], [j]
        x, y = before[i], after[j]
        while x != y:
            if x < y:
                i += 1
                if i >= len(before):
                    return result
                a.append(i)
                x *= before[i]
            else:
                j += 1
                if j >= len(after):
                    return result
                b.append(j)
                y *= after[j]
        result.append((a, b))
        i, j = i + 1, j + 1
    return result


def _kind(call: Call, merged: Sequence[int]) -> str:
    """Which cause a regrouping is: of heads, of tokens, or of what is flattened for a linear
    layer."""
    if repeated_axis(call) is not None:
        return "kv_repeat"
    if call.leads_to("softmax", steps=14) and call.args[0].ndim >= 3 and call.out.ndim >= 4:
        return "qkv_order"
    if call.comes_from("softmax", steps=12) and call.args[0].ndim >= 4:
        return "qkv_order"
    if call.args[0].ndim >= 4 and call.comes_from("expand", "repeat", steps=2):
        return "qkv_order"
    if call.out.ndim == 3 and len(merged) == 2 and call.args[0].ndim == 4:
        return "token_order"
    return "flatten_order"


def _regroupings(call: Call, kind: str) -> Iterator[Variant]:
    x, out = call.args[0], call.out
    if x.numel() != out.numel() or not out.is_floating_point():
        return
    for a, b in groups(list(x.shape), list(out.shape)):
        many_in, many_out = [i for i in a if x.shape[i] > 1], [j for j in b if out.shape[j] > 1]
        if len(many_in) >= 2 and len(many_in) <= 4 and _kind(call, many_in) == kind:
            for order in itertools.permutations(many_in):
                if list(order) == many_in:
                    continue
                full = list(range(x.ndim))
                for place, axis in zip(many_in, order):
                    full[place] = axis
                yield Variant(
                    f"the port merges axes {tuple(many_in)} in the order {order}",
                    lambda x, *_, f=tuple(full), s=tuple(out.shape), **__: x.permute(f).reshape(s),
                    key=f"merge {len(many_in)} {[many_in.index(o) for o in order]}",
                )
        if len(many_out) >= 2 and len(many_out) <= 4 and _kind(call, many_out) == kind:
            for order in itertools.permutations(many_out):
                if list(order) == many_out:
                    continue
                shape = list(out.shape)
                back = list(range(out.ndim))
                for place, axis in zip(many_out, order):
                    shape[place] = out.shape[axis]
                    back[axis] = place
                yield Variant(
                    f"the port splits the axis into {tuple(out.shape[o] for o in order)}; "
                    f"the reference into {tuple(out.shape[o] for o in many_out)}",
                    lambda x, *_, s=tuple(shape), b=tuple(back), **__: x.reshape(s).permute(b),
                    key=f"split {[many_out.index(o) for o in order]}",
                )


@cause("qkv_order", on=VIEWS)
def head_order(call: Call) -> Iterator[Variant]:
    """The port splits or merges heads in another order."""
    yield from _regroupings(call, "qkv_order")


@cause("token_order", on=VIEWS)
def token_order(call: Call) -> Iterator[Variant]:
    """The port's tokens (patches) come in another order."""
    yield from _regroupings(call, "token_order")


@cause("flatten_order", on=VIEWS)
def flatten_order(call: Call) -> Iterator[Variant]:
    """The port flattens axes in another order (NHWC for NCHW)."""
    yield from _regroupings(call, "flatten_order")


@cause("flatten_order", on=("permute", "transpose", "t"))
def transpose_missing(call: Call) -> Iterator[Variant]:
    """The port reshapes where the reference transposes."""
    x, out = call.args[0], call.out
    if x.ndim < 2 or not x.is_floating_point() or call.parameter(0) is not None:
        return
    yield Variant(
        "the port reshapes where the reference transposes",
        lambda x, *_, s=tuple(out.shape), **__: x.reshape(s),
    )
    if out.ndim <= 5:
        for order in itertools.permutations(range(x.ndim)):
            moved = x.permute(order)
            if moved.shape == out.shape and moved.stride() != out.stride():
                yield Variant(
                    f"the port's axes are in the order {order}",
                    lambda x, *_, o=order, **__: x.permute(o),
                )


@cause("token_order", on="cat")
def class_token(call: Call) -> Iterator[Variant]:
    """The port puts the class token, or another part, elsewhere."""
    parts = call.args[0]
    if len(parts) < 2 or len(parts) > 4 or call.out.ndim < 3:
        return
    yield from _reordered(call, parts)


@cause("concat_order", on="cat")
def concat_order(call: Call) -> Iterator[Variant]:
    """The port concatenates in another order."""
    parts = call.args[0]
    if len(parts) < 2 or len(parts) > 4 or call.out.ndim >= 3:
        return
    yield from _reordered(call, parts)


def _reordered(call: Call, parts: Sequence[torch.Tensor]) -> Iterator[Variant]:
    n = len(parts)
    for order in itertools.permutations(range(n)):
        if order != tuple(range(n)):
            yield Variant(
                f"the port concatenates its parts in the order {order}",
                lambda ps, *a, o=order, **k: call.run([ps[i] for i in o], *a, **k),
            )


@cause("token_order", on=("flip", "roll", "slice", "select"))
def reversed_tokens(call: Call) -> Iterator[Variant]:
    """The port's tokens are reversed, or the window is moved the other way."""
    name = call.node.name
    if call.comes_from("view_as_real", steps=1):  # a real or an imaginary part
        return
    if name == "flip":
        yield Variant("the port does not reverse this axis", lambda x, *_, **__: x.clone())
    elif name == "roll":
        yield Variant(
            "the port rolls the other way",
            call.with_args(a1=lambda s: [-i for i in s] if isinstance(s, list | tuple) else -s),
        )
        yield Variant("the port does not roll", lambda x, *_, **__: x.clone())
    elif name == "select" and call.out.is_floating_point() and call.args[0].ndim >= 2:
        dim, index = call.args[1], call.args[2]
        size = call.args[0].shape[dim]
        for other in dict.fromkeys((size - 1, 0, 1, index + 1, index - 1)):
            if 0 <= other < size and other != index % size:
                yield Variant(
                    f"the port takes position {other}; the reference position {index}",
                    call.with_args(a2=other),
                )
    elif name == "slice" and call.out.is_floating_point():
        yield from _slices(call)


def _slices(call: Call) -> Iterator[Variant]:
    x = call.args[0]
    dim, start, end = call.argument(1, 0), call.argument(2) or 0, call.argument(3)
    size = x.shape[dim]
    end = size if end is None or end > size else end
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    if end - start >= size or call.argument(4, 1) != 1:
        return
    for by in (-2, -1, 1, 2):
        if start + by >= 0 and end + by <= size:
            yield Variant(
                f"the port takes positions {start + by} to "
                f"{end + by - 1}; the reference {start} to {end - 1}",
                lambda x, *_, d=dim, s=start + by, n=end - start, **__: x.narrow(d, s, n).clone(),
            )
    other = 0 if start else size - (end - start)
    yield Variant(
        f"the port takes positions {other} to "
        f"{other + end - start - 1}; the reference {start} to {end - 1}",
        lambda x, *_, d=dim, s=other, n=end - start, **__: x.narrow(d, s, n).clone(),
    )


@cause("position_offset", on=("embedding", "index_select", "index"))
def position_offset(call: Call) -> Iterator[Variant]:
    """The port looks its table up at positions that are off by some."""
    place = 2 if call.node.name == "index_select" else 1
    given = call.args[place]
    axis = call.args[1] if place == 2 else 0
    if call.node.name == "index":
        taken = [i for i, rows in enumerate(given) if rows is not None]
        if len(taken) != 1:
            return
        axis = taken[0]
        given = given[axis]
    if given.is_floating_point() or given.dtype == torch.bool:
        return
    size = call.args[0].shape[axis]

    def moved(move: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
        if call.node.name == "index":
            return call.with_args(a1=lambda all_: [r if r is None else move(r) for r in all_])
        return call.with_args(**{f"a{place}": move})

    for by in (1, -1, 2, -2):
        yield Variant(
            f"the port looks this table up {by:+d} rows off",
            moved(lambda rows, by=by: (rows % size + by).clamp(0, size - 1)),  # type: ignore[misc]
        )
        yield Variant(
            f"the port looks this table up {by:+d} rows off, around its end",
            moved(lambda rows, by=by: (rows + by) % size),  # type: ignore[misc]
        )


@cause("position_offset", on="add")
def position_rolled(call: Call) -> Iterator[Variant]:
    """The port adds the positions' embedding to the tokens off by some."""
    for position in (0, 1):
        p = call.argument(position)
        if (
            isinstance(p, torch.Tensor)
            and p.ndim >= 2
            and p.shape[-2] > 2
            and call.ref(position) not in call.graph.input_dependent()
            and p.is_floating_point()
        ):
            for by in (1, -1):
                yield Variant(
                    f"the port's positions are rolled by {by}",
                    call.with_args(**{f"a{position}": lambda t, b=by: t.roll(b, -2)}),
                )
            yield Variant(
                "the port's positions are reversed",
                call.with_args(**{f"a{position}": lambda t: t.flip(-2)}),
            )
            n = int(p.shape[-2] ** 0.5)
            extra = p.shape[-2] - n * n
            if n > 1 and extra in (0, 1, 2, 4, 5):
                yield Variant(
                    "the port's positions run down the columns; the reference's along the rows",
                    call.with_args(
                        **{
                            f"a{position}": lambda t, n=n, e=extra: torch.cat(
                                [
                                    t[..., :e, :],
                                    t[..., e:, :]
                                    .unflatten(-2, (n, n))
                                    .transpose(-3, -2)
                                    .flatten(-3, -2),
                                ],
                                -2,
                            )
                        }
                    ),
                )


@cause("table_order", on="index")
def table_order(call: Call) -> Iterator[Variant]:
    """The port's index into a table (of relative positions) is transposed or reversed."""
    rows = call.args[1]
    first = (
        next((r for r in rows if isinstance(r, torch.Tensor)), None)
        if isinstance(rows, list | tuple)
        else None
    )
    if first is None or first.is_floating_point():
        return

    def changed(fn: Any) -> Any:
        return call.with_args(
            a1=lambda rs: [fn(r) if isinstance(r, torch.Tensor) else r for r in rs]
        )

    yield Variant("the port's index is reversed", changed(lambda r: r.flip(0)))
    if first.ndim == 2 and first.shape[0] == first.shape[1]:
        yield Variant("the port's index is transposed", changed(lambda r: r.t()))
    n = int(round(first.numel() ** 0.5))
    if first.ndim == 1 and n * n == first.numel():
        yield Variant(
            "the port's index is transposed", changed(lambda r: r.reshape(n, n).t().reshape(-1))
        )
