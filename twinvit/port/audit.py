"""Blind spots: which mistakes a test with a given tolerance lets through, found on the reference
alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from twinvit.port.call import Call
from twinvit.port.causes import Cause, Generator, Variant, causes_on
from twinvit.port.errors import PortError
from twinvit.port.outputs import pick_torch
from twinvit.port.record import torch_program
from twinvit.port.record.graph import Edit, Graph, Node, flat_tensors
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.report import VERDICTS
from twinvit.port.search.edits import edits_of
from twinvit.port.verdict import Evidence, decide, kinds, relative

PER_PLACE = 40  # variants of one cause at one operation that are tried
SKIP = ("weights", "residual_source", "dropout_on")


@dataclass
class Spot:
    """One mistake that was made in the reference.

    Attributes:
        cause: identifier of the catalogue.
        text: what the mistake is.
        place: the operation, "layers.0.mlp.act: gelu".
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
        same: mistakes that change no output: no tolerance catches them with these inputs.
        hidden: the same by their place and text, "head: the port ..."; at most 1,000.
        not_finite: mistakes whose outputs are not all finite: not counted as caught.
        untried: places that were left out when `limit` was reached, "layers.3.act: gelu".
        open: what else was not looked at, in words.
    """

    spots: list[Spot] = field(default_factory=list)
    missed: list[Spot] = field(default_factory=list)
    needed: float = 0.0
    rule: str = ""
    same: int = 0
    hidden: list[str] = field(default_factory=list)
    not_finite: int = 0
    untried: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """ "different": the test lets mistakes through; "same": it catches each that was made;
        "undecided": some change nothing or are not finite, some places were left out."""
        seen = [f"{len(self.missed)} mistakes pass"] if self.missed else []
        return decide(Evidence(seen, self.reasons, len(self.spots)))

    @property
    def reasons(self) -> list[str]:
        """What nothing is known of, in words."""
        found = list(self.open)
        if self.same:
            found.append(
                f"{self.same} more change no output with these inputs and weights, so that no "
                f"tolerance catches them, e.g. {self.hidden[0]}"
            )
        if self.not_finite:
            found.append(f"{self.not_finite} more make outputs that are not finite: not judged")
        if self.untried:
            found.append(
                f"{len(self.untried)} places were left out at the limit, from {self.untried[0]} on"
            )
        if not self.spots:
            found.append("no mistake of the catalogue changes an output: nothing was tried")
        return found

    @property
    def exit_status(self) -> int:
        """0 same, 1 different, 2 undecided."""
        return VERDICTS.index(self.verdict)

    def __str__(self) -> str:
        total = len(self.spots) + self.same + self.not_finite
        lines = [f"{len(self.missed)} of {len(self.spots)} mistakes pass {self.rule}"]
        if total != len(self.spots):
            lines[0] += f"; {total} were made"
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
            some = " that were tried and change one" if self.reasons else ""
            lines.append(f"atol={self.needed:.1e} (rtol=0, float64) would catch all{some}")
        return "\n".join([*lines, *self.reasons, f"verdict: {self.verdict}"])


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
    """Make every applicable mistake of the catalogue in the reference, at every layer, and say
    which of them a test lets through. The test looks at every array that the model returns.

    Args:
        torch_model: nn.Module or callable; it is not changed.
        inputs: arrays as it takes them.
        atol: the test's absolute tolerance; for "cosine" it bounds 1 - cosine, for "kl" the
            divergence of softmaxes.
        rtol: the test's relative tolerance.
        metric: "allclose", "cosine", "kl" or "top1" (over the last axis).
        output: which arrays of a structured output, as for `explain`; by default all.
        limit: how many mistakes are tried, those of the first layer of each kind first.
        progress: called with what is being done.

    Raises:
        PortError: the model refuses its inputs, or the metric is unknown.
    """
    if metric not in ("allclose", "cosine", "kl", "top1"):
        raise PortError(f'metric={metric!r} is none of "allclose", "cosine", "kl", "top1"')
    graph = torch_program.record(
        torch_model, inputs, lambda out: [t for _, t in pick_torch(out, output)]
    )
    judge = _Judge(graph, atol, rtol, metric)
    result = BlindSpots(rule=_rule(atol, rtol, metric), open=judge.open)
    tried = 0
    for count, (node, cause) in enumerate(places := _places(graph)):
        if tried >= limit:
            result.untried = sorted({n.place for n, _ in places[count:]})
            break
        try:
            variants = list(cause.generate(Call(graph, node)) or ())[:PER_PLACE]
        except Exception:
            continue
        for variant in variants:
            tried += judge.look(node, cause.name, variant, result)
        if progress is not None and count % 50 == 0:
            progress(f"place {count} of {len(places)}, {tried} mistakes made")
    result.spots.sort(key=lambda s: s.distance)
    result.missed = [s for s in result.spots if not s.caught]
    result.needed = min((s.largest for s in result.spots), default=0.0) * 0.999
    return result


def _places(graph: Graph) -> list[tuple[Node, Cause]]:
    """Where which cause applies: the first layer of each kind first, then the others of it."""
    seen: Counter[tuple[str, Generator]] = Counter()  # generators may share a cause's name
    found = []
    for node in graph.nodes:
        shapes = [tuple(graph.values[r].shape) for r in node.refs]
        signature = f"{node.name} {shapes} {node.scope.rsplit('.', 1)[-1]}"
        for cause in causes_on(node.name):
            if cause.name not in SKIP:
                found.append((seen[signature, cause.generate], node, cause))
                seen[signature, cause.generate] += 1
    return [(node, cause) for _, node, cause in sorted(found, key=lambda item: item[0])]


class _Judge:
    """What a test sees of a mistake."""

    def __init__(self, graph: Graph, atol: float, rtol: float, metric: str) -> None:
        self.graph, self.rule = graph, (atol, rtol, metric)
        self.right = {i: to_numpy(graph.values[i]) for i in dict.fromkeys(graph.outputs)}
        self.open = [
            f"output {place} is not finite in the reference itself"
            for place, right in enumerate(self.right.values())
            if np.isnan(right).any()
        ]

    def look(self, node: Node, name: str, variant: Variant, result: BlindSpots) -> bool:
        """Make the mistake and note what comes of it; False where it cannot be made."""
        try:
            edits = edits_of(self.graph, node, variant)
            with torch.no_grad():
                changed = self.graph.run(edits, first=min(edits))
        except Exception:
            return False
        wrong = {i: to_numpy(changed[i]) if i in changed else self.right[i] for i in self.right}
        if any(wrong[i].shape != self.right[i].shape for i in self.right):
            return False
        pairs = [(self.right[i], wrong[i]) for i in self.right]
        if any((kinds(a) != kinds(b)).any() for a, b in pairs):
            result.not_finite += 1
            return True
        distance = max(relative(a, b) for a, b in pairs)
        if distance <= 1e-12:
            if all(_same_function(self.graph, self.graph.nodes[i], e) for i, e in edits.items()):
                return True  # what the reference does already: no mistake
            result.same += 1
            if len(result.hidden) < 1000:
                result.hidden.append(f"{node.place}: {variant.text}")
            return True
        caught = any(not self.passes(a, b) for a, b in pairs)
        largest = max(float(_gaps(a, b).max(initial=0.0)) for a, b in pairs)
        result.spots.append(Spot(name, variant.text, node.place, distance, largest, caught))
        return True

    def passes(self, right: np.ndarray, wrong: np.ndarray) -> bool:
        """Whether the test lets this array through."""
        if np.array_equal(right, wrong, equal_nan=right.dtype.kind == "f"):
            return True
        return _passes(wrong, right, *self.rule)


def _same_function(graph: Graph, node: Node, edit: Edit) -> bool:
    """Whether an edit gives the operation's own results on random operands, too."""
    if edit.refs is not None and list(edit.refs) != list(node.refs):
        return False
    generator = torch.Generator().manual_seed(0)
    held = {
        i: torch.randn(graph.values[i].shape, generator=generator, dtype=torch.float64)
        if graph.values[i].dtype == torch.float64
        else graph.values[i]
        for i in node.refs
    }
    args, kwargs = graph.arguments(node, held)
    try:
        with torch.no_grad():
            mine, theirs = (flat_tensors(f(*args, **kwargs)) for f in (node.op, edit.fn))
        pairs = [(to_numpy(a), to_numpy(b)) for a, b in zip(mine, theirs) if a is not None]
        return all(a.shape == b.shape and relative(a, b) <= 1e-12 for a, b in pairs)
    except Exception:
        return False


def _gaps(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    finite = kinds(right) == 0
    return np.abs(wrong[finite].astype(np.float64) - right[finite].astype(np.float64))


def _passes(wrong: np.ndarray, right: np.ndarray, atol: float, rtol: float, metric: str) -> bool:
    if metric == "allclose":
        return bool(np.allclose(wrong, right, rtol=rtol, atol=atol))
    finite = kinds(right) == 0
    if metric == "cosine":
        x, y = wrong[finite], right[finite]
        return bool(1 - float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y))) <= atol)
    last = right.shape[-1] if right.ndim else 1
    a, b = wrong.reshape(-1, last), right.reshape(-1, last)
    if metric == "top1":
        return bool((a.argmax(1) == b.argmax(1)).all())
    log_p, log_q = _log_softmax(b), _log_softmax(a)
    with np.errstate(invalid="ignore"):  # masked classes, whose share is 0
        terms = np.where(np.isneginf(log_p), 0.0, np.exp(log_p) * (log_p - log_q))
    return bool(terms.sum(1).max() <= atol)


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
