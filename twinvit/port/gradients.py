"""Gradients: each parameter's, for one random cotangent, and what cuts, scales or passes them
otherwise."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from twinvit.port.backward import search
from twinvit.port.backward.draws import Draws
from twinvit.port.backward.flow import TOLERANCE, derivatives, parameter_gradients, run_backward
from twinvit.port.backward.ported import Backward, PortGradients, largest
from twinvit.port.backward.rules import Made
from twinvit.port.gradient_edits import candidates
from twinvit.port.index import SMALLEST, evidence, layouts
from twinvit.port.own_gradients import NOTE, apart, own_gradients
from twinvit.port.record.graph import Edit, Graph, Node
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.report import Finding
from twinvit.port.search.session import Session
from twinvit.port.verdict import relative
from twinvit.port.verify import Program

LARGE = (8.0, 64.0, 1e3, 1e5)
"""Sizes of cotangents at which clips are looked for that nothing exceeds at 1."""
NEAR = 1e-9  # relative L2 of a gradient and a multiple of it
SECONDS = 60.0  # spent on the search for one cause


def compare_gradients(
    session: Session, pair: Any, recorded: Any, program: Program
) -> tuple[list[Finding], str, bool, list[str]]:
    """Findings, a note, whether every difference has a proven cause, and what NaN on both sides
    leaves open.

    `recorded` holds both models as they were compared, `program` runs them on other numbers.
    `PortGradients.has` says with what each gradient is compared; one without an array of its own
    may be found among any intermediate of the port's backward pass.
    """
    graph = session.graph
    compared = _Compared.of(session, pair, recorded, 1.0)
    if not compared.wrong:
        for size in _sizes(compared, graph, recorded):
            large = _Compared.of(session, pair, recorded, size)
            if large.wrong:
                compared = large
                break
    theirs, reference, wrong = compared.theirs, compared.reference, compared.wrong
    judged = sum(1 for n, g in reference.items() if n in theirs.own or evidence(g))
    note = f"gradients of {judged} parameters compared, {len(wrong)} without an equal"
    findings: list[Finding] = []
    place = None
    if compared.unlike:
        note += f"; {NOTE}"
    elif wrong:
        findings, wrong, place = _explained(compared, graph, program)
    findings += [_without_equal(theirs, n, reference[n], place) for n in wrong[:8]]
    left = _unjudged({n: g for n, g in reference.items() if n not in wrong})
    return findings, note, not wrong, left


@dataclass
class _Compared:
    """Both sides' gradients.

    Attributes:
        cotangents: of the reference's outputs.
        reference: its gradients by each parameter's name.
        theirs: the port's.
        wrong: parameters whose gradients are others.
        unlike: parameters whose gradients the reference's recorded operations do not give.
        backward: the port's backward pass.
    """

    cotangents: list[torch.Tensor]
    reference: dict[str, np.ndarray]
    theirs: PortGradients
    wrong: list[str]
    unlike: list[str]
    backward: Backward

    @classmethod
    def of(cls, session: Session, pair: Any, recorded: Any, size: float) -> _Compared:
        """With random cotangents of this size."""
        graph = session.graph
        generator = torch.Generator().manual_seed(1)
        cotangents = [
            size
            * torch.randn(graph.values.shaped(o).shape, generator=generator, dtype=torch.float64)
            * graph.values[o].is_floating_point()
            for o in graph.outputs
        ]
        reference = parameter_gradients(graph, cotangents, Made())
        plain = graph is recorded.graph
        truth = own_gradients(pair, recorded.graph, [p.mine for p in recorded.compared], cotangents)
        first = reference if plain else parameter_gradients(recorded.graph, cotangents, Made())
        unlike = apart(first, truth)
        if plain:
            reference |= {n: truth[n] for n in unlike}
        backward = Backward(pair, recorded, graph)
        given = graph, recorded.arrays, pair.leaves, cotangents, largest(reference)
        theirs = backward.at(*given)
        wrong = [n for n, g in reference.items() if not theirs.has(n, g)]
        if wrong:
            theirs = backward.at(*given, taped=True)
        theirs.lines = {
            i: recorded.index.entries[e].where
            for i, root in session.root.items()
            if (e := session.match.get(root)) is not None and e >= 0
        }
        return cls(cotangents, reference, theirs, wrong, unlike, backward)

    def left(self, gradients: Mapping[str, np.ndarray]) -> list[str]:
        """Which of the reference's gradients with edits the port has no equal of."""

        def explained(name: str, g: np.ndarray) -> bool:
            if name in self.theirs.own or np.any(g):
                return self.theirs.has(name, g)
            # Zeros are no evidence: it must have been wrong, and the port have one cut off.
            cut = name in self.wrong and self.theirs.has_cut(g)
            return not np.any(self.reference[name]) or cut

        return [n for n, g in gradients.items() if not explained(n, g)]


