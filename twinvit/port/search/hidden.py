"""Values of the reference that nothing found depends on: the outputs do not show them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from twinvit.port.index import countable
from twinvit.port.ops import DRAWS, PRODUCTS, STEPS, UNTRACKED, ZEROING
from twinvit.port.record.graph import Graph, Node, flat_tensors
from twinvit.port.record.torch_values import to_numpy

BLIND = 1e-7  # a value is hidden if as much of it changes nothing that is found by 1e-13


def sensitivities(
    graph: Graph,
    found: Iterable[int],
    values: Sequence[int],
    seed: int = 0,
    mixed: Container[int] | None = None,
) -> dict[int, float]:
    """How far what was found moves, relative to its size, if each of `values` moves by its own.

    One backward pass with cotangents of random sign at everything in `found`. 0 for a value that
    nothing found depends on, 1 for one that all of something depends on.

    Args:
        found: ids of values that are known to be right.
        values: ids of floating-point values.
        mixed: with it, every gradient is multiplied by random numbers wherever it enters an
            operation, so that no two terms cancel, and none passes through these values.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        held = _tracked(graph, mixed)
        total = torch.zeros((), dtype=torch.float64)
        for i in found:
            value = held[i] if i in held else graph.values[i]
            weight = _cotangent(graph.values[i], generator)
            if weight is not None and value.requires_grad:
                total = total + (torch.where(weight != 0, value, 0.0) * weight).sum()
        taps = [held[i] for i in values]
        wanted = [t for t in taps if t.requires_grad]
        if not wanted or not total.requires_grad:
            return dict.fromkeys(values, 0.0)
        grads = iter(torch.autograd.grad(total, wanted, allow_unused=True))
    result = {}
    for i, tap in zip(values, taps):
        gradient = next(grads) if tap.requires_grad else None
        result[i] = 0.0 if gradient is None else _size(gradient, graph.values[i])
    return result


