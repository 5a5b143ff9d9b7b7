"""What each downcast costs: the outputs with it against the outputs without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from twinvit.port import models
from twinvit.port.harness import CHECKED
from twinvit.port.index import align_distance
from twinvit.port.pair import Pair
from twinvit.port.record import jax_trace
from twinvit.port.record.graph import Edit, Graph, Node, Ref
from twinvit.port.record.jax_interpreter import Interpreter
from twinvit.port.record.jax_place import Place
from twinvit.port.record.jax_trace import Traced
from twinvit.port.record.own_types import OwnTypes
from twinvit.port.record.torch_values import WIDE, to_numpy
from twinvit.port.report import SHOWN, Downcast
from twinvit.port.search.session import Session

LARGE = 1 << 24  # numbers of a recording up to which what both sides round is measured, too
Changed = Sequence[tuple[bool, np.ndarray, np.ndarray]]
"""Of each output whether it is logits, and the output without a downcast and with it."""


def reference_costs(
    session: Session, narrowings: Sequence[Downcast], logits: Sequence[bool]
) -> None:
    """What each downcast of the reference costs: the outputs with it against the outputs
    without.

    Args:
        logits: which of the graph's outputs are logits.
    """
    graph = session.graph
    large = sum(graph.values.shaped(i).numel() for i in range(len(graph.values))) > LARGE
    for downcast in _measured([n for n in narrowings if n.side == "torch"], large):
        edits = _roundings(graph, downcast)
        if edits:
            changed = graph.run(edits, first=min(edits))
            outs = [
                (is_logits, to_numpy(graph.values[o]), to_numpy(changed[o]))
                for o, is_logits in zip(graph.outputs, logits)
                if o in changed
            ]
            _measure(downcast, outs)


def _roundings(graph: Graph, downcast: Downcast) -> dict[int, Edit]:
    """Edits that round as a downcast of the reference does."""
    dtype = getattr(torch, downcast.dtype)
    edits = {
        n.index: Edit(_rounded(n.op, dtype))
        for n in graph.nodes
        if n.narrowed == dtype and n.where == downcast.where
    }
    events = graph.types.roundings if graph.types is not None and not edits else []
    for rounding in events:
        if (rounding.inner, rounding.dtype) == (downcast.where, downcast.dtype):
            for i in rounding.users:
                node = graph.nodes[i]
                edits[i] = Edit(_taking(node, rounding.value, dtype))
    return edits


def _taking(node: Node, value: int, dtype: torch.dtype) -> Any:
    """An operation that takes one of its operands rounded."""
    leaves = tree_flatten((node.args, dict(node.kwargs)))[0]
    at = {k for k, x in enumerate(leaves) if isinstance(x, Ref) and x.id == value}

    def run(*args: Any, **kwargs: Any) -> Any:
        flat, spec = tree_flatten((args, kwargs))
        flat = [x.to(dtype).to(WIDE[dtype]) if k in at else x for k, x in enumerate(flat)]
        args, kwargs = tree_unflatten(flat, spec)
        return node.op(*args, **kwargs)

    return run


def port_costs(
    pair: Pair,
    pure: models.Pure,
    recorded: Traced,
    arrays: Sequence[np.ndarray],
    types: OwnTypes | None,
    named: Sequence[tuple[str, Any]],
    narrowings: Sequence[Downcast],
    logits: Sequence[bool],
) -> None:
    """What each downcast of the port costs: the port is evaluated with it alone.

    Args:
        recorded: the port as it was recorded.
        types: those of its values as it runs; None where they are not known.
        named: its outputs in float64, by name.
        logits: which of them are logits.
    """
    large = pair.leaves.numbers() > CHECKED
    values = [*pair.leaves.arguments(), *arrays]
    made = set() if types is None else {(r.inner, r.dtype) for r in types.roundings}
    plain: dict[str, Any] = {}
    for downcast in _measured([n for n in narrowings if n.side == "jax"], large):
        place = (downcast.where, downcast.dtype)
        if place in made:  # its conversions are those of the program that runs
            traced = replace(recorded, closed=recorded.own)
            plain = plain or _outputs(traced, values, None)
        elif pair.apart:
            continue
        else:
            rounding = pair.rounding(pure, arrays, place)
            if rounding is None:
                continue
            traced = rounding
        changed = _outputs(traced, values, place)
        without = plain if place in made else dict(named)
        outs = [(of, without[n], changed[n]) for of, (n, _) in zip(logits, named)]
        _measure(downcast, [(of, np.asarray(x), np.asarray(y)) for of, x, y in outs])


def _outputs(traced: Traced, values: Sequence[Any], place: Place | None) -> dict[str, Any]:
    """A port's outputs by name, computed in float64 but for what it rounds at a place."""
    interpreter = Interpreter(round_at=place)
    outs, _ = jax_trace.evaluate(traced, values, [-1] * len(values), interpreter)
    return dict(zip(traced.labels, outs))


def _measured(narrowings: Sequence[Downcast], large: bool) -> Iterator[Downcast]:
    """Those that are measured: what one side rounds alone at any size, and first."""
    alone = [n for n in narrowings if n.alone]
    rest = [] if large else [n for n in narrowings if not n.alone]
    yield from [*alone, *rest][:SHOWN]


def _measure(downcast: Downcast, outs: Changed) -> None:
    downcast.cost = max((align_distance(x, y) for _, x, y in outs), default=0.0)
    pairs = [(of, x, y) for of, x, y in outs if x.shape == y.shape and x.dtype.kind in "fc"]
    with np.errstate(all="ignore"):
        gaps = [float(np.nanmax(abs(x - y), initial=0.0)) for _, x, y in pairs]
    downcast.largest = max(gaps, default=None)
    told = [(x, y) for of, x, y in pairs if of and x.dtype.kind == "f" and x.size]
    if told:
        downcast.divergence = max(float(_divergence(x, y)) for x, y in told)
        downcast.agreement = min(float((x.argmax(-1) == y.argmax(-1)).mean()) for x, y in told)


def _divergence(x: np.ndarray, y: np.ndarray) -> np.floating[Any]:
    """The mean divergence of the softmax of `y` from that of `x`, over the last axis, in nats."""
    p, q = _log_softmax(x), _log_softmax(y)
    with np.errstate(all="ignore"):
        terms = np.where(np.isneginf(p), 0.0, np.exp(p) * (p - q))
    return np.mean(np.sum(terms, -1))


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _rounded(op: Any, dtype: torch.dtype) -> Any:
    return lambda *args, **kwargs: op(*args, **kwargs).to(dtype).to(WIDE[dtype])
