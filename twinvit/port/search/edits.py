"""From a cause's variant to edits of the reference's graph."""

from __future__ import annotations

from collections.abc import Callable

import torch

from twinvit.port.call import flat_tensors, results
from twinvit.port.causes import Variant
from twinvit.port.record.graph import Edit, Graph, Node


def edits_of(graph: Graph, site: Node, variant: Variant) -> dict[int, Edit]:
    """`{index of an operation: its edit}` of a variant that a cause yielded at `site`."""
    edits: dict[int, Edit] = {}
    first = variant.node if variant.node is not None else site.index
    refs = variant.also_refs or (None,) * len(variant.also)
    for (index, fn), own in zip(
        ((first, variant.fn), *variant.also), (variant.refs, *refs), strict=True
    ):
        edits[index] = Edit(checked(graph, graph.nodes[index], fn, variant.reshapes), own)
    return edits


def checked(
    graph: Graph, node: Node, fn: Callable[..., object], reshapes: bool = False
) -> Callable[..., object]:
    """The variant's function as an edit of the operation: results that it leaves out are taken from
    the operation. The edit raises ValueError for a result of another shape."""

    own = [None if o is None else graph.values[o] for o in node.outs]

    def call(*args: object, **kwargs: object) -> object:
        out = fn(*args, **kwargs)
        given = flat_tensors(out)
        if len(given) != len(node.outs):
            out = results(out, node, own)
            given = flat_tensors(out)
        for tensor, value in zip(given, own):
            if (
                value is not None
                and not reshapes
                and (tensor is None or tensor.shape != value.shape)
            ):
                raise ValueError(f"{node.name}: the variant's result has another shape")
        return out

    return call


def nudged(node: Node, much: float = 1e-5) -> Callable[..., object]:
    """The operation with its floating-point results up to this much larger, relatively."""
    op = node.op
    generator = torch.Generator().manual_seed(node.index)

    def nudge(x: object) -> object:
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            return x
        return x * (1 + much * torch.rand(x.shape, generator=generator, dtype=x.dtype))

    def fn(*args: object, **kwargs: object) -> object:
        out = op(*args, **kwargs)
        if isinstance(out, torch.Tensor):
            return nudge(out)
        return tuple(nudge(t) for t in flat_tensors(out))

    return fn