class _Mixed(torch.autograd.Function):
    """The same values; the gradient is multiplied by random ones of either sign."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        ctx.generator = generator
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        factor = torch.randn(grads[0].shape, generator=ctx.generator, dtype=torch.float64)
        return grads[0] * (factor + factor.sign()), None


def _tracked(graph: Graph, mixed: Container[int] | None = None) -> dict[int, torch.Tensor]:
    """Every value that an operation makes under autograd; the first ones, made of what is given
    alone, as leaves, and so those in `mixed`."""
    generator = torch.Generator().manual_seed(1)

    def leaf(value: torch.Tensor) -> torch.Tensor:
        if value.requires_grad or not value.is_floating_point():
            return value
        return value.detach().clone().requires_grad_(True)

    held: dict[int, torch.Tensor] = {}  # what is given is read where it is used
    for node in graph.nodes:
        given = held
        if mixed is not None:
            given = {
                r: _Mixed.apply(held[r], generator) if held[r].requires_grad else held[r]
                for r in node.refs
                if r in held
            }
        args, kwargs = graph.arguments(node, given)
        if node.name in UNTRACKED and node.outs[0] is not None:
            held[node.outs[0]] = args[0]
            continue
        for i, value in zip(node.outs, flat_tensors(node.op(*args, **kwargs))):
            if i is not None:
                held[i] = graph.values[i] if value is None else leaf(value)
                if mixed is not None and i in mixed:
                    held[i] = leaf(held[i].detach())
    return held


def _cotangent(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor | None:
    """Random signs over the norm of the numbers that count; at constants that dwarf them over
    their own size, at what is not finite zero."""
    if value.dtype != torch.float64:
        return None
    array = to_numpy(value)
    kept, others = countable(array)
    top = float(np.abs(kept).max(initial=0.0))
    norm = top * float(np.linalg.norm(kept / top)) if top else 1.0
    signs = torch.randint(0, 2, value.shape, generator=generator, dtype=torch.float64) * 2 - 1
    if not others:
        return signs / norm
    size = torch.from_numpy(np.where(np.isfinite(array), np.abs(array), np.inf))
    return signs / torch.where(size <= top, norm, size)


def _size(gradient: torch.Tensor, value: torch.Tensor) -> float:
    """The norm of gradient times each number's size, that of its neighbours where it is small, 1
    where all are zero; of a gradient that is not finite, infinity."""
    sizes = value.detach().abs().nan_to_num(0.0, 0.0, 0.0)
    typical = float(sizes.square().mean().sqrt())
    sizes = sizes.clamp_min(typical if 0 < typical < np.inf else 1.0)
    product = torch.where(gradient == 0, torch.zeros((), dtype=value.dtype), gradient * sizes)
    size = float(torch.linalg.vector_norm(product))
    return size if np.isfinite(size) else float("inf")


def behind_steps(graph: Graph, found: Iterable[int]) -> set[int]:
    """Values that reach something found through a step: an operation that jumps or that returns
    integers, whose gradient says nothing."""
    right = set(found)
    through: set[int] = set()
    reached: set[int] = set()
    for node in reversed(graph.nodes):
        outs = [o for o in node.outs if o is not None]
        good = any(o in right or o in reached for o in outs)
        stepped = any(o in through for o in outs)
        if not good and not stepped:
            continue
        reached.update(node.refs)
        jumps = node.name in STEPS or node.name in DRAWS
        whole = any(
            o in right | reached and not graph.values.shaped(o).is_floating_point() for o in outs
        )
        if stepped or jumps or whole:
            through.update(node.refs)
    return through


def hiding(graph: Graph, value_id: int) -> str:
    """What hides a value from the outputs, in words: "head.weight is zero"."""
    layer, seen = [value_id], {value_id}
    while layer:
        following = []
        for i in layer:
            for user in graph.consumers.get(i, ()):
                node = graph.nodes[user]
                zero = _zero_operand(graph, node, seen)
                if zero:
                    return f"{zero} is zero"
                outs = [o for o in node.outs if o is not None]
                if outs and all(_constant(graph.values[o]) for o in outs):
                    return f"{node.place} ({node.where}) makes a constant of it"
                following += [o for o in outs if o not in seen]
                seen.update(outs)
        layer = following
    return "these weights and inputs let nothing of it through"


def always_lost(graph: Graph, value_id: int) -> bool:
    """True if a value is multiplied by zeros on every path to an output, and these zeros depend on
    no input and no parameter (the first state of a recurrence): it never moves anything."""
    varied = graph.input_dependent() | graph.trained()
    rest, seen = [value_id], {value_id}
    while rest:
        i = rest.pop()
        if i in graph.outputs:
            return False
        for user in graph.consumers.get(i, ()):
            node = graph.nodes[user]
            others = [graph.values[r] for r in node.refs if r != i and r not in varied]
            if node.name in ZEROING and any(v.numel() and not v.any() for v in others):
                continue
            fresh = [o for o in node.outs if o is not None and o not in seen]
            rest += fresh
            seen.update(fresh)
    return True


def _zero_operand(graph: Graph, node: Node, seen: set[int]) -> str:
    """The name of an operand that is zero everywhere, other than what is looked at."""
    for ref in node.refs:
        value = graph.values[ref]
        if ref in seen or not value.is_floating_point() or not value.numel() or value.any():
            continue
        source = next((graph.source[r] for r in graph.ancestors(ref) if _is_source(graph, r)), "")
        if source.startswith("param:"):
            return source[6:]
        if node.name in PRODUCTS:
            return f"an operand of {node.place} ({node.where})"
    return ""


def _is_source(graph: Graph, value_id: int) -> bool:
    return graph.source[value_id].startswith(("param:", "input:"))


def _constant(value: torch.Tensor) -> bool:
    return bool(value.numel()) and bool((value == value.reshape(-1)[0]).all())
