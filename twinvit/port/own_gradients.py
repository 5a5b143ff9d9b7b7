"""The reference's gradients as its own backward pass makes them, against those of its recorded
operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from twinvit.port.outputs import pick_torch
from twinvit.port.pair import Pair
from twinvit.port.record import torch_values
from twinvit.port.record.graph import Graph
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.verdict import relative

OUTPUTS = 1e-9  # relative L2: outputs that are farther apart were not computed in float64 alone
APART = 1e-6  # the same of gradients that are others

NOTE = (
    "the reference's gradients are those of its own backward pass, which its recorded operations "
    "do not give (a hook, .data): no edit of these can be proven to explain a difference"
)


def own_gradients(
    pair: Pair, graph: Graph, places: Sequence[int], cotangents: Sequence[torch.Tensor]
) -> dict[str, np.ndarray]:
    """Gradients of sum(outputs * cotangents) by each parameter's name, of the model itself; empty
    where it does not run in float64 with the outputs that were recorded.

    Args:
        graph: the model as it was recorded.
        places: those of the graph's outputs among all that the model returns.
    """
    if not isinstance(pair.torch_model, torch.nn.Module) or hasattr(pair.torch_model, "replayed"):
        return {}
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            return _run(pair, graph, places, cotangents)
    except Exception:
        return {}
    finally:
        torch.set_default_dtype(default)


def _run(
    pair: Pair, graph: Graph, places: Sequence[int], cotangents: Sequence[torch.Tensor]
) -> dict[str, np.ndarray]:
    model = torch_values.widened(pair.torch_model).eval()
    names, given = torch_values.split_inputs(pair.inputs)
    out = torch_values.call(model, names, [torch_values.to_torch(x) for x in given])
    every = [t for _, t in pick_torch(out, pair.output)]
    outs = [every[k] for k in places]
    for o, mine in zip(outs, graph.outputs):
        recorded = graph.values[mine]
        if o.shape != recorded.shape or relative(to_numpy(recorded), to_numpy(o)) > OUTPUTS:
            return {}
    total: Any = sum((o * c).sum() for o, c in zip(outs, cotangents) if c.any())
    wanted = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not wanted:
        return {}
    grads: Sequence[Any] = [None] * len(wanted)
    if isinstance(total, torch.Tensor) and total.requires_grad:
        grads = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    return {
        n: np.zeros(tuple(p.shape)) if g is None else to_numpy(g)
        for (n, p), g in zip(wanted.items(), grads)
    }


def apart(recorded: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the parameters whose gradients are others."""
    largest = max((_largest(g) for g in own.values()), default=0.0)
    found = []
    for name, g in own.items():
        mine = recorded.get(name)
        if mine is None or mine.shape != g.shape:
            continue
        if not np.isfinite(g).all():
            continue  # a fused kernel may make NaN where its steps make none
        far = np.abs(np.where(np.isfinite(mine), g - mine, 0.0)).max(initial=0.0)
        # Of a gradient that rounding alone makes no digit is right.
        if far > APART * max(_largest(g), _largest(mine), 1e-6 * largest):
            found.append(name)
    return found


def _largest(g: np.ndarray) -> float:
    return float(np.abs(g[np.isfinite(g)]).max(initial=0.0))
