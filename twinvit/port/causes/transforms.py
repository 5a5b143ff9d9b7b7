"""Fourier transforms, pixel shuffles, normalised vectors and weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from twinvit.port.call import Call
from twinvit.port.causes import Variant, cause
from twinvit.port.ops import MOVES
from twinvit.port.record.graph import Graph, Node

COMPLEX = ("view_as_real", "view_as_complex", "select", "slice", "abs", "conj", "_conj", "real")
EPS = (1e-12, 1e-6, 1e-8, 1e-5, 1e-10, 1e-7, 1e-4, 1e-3)
FACTORS = ("1", "1 / sqrt(n)", "1 / n")
"""What a Fourier transform is multiplied by, by ATen's number of its normalisation."""


FFTS = ("_fft_r2c", "_fft_c2c", "_fft_c2r")
BEHIND = ("mm", "addmm", "bmm", "convolution", "mul", "add", "abs", "select", "cat")


def _transform(call: Call) -> Node | None:
    """The Fourier transform that an operation is, or takes the real numbers of."""
    if call.node.name in FFTS:
        return call.node
    graph = call.graph
    for ref in call.node.refs:
        for _ in range(5):
            producer = graph.producer[ref]
            node = graph.nodes[producer] if producer is not None else None
            if node is not None and node.name in FFTS:
                return node
            if node is None or not (node.name in MOVES or node.name in COMPLEX) or not node.refs:
                break
            ref = node.refs[0]
    return None


@cause("fft_norm", on=(*FFTS, *BEHIND))
def fft_norm(call: Call) -> Iterator[Variant]:
    """The port's Fourier transform is normalised otherwise (norm="ortho", "forward")."""
    node = _transform(call)
    if node is None:
        return
    own, op = int(node.args[2]), node.op
    for other in range(3):
        if other != own:
            yield Variant(
                f"the port multiplies this Fourier transform by {FACTORS[other]}; the reference by "
                f"{FACTORS[own]}",
                lambda x, dims, _, *rest, k=other, **kw: op(x, dims, k, *rest, **kw),
                node=node.index,
            )