def _sizes(compared: _Compared, graph: Graph, recorded: Any) -> Iterator[float]:
    """Sizes of cotangents at which a gradient of either side is no multiple of that at 1: a
    function with a backward of its own clips it, perhaps."""
    mine = any(n.name.startswith("custom_backward") for n in recorded.graph.nodes)
    theirs = has_custom_vjp(recorded.traced.closed.jaxpr)
    first = compared.backward.scaled(1.0) if theirs else []
    for size in LARGE:
        large = compared.backward.scaled(size) if theirs else []
        if _nonlinear(first, large, size):
            yield size
        elif mine:
            cotangents = [size * c for c in compared.cotangents]
            grads = parameter_gradients(graph, cotangents, Made())
            names = list(grads)
            before = [compared.reference[n] for n in names]
            if _nonlinear(before, [grads[n] for n in names], size):
                yield size


def _nonlinear(first: list[np.ndarray], large: list[np.ndarray], size: float) -> bool:
    """True unless the second gradients are the first ones times a size, but for what rounding
    makes."""
    most = largest(dict(enumerate(first)))
    return any(
        np.isfinite(x).all() and relative(size * x, y) > NEAR
        for x, y in zip(first, large)
        if np.abs(x).max(initial=0.0) > NEAR * most
        or np.abs(y).max(initial=0.0) > size * NEAR * most
    )


