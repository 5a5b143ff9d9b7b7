"""Gradients: each parameter's, for one random cotangent, and what cuts, scales or passes them
otherwise."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from twinvit.port.gradient_edits import candidates
from twinvit.port.index import SMALLEST, Index, distance, evidence, layouts
from twinvit.port.own_gradients import NOTE, apart, own_gradients
from twinvit.port.record import jax_trace
from twinvit.port.record.graph import Edit, Graph, Node
from twinvit.port.record.jax_interpreter import Interpreter
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.report import Finding
from twinvit.port.search.session import Session

TOLERANCE = 1e-10
LAYERS = 64  # a longer first axis is none of stacked layers
SECONDS = 60.0  # spent on the search for one cause


def reference_gradients(
    graph: Graph, cotangents: list[torch.Tensor], edits: Mapping[int, Edit] | None = None
) -> dict[str, np.ndarray]:
    """Gradients of sum(outputs * cotangents) by each parameter's name, of the graph as it is edited
    now."""
    leaves, _, total = _under_autograd(graph, cotangents, edits or {})
    return dict(zip(leaves, _derivatives(total, list(leaves.values()))))


def _under_autograd(
    graph: Graph, cotangents: list[torch.Tensor], edits: Mapping[int, Edit]
) -> tuple[dict[str, torch.Tensor], dict[int, torch.Tensor], Any]:
    """The parameters by name, every value by id, and sum(outputs * cotangents), with a graph."""
    ids = graph.params()
    leaves = {
        name: graph.values[i].detach().clone().requires_grad_(True)
        for name, i in ids.items()
        if graph.values[i].dtype == torch.float64 and name not in graph.buffers
    }
    with torch.enable_grad():
        changed = {ids[n]: t for n, t in leaves.items()}
        values = graph.run(dict(edits), changed, everything=True)
        total = sum((values[o] * c).sum() for o, c in zip(graph.outputs, cotangents) if c.any())
    return leaves, values, total


def _derivatives(total: Any, by: list[torch.Tensor]) -> list[np.ndarray]:
    """Derivatives by each of these; zeros where it depends on none."""
    if not isinstance(total, torch.Tensor) or not total.requires_grad:
        return [np.zeros(tuple(t.shape)) for t in by]
    grads = torch.autograd.grad(total, by, allow_unused=True)
    return [np.zeros(tuple(t.shape)) if g is None else to_numpy(g) for t, g in zip(by, grads)]


class PortGradients:
    """The port's gradients.

    Attributes:
        index: every value of its backward pass that can be looked up.
        own: by the name of a parameter of the reference, the gradient of the port's one array that
            holds the same values.
        few: gradients and parts of them with too few elements to be looked up, sorted, by size.
        zeros: how many gradients and parts of them are zero, by size.
        broken: of each gradient that holds NaN or infinity their counts, by `kinds`.
        size: the largest finite number in a gradient of the reference.
        first: the line of the port whose derivative first makes NaN of numbers; "" where none does.
        lines: by the id of a value of the reference the line at which the port computes it.
    """

    first = ""
    lines: Mapping[int, str] = {}

    def __init__(
        self,
        index: Index,
        own: Mapping[str, np.ndarray],
        gradients: Sequence[np.ndarray],
        size: float,
    ) -> None:
        self.index = index
        self.own = own
        self.size = size
        self.few: dict[int, list[np.ndarray]] = {}
        self.zeros: Counter[int] = Counter()
        self.broken = {kinds(g) for g in gradients if not np.isfinite(g).all()}
        for part in (part for g in gradients for part in _parts(g)):
            if not np.any(part):
                self.zeros[part.size] += 1
            elif not evidence(part):
                self.few.setdefault(part.size, []).append(np.sort(part, axis=None))

    def has(self, name: str, g: np.ndarray) -> bool:
        """True if this is the port's gradient of a parameter; one of few elements is not judged.

        A parameter whose numbers one array of the port holds is compared with that array's
        gradient. Of another one (fused, split, tied, or all ones) the gradient, or its equal parts
        along the first axis, must be anywhere in the port's backward pass: what the port does to
        the gradient behind that value is not seen.
        """
        if not np.isfinite(g).all():
            if name not in self.own:
                return kinds(g) in self.broken
            theirs = self.own[name]
            return kinds(g) == kinds(theirs) and _finite_apart(g, theirs) <= TOLERANCE
        if name in self.own:
            theirs = self.own[name]
            if not np.isfinite(theirs).all():
                return False
            return (
                not np.any(np.abs(theirs) > TOLERANCE * self.size)
                if self._is_rounding(g)
                else distance(np.sort(g, axis=None), np.sort(theirs, axis=None)) <= TOLERANCE
            )
        return (
            not evidence(g)
            or self._holds(g)
            or any(
                g.shape[0] % n == 0 and g.shape[0] > n and self._holds_parts(np.split(g, n))
                for n in (2, 3, 4)
            )
        )

    def has_cut(self, g: np.ndarray) -> bool:
        """True if the port has a gradient of zeros of this size, or parts of this one."""
        return any(g.size % n == 0 and self.zeros[g.size // n] >= n for n in (1, 2, 3, 4))

    def _holds(self, g: np.ndarray) -> bool:
        if self._is_rounding(g):
            return True
        if evidence(g):
            return self.index.find(g, TOLERANCE) is not None
        mine = np.sort(g, axis=None)
        return any(distance(mine, few) <= TOLERANCE for few in self.few.get(g.size, ()))

    def _holds_parts(self, parts: list[np.ndarray]) -> bool:
        left = [part for part in parts if np.any(part)]
        cut = len(parts) - len(left)  # zeros are no evidence: the port must have as many
        return self.zeros[parts[0].size] >= cut and all(self._holds(part) for part in left)

    def _is_rounding(self, g: np.ndarray) -> bool:
        """True for a gradient that is zero but for rounding (the bias of attention's keys)."""
        return not np.any(np.abs(g) > 1e-12 * self.size)


def kinds(g: np.ndarray) -> tuple[int, int, int, int]:
    """How many elements a gradient has, and how many are NaN, infinity and minus infinity."""
    return g.size, int(np.isnan(g).sum()), int((g == np.inf).sum()), int((g == -np.inf).sum())


def _finite_apart(x: np.ndarray, y: np.ndarray) -> float:
    """Distance of the finite values of two arrays that have as many."""
    x, y = np.sort(x[np.isfinite(x)]), np.sort(y[np.isfinite(y)])
    return distance(x, y) if x.size else 0.0


def _parts(g: np.ndarray) -> Iterator[np.ndarray]:
    """A gradient, those of a stack's layers, and equal parts along each axis."""
    yield g
    if g.ndim >= 2 and 1 < g.shape[0] <= LAYERS:
        yield from g
    for axis, n in itertools.product(range(g.ndim), (2, 3, 4)):
        if g.shape[axis] % n == 0 and g.shape[axis] > n:
            yield from np.split(g, n, axis)


def _own(
    graph: Graph, leaves: Sequence[np.ndarray], gradients: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """The port's gradient of each parameter whose numbers exactly one of its arrays holds."""

    def key(x: np.ndarray) -> bytes:
        return np.sort(x, axis=None).tobytes()

    mine: dict[bytes, list[str]] = {}
    for name, i in graph.params().items():
        value = to_numpy(graph.values[i])
        if name not in graph.buffers and evidence(value):
            mine.setdefault(key(value), []).append(name)
    theirs: dict[bytes, list[np.ndarray]] = {}
    for leaf, g in zip(leaves, gradients):
        stacked = leaf.ndim >= 2 and 1 < leaf.shape[0] <= LAYERS
        for x, part in ((leaf, g), *(zip(leaf, g) if stacked else ())):
            theirs.setdefault(key(x), []).append(part)
    return {
        names[0]: theirs[k][0]
        for k, names in mine.items()
        if len(names) == len(theirs.get(k, ())) == 1
    }


def compare_gradients(
    session: Session, pair: Any, recorded: Any
) -> tuple[list[Finding], str, bool, list[str]]:
    """Findings, a note, whether every difference has a proven cause, and what NaN on both sides
    leaves open.

    `recorded` holds both models as they were compared. `PortGradients.has` says with
    what each gradient is compared; one without an array of its own may be found among any
    intermediate of the port's backward pass.
    """
    graph = session.graph
    generator = torch.Generator().manual_seed(1)
    cotangents = [
        torch.randn(graph.values[o].shape, generator=generator, dtype=torch.float64)
        * graph.values[o].is_floating_point()
        for o in graph.outputs
    ]
    reference = reference_gradients(graph, cotangents)
    plain = graph is recorded.graph
    truth = own_gradients(pair, recorded.graph, [p.mine for p in recorded.compared], cotangents)
    unlike = apart(reference if plain else reference_gradients(recorded.graph, cotangents), truth)
    if plain:
        reference |= {n: truth[n] for n in unlike}
    theirs, own = _port_gradients(graph, pair, recorded, cotangents, reference)
    theirs.lines = {
        i: recorded.index.entries[e].where
        for i, root in session.root.items()
        if (e := session.match.get(root)) is not None and e >= 0
    }
    wrong = [n for n, g in reference.items() if not theirs.has(n, g)]
    judged = sum(1 for n, g in reference.items() if n in own or evidence(g))
    note = f"gradients of {judged} parameters compared, {len(wrong)} without an equal"
    findings: list[Finding] = []
    if unlike:
        note += f"; {NOTE}"
    else:
        findings, wrong = _explained(graph, theirs, cotangents, wrong, reference)
    for name in wrong[:8]:
        far, where, ratio = _nearest(theirs, name, reference[name])
        text = f"the gradient of {name} has no equal in the port" + (
            f"; the nearest is {ratio:.6g} times it" if ratio is not None else ""
        )
        bad = name in own and (~np.isfinite(own[name])).sum()
        if bad:
            text = (
                f"the port's gradient of {name} is NaN or infinite in {bad} of the "
                f"{own[name].size} numbers" + (f", first at {theirs.first}" if theirs.first else "")
            )
        findings.append(Finding("unknown", "", text, name, where, far, far, [name], "grad"))
    return (
        findings,
        note,
        not wrong,
        _unjudged({n: g for n, g in reference.items() if n not in wrong}),
    )


def _unjudged(gradients: Mapping[str, np.ndarray]) -> list[str]:
    """Gradients that are NaN or infinite on both sides and have too few other values."""
    return [
        f"the gradient of {name} is NaN or infinite in {g.size - n} of its {g.size} numbers on "
        "both sides"
        for name, g in gradients.items()
        if (n := int(np.isfinite(g).sum())) < min(g.size, SMALLEST)
    ]


def _port_gradients(
    graph: Graph,
    pair: Any,
    recorded: Any,
    cotangents: list[torch.Tensor],
    reference: dict[str, np.ndarray],
) -> tuple[PortGradients, dict[str, np.ndarray]]:
    """The values of the port's backward pass, and the gradients of parameters that one array of the
    port holds, by name."""
    chosen = recorded.chosen
    aligned = [
        _as_port(to_numpy(graph.values[o]), c.numpy(), theirs)
        for o, c, theirs in zip(graph.outputs, cotangents, recorded.port)
    ]
    floats = pair.floats()
    traced, given = pair.gradient(
        recorded.pure, recorded.arrays, {p: c for p, c in zip(chosen, aligned) if c.any()}
    )
    values = [*pair.leaves, *given]
    index = Index()
    watch = _Watch(index)
    outs, _ = jax_trace.evaluate(traced, values, [-1] * len(values), Interpreter(watch.add))
    gradients = [np.asarray(g) for g in outs]
    for g, i in zip(gradients, floats):
        index.add(np.array(g), "gradient", pair.pure.names[i], [])
        if g.ndim >= 2 and 1 < g.shape[0] <= LAYERS:
            for k in range(g.shape[0]):
                index.add(np.array(g[k]), "gradient", f"{pair.pure.names[i]}[{k}]", [])
    size = max(
        (float(abs(g[np.isfinite(g)]).max(initial=0)) for g in reference.values()), default=0
    )
    own = _own(graph, [pair.leaves[i] for i in floats], gradients)
    found = PortGradients(index, own, gradients, size)
    found.first = watch.first
    return found, own


class _Watch:
    """Passes values on to an index. `first`: the line that first makes a NaN of numbers that are
    none."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.first = ""

    def add(self, value: Any, name: str, where: str, parents: list[int]) -> int:
        if not self.first and getattr(value, "dtype", None) == np.float64:
            self.first = where if np.isnan(value).any() else ""
        return self.index.add(value, name, where, parents)


def _explained(
    graph: Graph,
    theirs: PortGradients,
    cotangents: list[torch.Tensor],
    wrong: list[str],
    reference: dict[str, np.ndarray],
) -> tuple[list[Finding], list[str]]:
    """What explains wrong gradients, and those that stay without an equal."""
    findings: list[Finding] = []
    edits: dict[int, Edit] = {}
    for _ in range(6):
        best = _search(graph, theirs, cotangents, edits, wrong, reference) if wrong else None
        if best is None:
            break
        node, edit, name, text, left = best
        before, after = float(len(wrong)), float(len(left))
        place = node.place
        findings.append(Finding("cause", name, text, place, "", before, after, [place], "grad"))
        edits[node.index] = edit
        wrong = left
    return findings, wrong


def _search(
    graph: Graph,
    theirs: PortGradients,
    cotangents: list[torch.Tensor],
    edits: Mapping[int, Edit],
    wrong: list[str],
    reference: Mapping[str, np.ndarray],
) -> tuple[Node, Edit, str, str, list[str]] | None:
    def explained(name: str, g: np.ndarray) -> bool:
        if name in theirs.own or np.any(g):
            return theirs.has(name, g)
        # Zeros are no evidence: the gradient must have been wrong, and the port have one cut off.
        return not np.any(reference[name]) or (name in wrong and theirs.has_cut(g))

    best: tuple[Node, Edit, str, str, list[str]] | None = None
    budget = 400 if sum(v.numel() for v in graph.values) < 1 << 22 else 24
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
            grads = reference_gradients(graph, cotangents, {**edits, node.index: edit})
        except Exception:
            continue
        left = [n for n, g in grads.items() if not explained(n, g)]
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
    _, values, total = _under_autograd(graph, cotangents, edits)
    if not all(torch.equal(values[o], graph.values[o]) for o in graph.outputs):
        return False
    if theirs.first and any(theirs.lines.get(o or 0) == theirs.first for o in node.outs):
        return True
    by = [v for r in node.refs if (v := values.get(r)) is not None and v.requires_grad]
    return any(
        not np.isfinite(g).all() and evidence(g) and theirs.index.find(g, TOLERANCE) is not None
        for g in _derivatives(total, by)
    )


def _nearest(theirs: PortGradients, name: str, g: np.ndarray) -> tuple[float, str, float | None]:
    """Distance and place of the port's nearest gradient, and its ratio to this one."""
    if name in theirs.own:
        value: np.ndarray | None = theirs.own[name]
        far, where = distance(np.sort(g, axis=None), np.sort(theirs.own[name], axis=None)), ""
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
