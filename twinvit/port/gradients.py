"""Gradients: each parameter's, for one random cotangent, and what cuts, scales or passes them
otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import torch

from twinvit.port import record_jax
from twinvit.port.index import Index, evidence, layouts
from twinvit.port.record_torch import Edit, Graph, Node
from twinvit.port.report import Finding
from twinvit.port.session import Session, numbers

TOLERANCE = 1e-10
SECONDS = 60.0  # spent on the search for one cause
STEPS = (
    "round",
    "floor",
    "ceil",
    "sign",
    "trunc",
    "clamp",
    "clamp_min",
    "clamp_max",
    "hardtanh",
    "gt",
    "heaviside",
)


def reference_gradients(
    graph: Graph, cotangents: list[torch.Tensor], edits: Mapping[int, Edit] | None = None
) -> dict[str, np.ndarray]:
    """Gradients of sum(outputs * cotangents) by each parameter's name, of the graph as it is edited
    now."""
    leaves = {
        name: graph.values[i].detach().clone().requires_grad_(True)
        for name, i in graph.params().items()
        if graph.values[i].dtype == torch.float64 and name not in graph.buffers
    }
    ids = graph.params()
    changed = {ids[n]: t for n, t in leaves.items()}
    with torch.enable_grad():
        values = graph.run(dict(edits or {}), changed, everything=True)
        total = sum((values[o] * c).sum() for o, c in zip(graph.outputs, cotangents))
        if not isinstance(total, torch.Tensor) or not total.requires_grad:
            return {n: np.zeros(tuple(t.shape)) for n, t in leaves.items()}
        grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {
        n: np.zeros(tuple(t.shape)) if g is None else numbers(g)
        for (n, t), g in zip(leaves.items(), grads)
    }


def compare_gradients(
    session: Session, pair: Any, traced: Any, arrays: list[np.ndarray]
) -> tuple[list[Finding], str, bool]:
    """Findings, a note, and whether every difference has a proven cause."""
    graph = session.graph
    generator = torch.Generator().manual_seed(1)
    cotangents = [
        torch.randn(graph.values[o].shape, generator=generator, dtype=torch.float64)
        for o in graph.outputs
    ]
    aligned = [
        _as_port(numbers(graph.values[o]), c.numpy(), theirs)
        for o, c, theirs in zip(graph.outputs, cotangents, session.port_outputs)
    ]
    floats = [
        i for i, x in enumerate(pair.leaves) if isinstance(x, np.ndarray) and x.dtype == np.float64
    ]
    chosen = [
        _position(traced, theirs, session.port_outputs, k)
        for k, theirs in enumerate(session.port_outputs)
    ]

    def loss(some: list[Any], rest: list[Any], *xs: Any) -> Any:
        leaves = list(rest)
        for i, x in zip(floats, some):
            leaves[i] = x
        out = pair.called(leaves, *xs)
        found = [
            x
            for x in jax.tree.leaves(out)
            if hasattr(x, "dtype") and np.issubdtype(x.dtype, np.floating)
        ]
        return sum((found[p] * c).sum() for p, c in zip(chosen, aligned))

    def gradient(leaves: list[Any], *xs: Any) -> Any:
        return jax.grad(loss)([leaves[i] for i in floats], leaves, *xs)

    recorded = record_jax.trace(gradient, pair.leaves, arrays)
    index = Index()
    ids = [-1] * (len(pair.leaves) + len(arrays))
    outs, _ = record_jax.evaluate(
        recorded, [*pair.leaves, *arrays], ids, record_jax.Interpreter(index.add)
    )
    gradients = [np.asarray(g) for g in outs]
    for g, i in zip(gradients, floats):
        index.add(np.array(g), "gradient", pair.pure.names[i], [])
        if g.ndim >= 2 and 1 < g.shape[0] <= 64:
            for k in range(g.shape[0]):
                index.add(np.array(g[k]), "gradient", f"{pair.pure.names[i]}[{k}]", [])
    reference = reference_gradients(graph, cotangents)
    size = max((float(np.abs(g).max()) for g in reference.values() if g.size), default=0.0)
    wrong = [n for n, g in reference.items() if not _found(index, g, size)]
    judged = sum(1 for g in reference.values() if evidence(g))
    note = f"gradients of {judged} parameters compared, {len(wrong)} without an equal"
    if not wrong:
        return [], note, True
    findings: list[Finding] = []
    edits: dict[int, Edit] = {}
    for _ in range(6):
        best = _search(graph, index, cotangents, edits, wrong, size)
        if best is None:
            break
        node, edit, name, text, left = best
        findings.append(
            Finding(
                "cause",
                name,
                text,
                node.place,
                "",
                float(len(wrong)),
                float(len(left)),
                [node.place],
                "grad",
            )
        )
        edits[node.index] = edit
        wrong = left
        if not wrong:
            return findings, note, True
    for name in wrong[:8]:
        far, where, ratio = _nearest(index, reference[name])
        text = f"the gradient of {name} has no equal in the port" + (
            f"; the nearest is {ratio:.6g} times it" if ratio is not None else ""
        )
        findings.append(Finding("unknown", "", text, name, where, far, far, [name], "grad"))
    return findings, note, False


def _found(index: Index, g: np.ndarray, size: float, depth: int = 0) -> bool:
    """True if a gradient, or its equal parts along the first axis, are the port's.

    Small arrays prove nothing, nor does rounding where the gradient is zero (the bias of
    attention's keys).
    """
    if not evidence(g) or float(np.abs(g).max()) <= 1e-12 * size:
        return True
    if index.find(g, TOLERANCE) is not None:
        return True
    return depth == 0 and any(
        g.shape[0] % n == 0
        and g.shape[0] > n
        and all(_found(index, part, size, 1) for part in np.split(g, n))
        for n in (2, 3, 4)
    )


def _candidates(graph: Graph) -> Iterator[tuple[Node, str, str, Callable[..., Any]]]:
    """Edits that leave every value and change gradients, the last operations first."""
    for node in reversed(graph.nodes):
        out = next((o for o in node.outs if o is not None), None)
        if out is None or graph.values[out].dtype != torch.float64 or not graph.consumers.get(out):
            continue
        op = node.op

        def cut(*args: Any, op: Any = op, **kwargs: Any) -> Any:
            made = op(*args, **kwargs)
            return (
                made.detach()
                if isinstance(made, torch.Tensor)
                else tuple(m.detach() if isinstance(m, torch.Tensor) else m for m in made)
            )

        yield (
            node,
            "grad_detached",
            "no gradient flows through this in the port "
            "(stop_gradient); the reference does not detach it",
            cut,
        )
        if node.name == "detach":
            yield (
                node,
                "grad_detached",
                "the reference detaches this; in the port a gradient flows through it",
                lambda x: x,
            )
        if node.name in STEPS and node.refs:

            def through(x: torch.Tensor, *args: Any, op: Any = op, **kwargs: Any) -> torch.Tensor:
                return x + (op(x, *args, **kwargs) - x).detach()

            yield (
                node,
                "straight_through",
                "the port passes the gradient straight through this; the reference does not",
                through,
            )
        for factor in (2.0, 0.5, -1.0, 0.1):

            def scaled(*args: Any, op: Any = op, f: float = factor, **kwargs: Any) -> Any:
                made = op(*args, **kwargs)
                return (
                    made * f + (made * (1 - f)).detach() if isinstance(made, torch.Tensor) else made
                )

            yield node, "grad_scale", f"the port multiplies the gradient by {factor:g} here", scaled


def _search(
    graph: Graph,
    index: Index,
    cotangents: list[torch.Tensor],
    edits: Mapping[int, Edit],
    wrong: list[str],
    size: float,
) -> tuple[Node, Edit, str, str, list[str]] | None:
    best: tuple[Node, Edit, str, str, list[str]] | None = None
    budget = 400 if sum(v.numel() for v in graph.values) < 1 << 22 else 24
    until = time.perf_counter() + SECONDS
    for node, name, text, fn in _candidates(graph):
        if node.index in edits:
            continue
        budget -= 1
        if budget < 0 or time.perf_counter() > until:
            break
        edit = Edit(fn)
        try:
            grads = reference_gradients(graph, cotangents, {**edits, node.index: edit})
        except Exception:
            continue
        left = [n for n, g in grads.items() if not _is_found(index, g, wrong, n, size)]
        if len(left) < len(best[4] if best is not None else wrong):
            best = (node, edit, name, text, left)
            if not left:
                break
    return best


def _is_found(index: Index, g: np.ndarray, wrong: list[str], name: str, size: float) -> bool:
    if not np.any(g):  # a gradient that is cut off has no evidence: it must be one that was wrong
        return name in wrong
    return _found(index, g, size)


def _nearest(index: Index, g: np.ndarray) -> tuple[float, str, float | None]:
    near = index.nearest(g)
    if not near:
        return float("inf"), "", None
    entry = index.entries[near[0][1]]
    ratio = None
    if entry.value is not None:
        for moved in layouts(entry.value, g.shape)[:6]:
            t = float(np.vdot(g, moved) / max(float(np.vdot(g, g)), 1e-300))
            if np.linalg.norm(moved - t * g) < 1e-8 * np.linalg.norm(moved):
                ratio = t
    return near[0][0], entry.where, ratio


def _as_port(mine: np.ndarray, cotangent: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The cotangent in the order of the port's axes."""
    if mine.shape == theirs.shape:
        return cotangent
    best = min(
        ((float(np.linalg.norm(a - theirs)), i) for i, a in enumerate(layouts(mine, theirs.shape))),
        default=None,
    )
    if best is None:
        return cotangent.reshape(theirs.shape)
    return np.array(layouts(cotangent, theirs.shape)[best[1]])


def _position(traced: Any, theirs: np.ndarray, outputs: list[np.ndarray], k: int) -> int:
    """Which of the port's floating-point outputs is compared as the k-th."""
    floats = [
        v.aval for v in traced.closed.jaxpr.outvars if np.issubdtype(v.aval.dtype, np.floating)
    ]
    if len(floats) == len(outputs):
        return k
    return next(i for i, aval in enumerate(floats) if tuple(aval.shape) == theirs.shape)
