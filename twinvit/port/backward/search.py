"""What explains gradients that differ: edits of the reference's backward, the last places first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from twinvit.port.backward.candidates import Candidate, derived, named, over_others
from twinvit.port.backward.flow import Flow, parameter_gradients
from twinvit.port.backward.rules import Made
from twinvit.port.backward.transplant import transplants
from twinvit.port.record.graph import Graph, Node
from twinvit.port.record.torch_gradients import CustomBackward
from twinvit.port.report import Finding
from twinvit.port.search.formula import alike

if TYPE_CHECKING:
    from twinvit.port.backward.ported import PortGradients

CUSTOM = 24  # functions with a backward of their own that are tried
FRONTS = 6  # places that are tried for one finding
ROUNDS = 48  # edits of one report
SECONDS = 60.0  # spent on the search for all edits

Left = Callable[[Mapping[str, np.ndarray]], list[str]]
"""Which of these gradients the port has no equal of."""
Proven = Callable[[Made], bool]
"""Whether edits hold on other inputs, weights and cotangents."""


@dataclass
class Found:
    """What was found.

    Attributes:
        made: the edits.
        candidates: one by one.
        wrong: parameters whose gradients stay without an equal.
        place: where the first gradient is that no edit explains, and its operands.
    """

    made: Made
    candidates: list[Candidate]
    wrong: list[str]
    place: tuple[Node, list[int]] | None = None


def explained(
    graph: Graph,
    theirs: PortGradients,
    cotangents: Sequence[torch.Tensor],
    wrong: list[str],
    left: Left,
    proven: Proven,
) -> Found:
    """Edits of the backward after which the reference's gradients are the port's."""
    found = Found(Made(), [], wrong)
    idle: list[Candidate] = []  # edits since the last one that explained a parameter
    end = time.perf_counter() + SECONDS
    for _ in range(ROUNDS):
        if not found.wrong or time.perf_counter() > end:
            break
        flow = Flow.of(graph, cotangents, found.made, theirs.index)
        fronts = [f for f, _ in zip(flow.fronts(found.wrong), range(FRONTS))]
        if found.place is None and fronts:
            found.place = fronts[0]
        best = _best(graph, theirs, cotangents, flow, fronts, found.wrong, left, proven, end)
        if best is None:
            break
        candidate, names = best
        idle.append(candidate)
        found.made = candidate.made
        if len(names) < len(found.wrong):
            found.candidates += idle
            found.wrong, found.place, idle = names, None, []
    return found


def _best(
    graph: Graph,
    theirs: PortGradients,
    cotangents: Sequence[torch.Tensor],
    flow: Flow,
    fronts: Sequence[tuple[Node, list[int]]],
    wrong: list[str],
    left: Left,
    proven: Proven,
    end: float,
) -> tuple[Candidate, list[str]] | None:
    """The first edit that explains all, else the one that leaves the fewest parameters without an
    equal, or brings the most gradients within back."""
    score = (len(wrong), -flow.found())
    best: tuple[Candidate, list[str]] | None = None
    for node, bad in [*((n, []) for n in flow.custom(wrong)[:CUSTOM]), *fronts]:
        tried = _candidates(flow, node, bad, theirs) if bad else iter([derived(flow, node)])
        for candidate in tried:
            if time.perf_counter() > end:
                return best
            try:
                names = left(parameter_gradients(graph, cotangents, candidate.made))
            except Exception:  # a rule that does not fit these values
                continue
            if not names and proven(candidate.made):
                return candidate, names
            if not names or len(names) > len(wrong):
                continue
            again = Flow.of(graph, cotangents, candidate.made, theirs.index).found()
            if (len(names), -again) < score:
                score, best = (len(names), -again), (candidate, names)
        if best is not None and bad:
            return best
    return best


def _candidates(
    flow: Flow, node: Node, bad: list[int], theirs: PortGradients
) -> Iterator[Candidate]:
    ids = flow.graph.params()
    own = {ids[n]: g for n, g in theirs.own.items() if n in ids}
    yield from named(flow, node, bad, theirs.index, own)
    if theirs.tape is not None:
        yield from transplants(flow, node, bad, theirs.tape)
    yield from over_others(flow, node, bad)


def findings(found: Found, theirs: PortGradients, before: int) -> list[Finding]:
    """The edits as findings; those of one kind are one, with every place."""
    made: dict[tuple[str, str, str], Finding] = {}
    for candidate in found.candidates:
        place, torch_lines = place_of(candidate.place), candidate.torch_lines
        torch_lines = [w for w in torch_lines or [candidate.place.where] if w]
        lines = [w for w in candidate.lines or [_line(candidate, theirs)] if w]
        key = candidate.kind, candidate.cause, alike(candidate.text)
        if key not in made:
            made[key] = Finding(
                candidate.kind, candidate.cause, candidate.text, place,
                lines[0] if lines else "", float(before), 0.0, [], "grad",
                torch_line=torch_lines[0] if torch_lines else "",
                operations=candidate.operations, formulas=dict(candidate.formulas),
            )  # fmt: skip
        same = made[key]
        same.places = list(dict.fromkeys([*same.places, place]))
        same.torch_lines = list(dict.fromkeys([*same.torch_lines, *torch_lines]))
        same.jax_lines = list(dict.fromkeys([*same.jax_lines, *lines]))
    return list(made.values())


def place_of(node: Node) -> str:
    """The reference's place; of a function with a backward of its own by that one's name."""
    if isinstance(node.op, CustomBackward):
        return f"{node.scope}: {node.op.name}".removeprefix(": ")
    return node.place


def _line(candidate: Candidate, theirs: PortGradients) -> str:
    """The port's line of a finding: of its gradient, or of the operation's result."""
    if candidate.entry is not None:
        where = theirs.index.entries[candidate.entry].where
        if where:
            return where
    return next((w for o in candidate.place.outs if (w := theirs.lines.get(o or -1))), "")
