"""Blind spots: which mistakes a test with a given tolerance lets through, found on the reference
alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from twinvit.port import record_torch
from twinvit.port.call import Call
from twinvit.port.causes import Generator, Variant, causes_on
from twinvit.port.errors import PortError
from twinvit.port.outputs import pick_torch, preferred
from twinvit.port.record_torch import Graph, Node, numbers
from twinvit.port.search.edits import edits_of

PER_PLACE = 40  # variants of one cause at one operation that are tried
SKIP = ("weights", "residual_source", "dropout_on")


@dataclass
class Spot:
    """One mistake that was made in the reference.

    Attributes:
        cause: identifier of the catalogue.
        text: what the mistake is.
        place: where, "layers.0.mlp.act: gelu".
        distance: relative L2 distance of the outputs.
        largest: largest absolute difference of the outputs.
        caught: True if the test would see it.
    """

    cause: str
    text: str
    place: str
    distance: float
    largest: float
    caught: bool


@dataclass
class BlindSpots:
    """What a test would let through.

    Attributes:
        spots: every mistake that changes an output, the smallest first.
        missed: those that the test lets through.
        needed: the largest atol (rtol 0) that catches them all; 0.0 if there are none.
        rule: the test, in words.
        same: mistakes that change no output (they cannot be seen by any tolerance with these
            inputs).
    """

    spots: list[Spot] = field(default_factory=list)
    missed: list[Spot] = field(default_factory=list)
    needed: float = 0.0
    rule: str = ""
    same: int = 0

    def __str__(self) -> str:
        lines = [f"{len(self.missed)} of {len(self.spots)} mistakes pass {self.rule}"]
        shown: dict[str, list[Spot]] = {}
        for spot in self.missed:
            shown.setdefault(spot.cause, []).append(spot)
        for cause, spots in shown.items():
            worst = max(spots, key=lambda s: s.distance)
            lines.append(
                f"  {cause}: {len(spots)}, e.g. {worst.text} ({worst.place}): "
                f"outputs {worst.distance:.1e} apart, at most {worst.largest:.1e}"
            )
        if self.spots:
            lines.append(f"atol={self.needed:.1e} (rtol=0, float64) would catch them all")
        if self.same:
            lines.append(f"{self.same} more change no output with these inputs")
        return "\n".join(lines)


def blind_spots(
    torch_model: Any,
    inputs: Sequence[Any] | Mapping[str, Any],
    *,
    atol: float = 1e-5,
    rtol: float = 0.0,
    metric: str = "allclose",
    output: Any = None,
    limit: int = 2000,
    progress: Callable[[str], None] | None = None,
) -> BlindSpots:
    """Make every applicable mistake of the catalogue in the reference and say which of them a test
    lets through.

    Args:
        torch_model: nn.Module or callable; it is not changed.
        inputs: arrays as it takes them.
        atol: the test's absolute tolerance; for "cosine" it bounds 1 - cosine, for "kl" the
            divergence of softmaxes.
        rtol: the test's relative tolerance.
        metric: "allclose", "cosine", "kl" or "top1" (over the last axis).
        output: which array of a structured output, as for `explain`.
        limit: how many mistakes are tried.
        progress: told what is being done.

    Raises:
        PortError: the model refuses its inputs, or the metric is unknown.
    """
    if metric not in ("allclose", "cosine", "kl", "top1"):
        raise PortError(f'metric={metric!r} is none of "allclose", "cosine", "kl", "top1"')

    def pick(out: Any) -> list[Any]:
        found = pick_torch(out, output)
        if output is None:
            found = preferred(found)
        return [t for _, t in found]

    graph = record_torch.record(torch_model, inputs, pick)
    right = numbers(graph.values[graph.outputs[0]])
    result = BlindSpots(rule=_rule(atol, rtol, metric))
    seen: set[tuple[str, Generator]] = set()  # several generators may share a cause's name
    tried = 0
    for node in graph.nodes:
        if tried >= limit:
            break
        signature = (
            f"{node.name} {[tuple(graph.values[r].shape) for r in node.refs]} "
            f"{node.scope.rsplit('.', 1)[-1]}"
        )
        for cause in causes_on(node.name):
            if cause.name in SKIP or (signature, cause.generate) in seen:
                continue
            seen.add((signature, cause.generate))
            try:
                variants = list(cause.generate(Call(graph, node)) or ())[:PER_PLACE]
            except Exception:
                continue
            for variant in variants:
                tried += 1
                spot = _try(graph, node, cause.name, variant, right, atol, rtol, metric)
                if spot is None:
                    continue
                if spot.distance <= 1e-12:
                    result.same += 1
                else:
                    result.spots.append(spot)
        if progress is not None and node.index % 50 == 0:
            progress(f"operation {node.index} of {len(graph.nodes)}, {tried} mistakes made")
    result.spots.sort(key=lambda s: s.distance)
    result.missed = [s for s in result.spots if not s.caught]
    result.needed = min((s.largest for s in result.spots), default=0.0) * 0.999
    return result


def _try(
    graph: Graph,
    node: Node,
    name: str,
    variant: Variant,
    right: np.ndarray,
    atol: float,
    rtol: float,
    metric: str,
) -> Spot | None:
    try:
        edits = edits_of(graph, node, variant)
        with torch.no_grad():
            changed = graph.run(edits, first=min(edits))
    except Exception:
        return None
    if graph.outputs[0] not in changed:
        return None
    wrong = numbers(changed[graph.outputs[0]])
    if wrong.shape != right.shape or not np.isfinite(wrong).all():
        return None
    difference = np.abs(wrong - right)
    norm = float(np.linalg.norm(right)) or 1.0
    caught = not _passes(wrong, right, atol, rtol, metric)
    return Spot(
        name,
        variant.text,
        node.place,
        float(np.linalg.norm(wrong - right)) / norm,
        float(difference.max()),
        caught,
    )


def _passes(wrong: np.ndarray, right: np.ndarray, atol: float, rtol: float, metric: str) -> bool:
    if metric == "allclose":
        return bool(np.allclose(wrong, right, rtol=rtol, atol=atol))
    a, b = wrong.reshape(-1, wrong.shape[-1]), right.reshape(-1, right.shape[-1])
    if metric == "cosine":
        x, y = wrong.reshape(-1), right.reshape(-1)
        return bool(1 - float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y))) <= atol)
    if metric == "top1":
        return bool((a.argmax(1) == b.argmax(1)).all())
    log_p, log_q = _log_softmax(b), _log_softmax(a)
    return bool((np.exp(log_p) * (log_p - log_q)).sum(1).max() <= atol)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def _rule(atol: float, rtol: float, metric: str) -> str:
    return {
        "allclose": f"allclose(atol={atol:g}, rtol={rtol:g})",
        "cosine": f"1 - cosine <= {atol:g}",
        "kl": f"KL divergence <= {atol:g}",
        "top1": "equal top-1 classes",
    }[metric]
