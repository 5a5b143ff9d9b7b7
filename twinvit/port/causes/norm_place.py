"""Where a block normalises: before what the block computes, on its result, or on the
sum with the residual."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from twinvit.port.call import Call
from twinvit.port.causes import Variant, cause
from twinvit.port.ops import ROW_NORMS
from twinvit.port.record.graph import Graph, Node, Ref

AHEAD = 60  # operations of a block, at most


@dataclass
class Norm:
    """A normalisation: what it takes, its parameters, its last operation and its result."""

    value: int
    params: tuple[int, ...]
    end: Node
    apply: Callable[..., torch.Tensor]

    @property
    def out(self) -> int:
        return self.end.outs[0] or 0


def _norm_of(graph: Graph, node: Node) -> Norm | None:
    """The normalisation that an operation is, or that its inverse root belongs to."""
    if node.name in ROW_NORMS:
        op, rest, kwargs = node.op, node.args[1:], node.kwargs
        refs = tuple(a.id for a in rest if isinstance(a, Ref))

        def apply(x: torch.Tensor, *params: torch.Tensor) -> torch.Tensor:
            given = iter(params)
            args = [next(given) if isinstance(a, Ref) else a for a in rest]
            out = op(x, *args, **kwargs)
            return out if isinstance(out, torch.Tensor) else out[0]

        return Norm(node.refs[0], refs, node, apply)
    return _written_out(graph, node) if node.name == "rsqrt" else None


def _written_out(graph: Graph, root: Node) -> Norm | None:
    """RMSNorm as it is written out, x * rsqrt(mean(x ** 2) + eps) * weight."""
    add = _before(graph, root, "add")
    mean = _before(graph, add, "mean")
    square = _before(graph, mean, "pow", "mul")
    if add is None or mean is None or square is None or root.outs[0] is None:
        return None
    eps = graph.arguments(add)[0][1]
    x = square.refs[0]
    if not isinstance(eps, int | float) or any(r != x for r in square.refs):
        return None
    end, params = _after(graph, root.outs[0], "mul"), ()
    if end is None or x not in end.refs:
        return None
    scaled = _after(graph, end.outs[0] or 0, "mul")
    if scaled is not None:
        own = [r for r in scaled.refs if graph.source[r].startswith("param:")]
        if len(own) == 1 and len(scaled.refs) == 2:
            end, params = scaled, (own[0],)  # type: ignore[assignment]

    def apply(x: torch.Tensor, *params: torch.Tensor) -> torch.Tensor:
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
        return y * params[0] if params else y

    return Norm(x, params, end, apply)


def _before(graph: Graph, node: Node | None, *names: str) -> Node | None:
    producer = graph.producer[node.refs[0]] if node is not None and node.refs else None
    found = graph.nodes[producer] if producer is not None else None
    return found if found is not None and found.name in names else None


def _after(graph: Graph, value: int, name: str) -> Node | None:
    users = graph.consumers.get(value, ())
    found = graph.nodes[users[0]] if len(users) == 1 else None
    return found if found is not None and found.name == name else None


def _sum_after(graph: Graph, value: int, start: int, source: int) -> tuple[Node, int] | None:
    """The first sum of a value with one that depends on `source`, and that one, of the operations
    from `start` on."""
    reached = {source}
    for node in graph.nodes[start : start + AHEAD]:
        if node.name == "add" and len(node.refs) == 2 and value in node.refs:
            branch = next((r for r in node.refs if r != value), None)
            if branch in reached and branch is not None:
                return node, branch
        if any(r in reached for r in node.refs):
            reached.update(o for o in node.outs if o is not None)
    return None


def _sum_before(graph: Graph, norm: Norm) -> tuple[Node, int, int] | None:
    """The sum that a normalisation takes: the operation, the residual and the branch, which depends
    on it."""
    producer = graph.producer[norm.value]
    node = graph.nodes[producer] if producer is not None else None
    if node is None or node.name != "add" or len(set(node.refs)) != 2:
        return None
    for residual, branch in (node.refs, node.refs[::-1]):
        if residual in graph.ancestors(branch):
            return node, residual, branch
    return None


def _taking(graph: Graph, node: Node, value: int, norm: Norm) -> Callable[..., Any]:
    """An operation that takes a value normalised: of its own operands and the parameters."""
    places = {r: k for k, r in enumerate(node.refs)}

    def fn(*given: torch.Tensor) -> Any:
        own, params = list(given[: len(node.refs)]), given[len(node.refs) :]
        own[places[value]] = norm.apply(own[places[value]], *params)

        def put(a: Any) -> Any:
            if isinstance(a, Ref):
                return own[places[a.id]]
            return type(a)(map(put, a)) if isinstance(a, list | tuple) else a

        return node.op(*(put(a) for a in node.args), **{k: put(a) for k, a in node.kwargs.items()})

    return fn


def _same(x: torch.Tensor, *_: Any) -> torch.Tensor:
    return x.clone()


BEFORE = "what goes into the block"
SUM = "the sum with the residual"
BRANCH = "the block's result"
_Also = list[tuple[int, Callable[..., Any], tuple[int, ...]]]


def _moved(norm: Norm, theirs: str, mine: str, also: _Also) -> Variant:
    """The normalisation left out where it is, and made elsewhere."""
    return Variant(
        f"the port normalises {theirs}; the reference {mine}",
        _same,
        refs=(norm.value,),
        node=norm.end.index,
        also=tuple((index, fn) for index, fn, _ in also),
        also_refs=tuple(refs for _, _, refs in also),
        key=f"{theirs} for {mine}",
    )


def _on_sum(norm: Norm, node: Node) -> _Also:
    op, rest, kwargs = node.op, node.args[2:], node.kwargs
    return [(
        node.index,
        lambda a, b, *params: norm.apply(op(a, b, *rest, **kwargs), *params),
        (*node.refs, *norm.params),
    )]  # fmt: skip


def _on_branch(norm: Norm, node: Node, residual: int, branch: int) -> _Also:
    return [(
        node.index,
        lambda a, b, *params: a + norm.apply(b, *params),
        (residual, branch, *norm.params),
    )]  # fmt: skip


@cause("norm_order", on=(*ROW_NORMS, "rsqrt"))
def norm_order(call: Call) -> Iterator[Variant]:
    """The port normalises at another place of a residual block (before it, its result, or the
    sum)."""
    graph = call.graph
    norm = _norm_of(graph, call.node)
    if norm is None:
        return
    after = _sum_after(graph, norm.value, norm.end.index + 1, norm.out)
    if after is not None:
        node, branch = after
        yield _moved(norm, SUM, BEFORE, _on_sum(norm, node))
        yield _moved(norm, BRANCH, BEFORE, _on_branch(norm, node, norm.value, branch))
    before = _sum_before(graph, norm)
    if before is not None:
        yield _moved(norm, BRANCH, SUM, _on_branch(norm, *before))
    result = _after(graph, norm.out, "add")
    if result is not None and len(set(result.refs)) == 2:
        residual = next(r for r in result.refs if r != norm.out)
        if residual in graph.ancestors(norm.value) and residual != norm.value:
            yield _moved(norm, SUM, BRANCH, _on_sum(norm, result))


@cause("norm_order", on="add")
def norm_of_branch(call: Call) -> Iterator[Variant]:
    """The port normalises a block's result where the reference normalises the sum with the
    residual."""
    graph = call.graph
    norms = [_norm_at(graph, u) for u in graph.consumers.get(call.node.outs[0] or 0, ())]
    norm = next((n for n in norms if n is not None), None)
    before = None if norm is None else _sum_before(graph, norm)
    if norm is not None and before is not None and before[0] is call.node:
        yield _moved(norm, BRANCH, SUM, _on_branch(norm, *before))


@cause("norm_missing", on="rsqrt")
def written_norm_missing(call: Call) -> Iterator[Variant]:
    """The port lacks a normalisation that the reference writes out."""
    norm = _norm_of(call.graph, call.node)
    if norm is not None:
        yield Variant("the port lacks this RMSNorm", _same, refs=(norm.value,), node=norm.end.index)


@cause("norm_order", on=("mm", "addmm", "convolution"))
def norm_first(call: Call) -> Iterator[Variant]:
    """The port normalises what goes into a block where the reference normalises its result, or the
    sum with the residual."""
    graph = call.graph
    data = 1 if call.node.name == "addmm" else 0
    value, out = call.root(call.ref(data)), call.node.outs[0]
    if value is None or out is None or value not in graph.input_dependent():
        return
    found = _sum_after(graph, value, call.node.index + 1, out)
    if found is not None:
        node = found[0]
        norms = [_norm_at(graph, u) for u in graph.consumers.get(node.outs[0] or 0, ())]
        yield from _before_block(graph, value, next((n for n in norms if n), None), SUM, node)
    for node in graph.nodes[call.node.index + 1 : call.node.index + AHEAD]:
        norm = _norm_of(graph, node)
        last = None if norm is None else _after(graph, norm.out, "add")
        if norm is not None and last is not None and value in last.refs:
            yield from _before_block(graph, value, norm, BRANCH, last)
            return


def _norm_at(graph: Graph, index: int) -> Norm | None:
    """The normalisation that begins at an operation: itself, or a square, a mean and a root."""
    node = graph.nodes[index]
    if node.name in ROW_NORMS:
        return _norm_of(graph, node)
    for name in ("mean", "add", "rsqrt"):
        found = _after(graph, node.outs[0] or 0, name)
        if found is None:
            return None
        node = found
    return _norm_of(graph, node)


def _before_block(
    graph: Graph, value: int, norm: Norm | None, mine: str, total: Node
) -> Iterator[Variant]:
    """The normalisation made on what a block takes."""
    if norm is None or norm.value == value:
        return
    also: _Also = []
    for index in graph.consumers.get(value, ()):
        node = graph.nodes[index]
        if node is total or node.index > norm.end.index or len(set(node.refs)) != len(node.refs):
            continue
        also.append((index, _taking(graph, node, value, norm), (*node.refs, *norm.params)))
    if also:
        yield _moved(norm, BEFORE, mine, also)