def has_custom_vjp(jaxpr: Any) -> bool:
    """True for a program with a function whose backward is its own."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name.startswith("custom_vjp"):
            return True
        for value in eqn.params.values():
            for inner in value if isinstance(value, list | tuple) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns") and has_custom_vjp(inner):
                    return True
    return False


def _without_equal(
    theirs: PortGradients, name: str, g: np.ndarray, place: tuple[Node, list[int]] | None
) -> Finding:
    """A gradient that stays without an equal, and the operation behind which it is another one."""
    far, where, ratio = _nearest(theirs, name, g)
    text = f"the gradient of {name} has no equal in the port" + (
        f"; the nearest is {ratio:.6g} times it" if ratio is not None else ""
    )
    bad = name in theirs.own and (~np.isfinite(theirs.own[name])).sum()
    if bad:
        text = (
            f"the port's gradient of {name} is NaN or infinite in {bad} of the "
            f"{theirs.own[name].size} numbers"
            + (f", first at {theirs.first}" if theirs.first else "")
        )
    found = Finding("unknown", "", text, name, where, far, far, [name], "grad")
    if place is not None and not bad:
        node = place[0]
        line = next((w for o in node.outs if (w := theirs.lines.get(-1 if o is None else o))), "")
        at = f" ({node.where})" if node.where else ""
        found.text += (
            f"; the port has the gradient of what {node.place}{at} returns, and not that of what "
            "it takes" + (f": its backward is another one at {line}" if line else "")
        )
        found.torch_line, found.torch_lines = node.where, [node.where] if node.where else []
        found.jax, found.jax_lines = line or where, [line] if line else []
    return found


def _unjudged(gradients: Mapping[str, np.ndarray]) -> list[str]:
    """Gradients that are NaN or infinite on both sides and have too few other values."""
    return [
        f"the gradient of {name} is NaN or infinite in {g.size - n} of its {g.size} numbers on "
        "both sides"
        for name, g in gradients.items()
        if (n := int(np.isfinite(g).sum())) < min(g.size, SMALLEST)
    ]


def _explained(
    compared: _Compared, graph: Graph, program: Program
) -> tuple[list[Finding], list[str], tuple[Node, list[int]] | None]:
    """What explains wrong gradients, those that stay without an equal, and the place where the
    first of them is lost."""
    theirs, cotangents, wrong = compared.theirs, compared.cotangents, compared.wrong
    place = None
    if not theirs.broken:
        draws: list[Draws] = []

        def proven(made: Made) -> bool:
            if not draws:
                draws.append(Draws(program, graph, compared.backward))
            return not draws[0].wrong(made, list(compared.reference))

        found = search.explained(graph, theirs, cotangents, wrong, compared.left, proven)
        if not found.wrong:
            return search.findings(found, theirs, len(wrong)), [], None
        place = found.place
        partly = search.findings(found, theirs, len(wrong)), found.wrong, place
    findings: list[Finding] = []
    edits: dict[int, Edit] = {}
    for _ in range(6):
        best = _search(graph, theirs, cotangents, edits, wrong, compared) if wrong else None
        if best is None:
            break
        node, edit, name, text, left = best
        before, after = float(len(wrong)), float(len(left))
        findings.append(
            Finding("cause", name, text, node.place, "", before, after, [node.place], "grad",
                    torch_line=node.where)
        )  # fmt: skip
        edits[node.index] = edit
        wrong = left
    if wrong and not theirs.broken:
        return partly
    return findings, wrong, place


def _search(
    graph: Graph,
    theirs: PortGradients,
    cotangents: list[torch.Tensor],
    edits: Mapping[int, Edit],
    wrong: list[str],
    compared: _Compared,
) -> tuple[Node, Edit, str, str, list[str]] | None:
    best: tuple[Node, Edit, str, str, list[str]] | None = None
    numbers = sum(graph.values.shaped(i).numel() for i in range(len(graph.values)))
    budget = 400 if numbers < 1 << 22 else 24
    until = time.perf_counter() + SECONDS
    for candidate in candidates(graph, bool(theirs.broken)):
        node = candidate.node
        if node.index in edits:
            continue
        budget -= 1
        if budget < 0 or time.perf_counter() > until:
            break
        edit = Edit(candidate.function)
        try:
            if candidate.broken and not _proven_nan(
                graph, theirs, cotangents, {**edits, node.index: edit}, node
            ):
                continue
            made = Made({**edits, node.index: edit})
            grads = parameter_gradients(graph, cotangents, made)
        except Exception:
            continue
        left = compared.left(grads)
        if len(left) < len(best[4] if best is not None else wrong):
            best = (node, edit, candidate.cause, candidate.text, left)
            if not left:
                break
    return best


def _proven_nan(
    graph: Graph,
    theirs: PortGradients,
    cotangents: list[torch.Tensor],
    edits: Mapping[int, Edit],
    node: Node,
) -> bool:
    """True if edits change no output, and the port's first NaN is at its line of this operation, or
    the gradient that they make at an operand, NaN in some places alone, is in its backward pass:
    gradients that are NaN throughout may come from anywhere."""
    _, values, total = run_backward(graph, cotangents, Made(edits))
    if not all(torch.equal(values[o], graph.values[o]) for o in graph.outputs):
        return False
    if theirs.first and any(theirs.lines.get(o or 0) == theirs.first for o in node.outs):
        return True
    by = [v for r in node.refs if (v := values.get(r)) is not None and v.requires_grad]
    return any(
        not np.isfinite(g).all() and evidence(g) and theirs.index.find(g, TOLERANCE) is not None
        for t in derivatives(total, by)
        if t is not None
        for g in [to_numpy(t)]
    )


def _nearest(theirs: PortGradients, name: str, g: np.ndarray) -> tuple[float, str, float | None]:
    """Distance and place of the port's nearest gradient, and its ratio to this one."""
    if name in theirs.own:
        value: np.ndarray | None = theirs.own[name]
        far, where = theirs.apart(name, g), ""
    else:
        near = theirs.index.nearest(g)
        if not near:
            return float("inf"), "", None
        entry = theirs.index.entries[near[0][1]]
        far, where, value = near[0][0], entry.where, entry.value
    ratio = None
    if value is not None:
        for moved in layouts(value, g.shape)[:6]:
            t = float(np.vdot(g, moved) / max(float(np.vdot(g, g)), 1e-300))
            if np.linalg.norm(moved - t * g) < 1e-8 * np.linalg.norm(moved):
                ratio = t
    return far, where, ratio
