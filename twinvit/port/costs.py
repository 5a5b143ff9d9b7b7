"""What each narrowing costs: the outputs with it against the outputs without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from twinvit.port import models
from twinvit.port.harness import CHECKED
from twinvit.port.index import align_distance
from twinvit.port.pair import Pair
from twinvit.port.record import jax_trace
from twinvit.port.record.graph import Edit
from twinvit.port.record.jax_interpreter import Interpreter
from twinvit.port.record.torch_values import WIDE, numbers
from twinvit.port.report import SHOWN, Narrowing
from twinvit.port.search.session import Session


def reference_costs(session: Session, narrowings: list[Narrowing]) -> None:
    """What each narrowing of the reference costs: the outputs with it against the outputs
    without."""
    graph = session.graph
    if sum(v.numel() for v in graph.values) > 1 << 24:
        return
    for narrowing in narrowings:
        if narrowing.side != "torch":
            continue
        edits = {
            n.index: Edit(_rounded(n.op, n.narrowed))
            for n in graph.nodes
            if n.narrowed is not None and n.where == narrowing.where
        }
        if edits:
            changed = graph.run(edits, first=min(edits))
            far = [
                align_distance(numbers(graph.values[o]), numbers(changed[o]))
                for o in graph.outputs
                if o in changed
            ]
            narrowing.cost = max(far, default=0.0)


def port_costs(
    pair: Pair,
    pure: models.Pure,
    arrays: Sequence[np.ndarray],
    named: Sequence[tuple[str, Any]],
    narrowings: Sequence[Narrowing],
) -> None:
    """What each narrowing of the port costs: the port is traced and evaluated with it alone."""
    if pair.apart or sum(int(np.size(x)) for x in pair.leaves) > CHECKED:
        return
    values = [*pair.leaves, *arrays]
    leaves, inputs = pair.typed(arrays)
    for narrowing in [n for n in narrowings if n.side == "jax"][:SHOWN]:
        place = (narrowing.where, narrowing.dtype)
        traced = jax_trace.trace(pure.call, leaves, inputs, place)
        interpreter = Interpreter(round_at=place)
        outs, _ = jax_trace.evaluate(traced, values, [-1] * len(values), interpreter)
        rounded = dict(zip(traced.labels, outs))
        narrowing.cost = max(
            (align_distance(np.asarray(x), np.asarray(rounded[n])) for n, x in named), default=0.0
        )


def _rounded(op: Any, dtype: torch.dtype) -> Any:
    return lambda *args, **kwargs: op(*args, **kwargs).to(dtype).to(WIDE[dtype])