@cause("pixel_shuffle", on=("pixel_shuffle", "pixel_unshuffle"))
def pixel_shuffle(call: Call) -> Iterator[Variant]:
    """The port's pixel shuffle, or the reverse, takes or gives the channels in another order."""
    x, factor = call.args[0], int(call.args[1])
    shuffles = call.node.name == "pixel_shuffle"
    shuffled = x if shuffles else call.out
    if x.ndim != 4:
        return
    sizes = (shuffled.shape[1] // factor**2, factor, factor)
    names = ("channels", "rows", "columns")
    for order in itertools.permutations(range(3)):
        if order == (0, 1, 2):
            continue
        back = tuple(order.index(i) for i in range(3))
        yield Variant(
            "the port's channels of a pixel shuffle are ordered by "
            f"{', '.join(names[i] for i in order)}; the reference's by {', '.join(names)}",
            _reordered(call, tuple(sizes[i] for i in order), back)
            if shuffles
            else _after(call, sizes, order),
        )


def _channels(x: torch.Tensor, sizes: tuple[int, ...], order: tuple[int, ...]) -> torch.Tensor:
    y = x.reshape(x.shape[0], *sizes, *x.shape[2:])
    return y.permute(0, *(1 + i for i in order), 4, 5).reshape(x.shape)


def _reordered(call: Call, sizes: tuple[int, ...], back: tuple[int, ...]) -> Callable[..., Any]:
    return lambda x, f, *_, **__: call.run(_channels(x, sizes, back), f)


def _after(call: Call, sizes: tuple[int, ...], order: tuple[int, ...]) -> Callable[..., Any]:
    return lambda x, f, *_, **__: _channels(call.run(x, f), sizes, order)


@cause("normalize_eps", on=("clamp_min", "clamp"))
def normalize_eps(call: Call) -> Iterator[Variant]:
    """The port's eps of a vector that is divided by its norm is another one, or stands
    elsewhere."""
    ref, own = call.ref(0), call.argument(1)
    producer = call.graph.producer[ref] if ref is not None else None
    norm = call.graph.nodes[producer] if producer is not None else None
    if norm is None or norm.name not in ("linalg_vector_norm", "norm"):
        return
    if not isinstance(own, int | float) or call.argument(2) is not None:
        return
    mine = f"the reference takes the larger one of the norm and {own:g}"
    ways: tuple[tuple[str, Callable[[torch.Tensor, float], torch.Tensor]], ...] = (
        ("the port takes the larger one of the norm and {}", lambda n, e: n.clamp_min(e)),
        ("the port adds {} to the norm", lambda n, e: n + e),
        ("the port adds {} to the squared norm", lambda n, e: (n * n + e).sqrt()),
    )
    n = call.args[0]
    for text, way in ways:
        for e in call.solve(lambda e, way=way: way(n, e), 1e-14, 10.0, grid=EPS):  # type: ignore[misc]
            if abs(e - own) > 1e-9 * own or way is not ways[0][1]:
                yield Variant(
                    f"{text.format(f'{e:g}')}; {mine}",
                    lambda x, *_, e=e, way=way, **__: way(x, e),
                    solved=(e, float(own)) if way is ways[0][1] else None,
                )
    yield Variant(f"the port has no eps beside the norm; {mine}", lambda x, *_, **__: x.clone())


@cause("norm_missing", on=("clamp_min", "clamp"))
def normalize_missing(call: Call) -> Iterator[Variant]:
    """The port does not divide a vector by its norm."""
    graph, value = call.graph, call.node.outs[0]
    if not call.comes_from("linalg_vector_norm", "norm", steps=1):
        return
    for _ in range(3):
        users = graph.consumers.get(value, ()) if value is not None else ()
        node = graph.nodes[users[0]] if len(users) == 1 else None
        if node is not None and node.name == "div" and node.refs[-1] == value:
            text = "the port does not divide by the norm"
            yield Variant(text, lambda x: x.clone(), refs=(node.refs[0],), node=node.index)
        if node is None or node.name not in MOVES:
            return
        value = node.outs[0]


@cause("weight_norm", on="_weight_norm_interface")
def weight_norm(call: Call) -> Iterator[Variant]:
    """The port does not divide a weight by its norm, does not scale it, or takes the norm over
    other axes (weight normalisation)."""
    axis = int(call.argument(2, 0))
    text = "the reference g * v / |v|"
    yield Variant(f"the port takes v for the weight; {text}", lambda v, *_, **__: v.clone())
    yield Variant(f"the port takes g * v for the weight; {text}", lambda v, g, *_, **__: g * v)
    rest = tuple(a for a in range(call.args[0].ndim) if a != axis)

    def length(v: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
        return v.pow(2).sum(axes, keepdim=True).sqrt()

    yield Variant(
        f"the port takes v / |v| for the weight; {text}", lambda v, *_, **__: v / length(v, rest)
    )
    for axes in ((*range(call.args[0].ndim),), (axis,)):
        yield Variant(
            f"the port's norm of the weight is over axes {axes}; the reference's over {rest}",
            lambda v, g, *_, axes=axes, **__: g * v / length(v, axes),
        )


@cause("weight_norm", on=("mul", "div", "linalg_vector_norm"))
def written_weight_norm(call: Call) -> Iterator[Variant]:
    """The same of a weight normalisation that the reference writes out."""
    found = _normalised_weight(call)
    if found is None:
        return
    v, g, end, axes = found
    text = "the reference g * v / |v|"

    def length(v: torch.Tensor) -> torch.Tensor:
        return v.pow(2).sum(axes, keepdim=True).sqrt()

    ways: tuple[tuple[str, Callable[..., torch.Tensor], tuple[int, ...]], ...] = (
        ("v", lambda v: v.clone(), (v,)),
        ("g * v", lambda v, g: g * v, (v, g)),
        ("v / |v|", lambda v: v / length(v), (v,)),
    )
    for name, fn, refs in ways:
        yield Variant(
            f"the port takes {name} for the weight; {text}", fn, refs=refs, node=end.index
        )


def _normalised_weight(call: Call) -> tuple[int, int, Node, tuple[int, ...]] | None:
    """v and g of g * v / |v|, in either order, the last operation, and the norm's axes; None where
    an operation is no part of it."""
    graph, node = call.graph, call.node
    near = [node, *(graph.nodes[u] for o in node.outs if o is not None
                    for u in graph.consumers.get(o, ()))]  # fmt: skip
    for end in dict.fromkeys(near):
        parts = [_factors(graph, end), *(_factors(graph, n) for n in _makers(graph, end))]
        above = [r for p in parts if p is not None for r in p[0]]
        below = [r for p in parts if p is not None for r in p[1]]
        weights = [r for r in above if graph.source[r].startswith("param:")]
        norm = _made_by(graph, below[0]) if len(below) == 1 else None
        if norm is None or norm.name != "linalg_vector_norm" or norm.refs[0] not in weights:
            continue
        others = [r for r in weights if r != norm.refs[0]]
        shape = graph.values[end.outs[0] or 0].shape
        if len(others) == 1 and shape == graph.values[norm.refs[0]].shape:
            axes = norm.args[2] if len(norm.args) > 2 and norm.args[2] is not None else ()
            every = tuple(range(len(shape)))
            return norm.refs[0], others[0], end, tuple(int(a) for a in axes) or every
    return None


def _made_by(graph: Graph, value: int) -> Node | None:
    producer = graph.producer[value]
    return None if producer is None else graph.nodes[producer]


def _makers(graph: Graph, node: Node) -> list[Node]:
    return [n for r in node.refs if (n := _made_by(graph, r)) is not None]


def _factors(graph: Graph, node: Node) -> tuple[list[int], list[int]] | None:
    """What a product or quotient multiplies and divides by."""
    if node.name not in ("mul", "div") or len(node.refs) != 2:
        return None
    return (list(node.refs), []) if node.name == "mul" else ([node.refs[0]], [node.refs[1]])
