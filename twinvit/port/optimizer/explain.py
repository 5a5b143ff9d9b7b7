"""What differs between a `torch.optim` optimizer and an Optax transformation, and the proof.

The same random gradients go through both in float64. A NumPy model of the reference (checked
against the reference's own trajectory) is then edited, one known difference at a time, until it
reproduces the port's trajectory to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from twinvit.port.envelope import versions
from twinvit.port.errors import PortError
from twinvit.port.optimizer import search
from twinvit.port.optimizer.fixes import fix_of
from twinvit.port.optimizer.judge import SCALES, Course, Ways, evidence, way, ways
from twinvit.port.optimizer.model import Problem, Settings, simulate
from twinvit.port.optimizer.one_edit import Edit
from twinvit.port.optimizer.run import Reference, by_names, jax_orders, run_optax, run_torch
from twinvit.port.report import Finding, Operation, Report
from twinvit.port.verdict import FACTOR, MOST, Evidence, decide, relative, tolerance

# Names and shapes that decay masks look at: kernels, biases, norms, an embedding, a convolution.
SHAPES = {
    "embed.weight": (5, 3),
    "conv.weight": (2, 3, 2, 2),
    "conv.bias": (2,),
    "norm.weight": (4,),
    "norm.bias": (4,),
    "linear.weight": (4, 3),
    "linear.bias": (4,),
    "head.weight": (3, 4),
}
JAX_NAMES = {
    "embed.weight": "embed/embedding",
    "conv.weight": "conv/kernel",
    "conv.bias": "conv/bias",
    "norm.weight": "norm/scale",
    "norm.bias": "norm/bias",
    "linear.weight": "linear/kernel",
    "linear.bias": "linear/bias",
    "head.weight": "head/kernel",
}
NUDGED_RUNS = 3
NARROW = search.NARROW


def explain_optimizer(
    torch_optimizer_factory: Callable[[Any], Any],
    optax_transform: Any,
    steps: int = 20,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    jax_names: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Report:
    """Say what an Optax transformation computes that a PyTorch optimizer does not.

    Args:
        torch_optimizer_factory: takes the parameters and returns an optimizer, or a tuple of an
            optimizer (or several: Muon, and AdamW for the rest) and, in any order, schedulers
            (stepped after each step) and a clip: the `max_norm` of `clip_grad_norm_`, or a function
            of the parameters called before each step. If its argument is called `model` or
            `module` it gets a module, if `named_parameters` (or `named_params`) those, else the
            list of parameters.
        optax_transform: `optax.GradientTransformation`, or a function from parameters to one.
        steps: steps of both; schedules are judged as far as these go.
        shapes: parameters by their PyTorch names; by default a set of eight small ones.
        jax_names: PyTorch name to path in the JAX tree ("linear/kernel"); by default its dots
            become slashes. What is called "kernel" is given to Optax with its axes in Flax's order,
            (inputs, outputs).
        seed: draws parameters and gradients.

    Returns:
        A report with what="optimizer"; its operations are the steps. It is "same" where every
        tensor's way is the same to rounding and something moved, also with gradients of other
        sizes, or differs by no more than a schedule or an accumulator in float32 does;
        "undecided" where rounding decides, nothing changed, a number is not finite, the reference's
        clip acted always or never, or names that were not given decide.

    Raises:
        PortError: a side could not be run.
    """
    if steps < 3:
        raise PortError(f"explain_optimizer: steps={steps} shows too little; give at least 3")
    given = (shapes is not None, jax_names is not None)
    if shapes is None:
        shapes, jax_names = SHAPES, jax_names or JAX_NAMES
    named = {name: (jax_names or {}).get(name, name.replace(".", "/")) for name in shapes}
    problem = _draw({name: tuple(shape) for name, shape in shapes.items()}, steps, seed)
    problem = replace(problem, orders=jax_orders(problem.shapes, named))
    if not problem.size:
        return _nothing(shapes)
    first, *_ = found = _runs(torch_optimizer_factory, optax_transform, problem, named, seed)
    references, courses = [r for r, _ in found], [c for _, c in found]
    open_ = by_names(torch_optimizer_factory, optax_transform, problem, named, given)
    shown, tensors = evidence(courses, open_)
    report = _report(first, shown, tensors, steps)
    if not shown.wrong:
        return report
    at = next(i for i, course in enumerate(courses) if ways(course).wrong)
    return _explained(report, references, courses, at)


Run = tuple["Reference", Course]


def _runs(
    factory: Callable[[Any], Any],
    transform: Any,
    problem: Problem,
    names: Mapping[str, str],
    seed: int,
) -> list[Run]:
    """Both sides on the random gradients, and on much smaller and much larger ones."""
    problems = [problem, *(replace(problem, gradients=problem.gradients * s) for s in SCALES)]
    found = []
    for drawn, port in zip(problems, run_optax(transform, problems, names), strict=True):
        reference = run_torch(factory, drawn)
        nudged = [
            run_torch(factory, drawn.nudged(seed + 1 + run), seed + 1 + run).trajectory
            for run in range(NUDGED_RUNS)
        ]
        course = Course(drawn, reference.trajectory, port, nudged, reference.acted)
        found.append((reference, course))
    return found


def _report(run: Run, shown: Evidence, tensors: Ways, steps: int) -> Report:
    """The verdict and how it was reached, without findings."""
    reference, course = run
    noise = np.zeros(steps)
    for nudged in course.nudged:
        noise = np.maximum(noise, _distances(reference.trajectory, nudged))
    limit = _limit(noise)
    distances = _distances(reference.trajectory, course.port)
    worst = float(distances.max())
    verdict = decide(shown)
    unseen = [
        f"schedules after step {steps}",
        "clips and thresholds outside 1e-7 to 1e7",
        "gradients that are not finite",
    ]
    if tensors.still:
        unseen.append(f"what moves {', '.join(tensors.still)}: neither side did")
    return Report(
        verdict,
        verdict == "same",
        worst,
        worst,
        operations=[
            Operation(i, f"step {i + 1}", reference.name, float(d), float(n), _status(d, limit))
            for i, (d, n) in enumerate(zip(distances, noise, strict=True))
        ],
        notes=[
            f"{steps} steps, {course.problem.size} parameters in {len(course.problem.shapes)} "
            "tensors, the same gradients in float64; distances are of parameters, relative to how "
            "far they moved",
            *(
                ["what is called kernel was given to Optax in Flax's order, (inputs, outputs)"]
                if course.problem.orders
                else []
            ),
            *(
                f"{reference.name} computes in {rounded}, which was left out on both sides"
                for rounded in reference.rounded
            ),
        ],
        unseen=unseen,
        reasons=shown.wrong if verdict == "different" else shown.open,
        models={"torch": reference.name, "jax": "optax"},
        versions=versions(),
    )


def _nothing(shapes: Mapping[str, Sequence[int]]) -> Report:
    reason = f"{', '.join(shapes) or 'shapes='} has no number: nothing was compared"
    return Report("undecided", False, 0.0, 0.0, reasons=[reason])


def _limit(noise: np.ndarray) -> float:
    """Up to which distance over all tensors a search calls a model of a side that side."""
    worst = float(noise.max())
    return tolerance(worst if np.isfinite(worst) else 0.0)


def _explained(
    report: Report, references: list[Reference], courses: list[Course], at: int
) -> Report:
    """The report with what makes the two different, found on the gradients number `at`."""
    reference, course = references[at], courses[at]
    noise = np.array([_distances(course.reference, run) for run in course.nudged])
    limit = _limit(noise)
    distances = _distances(course.reference, course.port)

    def left(edits: list[Edit], settings: Settings) -> int:
        rest = [(r, c) for i, (r, c) in enumerate(zip(references, courses)) if i != at]
        return sum(bool(_tensors_left(r, c, edits, settings)) for r, c in rest if r.settings)

    found = _search(reference, course.problem, course.port, limit, left)
    if found is None:
        findings = [_unknown(reference, course.problem, course.port, distances, limit)]
        return replace(report, verdict="different", explained=False, findings=findings)
    notes = list(report.notes)
    if found.others:
        notes.append("explained as well by: " + "; ".join(found.others))
    findings = [_finding(edit, reference, found.distance) for edit in found.edits]
    findings += _left(reference, course, found, distances)
    for i, scale in enumerate((1.0, *SCALES)):
        if i != at and references[i].settings is not None:
            findings += _left_at(references[i], courses[i], found, scale)
    explained = all(f.kind != "unknown" for f in findings)
    if all(f.kind == "precision" for f in findings) and report.distance <= NARROW:
        return replace(
            report,
            verdict="same",
            explained=True,
            remaining=found.distance,
            findings=findings,
            notes=notes,
            reasons=["the same formulas: what differs is computed in a narrower type on one side"],
        )
    return replace(
        report,
        explained=explained,
        remaining=found.distance,
        findings=findings,
        notes=notes,
        reasons=[] if explained else report.reasons,
    )


def _left(
    reference: Reference, course: Course, found: search.Found, distances: np.ndarray
) -> list[Finding]:
    """What a tensor that moves little still differs by, beside those that the search looked at."""
    tensors = _apart(course, found.settings, 0.0)
    if not tensors:
        return []
    rest = _unknown(reference, course.problem, course.port, distances, 0.0)
    return [replace(rest, text=f"more differs in {', '.join(tensors)}", places=tensors)]


def _left_at(
    reference: Reference, course: Course, found: search.Found, scale: float
) -> list[Finding]:
    """What the same edits leave with gradients of another size."""
    tensors = _tensors_left(reference, course, found.edits, found.settings)
    if not tensors:
        return []
    distances = _distances(course.reference, course.port)
    rest = _unknown(reference, course.problem, course.port, distances, 0.0)
    text = f"with gradients {scale:g} times as large, more differs in {', '.join(tensors)}"
    return [replace(rest, text=text, places=tensors)]


def _tensors_left(
    reference: Reference, course: Course, edits: Sequence[Edit], settings: Settings
) -> list[str]:
    """Tensors that the edits do not explain with gradients of another size."""
    model = copy.copy(settings)
    if reference.settings is not None and not any("clip" in e.conflicts for e in edits):
        model.clip = reference.settings.clip  # it may act here alone
    noise = max(float(_distances(course.reference, run).max()) for run in course.nudged)
    return _apart(course, model, noise)


def _apart(course: Course, model: Settings, noise: float) -> list[str]:
    """Tensors whose way a model of the port does not reproduce."""
    problem = course.problem
    run = simulate(model, problem, course.port if model.solve else None)
    limit = max(MOST, FACTOR * noise)
    return [
        name
        for i, name in enumerate(problem.shapes)
        if (own := problem.owner == i).any()
        and relative(way(course.port, own), way(run, own)) > limit
    ]


def _search(
    reference: Reference,
    problem: Problem,
    port: np.ndarray,
    limit: float,
    left: Callable[[list[Edit], Settings], int],
) -> search.Found | None:
    """The reference's settings changed until it is the port; None where that does not succeed."""
    settings = reference.settings
    if settings is None or not np.isfinite(port).all():
        return None
    own = float(_distances(reference.trajectory, simulate(settings, problem)).max())
    if not own <= limit:
        reference.note = f"the model of {reference.name} is {own:.1e} from its own trajectory"
        return None
    return search.explain(settings, problem, port, limit, left)


def _finding(edit: Edit, reference: Reference, after: float) -> Finding:
    fix = "" if reference.settings is None else fix_of(edit, reference.settings)
    return Finding(
        kind="precision" if edit.cause == "" else "cause",
        cause=edit.cause,
        text=edit.text,
        torch=f"{reference.name}: {edit.setting}",
        jax="",
        before=edit.before,
        after=after,
        places=edit.places,
        what="optimizer",
        fix=fix,
    )


def _status(distance: float, limit: float) -> str:
    return "found" if distance <= limit else "lost"


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(steps,) L2 distances of the parameters after each step over the furthest that `a` went."""
    with np.errstate(all="ignore"):
        moved = np.nan_to_num(np.linalg.norm(a - a[0], axis=1), posinf=0.0).max()
        d = np.linalg.norm(a[1:] - b[1:], axis=1) / (moved or 1.0)
    return np.where(np.isfinite(d), d, np.inf)


def _draw(shapes: Mapping[str, tuple[int, ...]], steps: int, seed: int) -> Problem:
    """Parameters near 1 in size, gradients over many orders of size so that every epsilon shows."""
    rng = np.random.default_rng(seed)
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    size = sum(sizes)
    scale = 10.0 ** rng.uniform(-8, 0, size)
    # Norms from 1/100 to 100: any usual clip acts in some steps and not in others.
    norms = 10.0 ** rng.permutation(np.linspace(-2, 2, steps))
    owner = np.repeat(np.arange(len(sizes)), sizes)
    # One large one in each tensor: what moves less than its own rounding shows nothing.
    scale[np.unique(owner, return_index=True)[1]] = 1.0
    gradients = rng.standard_normal((steps, size)) * scale
    if size:
        gradients *= (norms / np.linalg.norm(gradients, axis=1))[:, None]
    return Problem(dict(shapes), rng.standard_normal(size), gradients, owner)


def _unknown(
    reference: Reference,
    problem: Problem,
    port: np.ndarray,
    distances: np.ndarray,
    limit: float,
) -> Finding:
    """Where the two part: step, tensors, and the shape of the difference."""
    first = int(np.argmax(distances > limit))
    with np.errstate(invalid="ignore"):
        mine, theirs = np.diff(reference.trajectory, axis=0), np.diff(port, axis=0)
        apart = np.abs(reference.trajectory[1:] - port[1:]).max(axis=0)
    moved = float(np.nan_to_num(np.abs(mine), posinf=0.0).max()) or 1.0
    tensors = [
        name
        for i, name in enumerate(problem.shapes)
        if not apart[problem.owner == i].max(initial=0.0) <= 1e-12 * moved
    ]
    text = [f"no known difference explains it; they part at step {first + 1}"]
    if len(tensors) < len(problem.shapes):
        text.append("only in " + ", ".join(tensors))
    a, b = mine[first], theirs[first]
    numbers = np.isfinite(a).all() and np.isfinite(b).all()
    scale = float(a @ b / (a @ a)) if numbers and a @ a else np.nan
    if numbers and np.linalg.norm(b - scale * a) <= 1e-10 * np.linalg.norm(b):
        text.append(f"that step is the reference's times {scale:.6g}")
    if reference.note:
        text.append(reference.note)
    worst = float(distances.max())
    return Finding(
        kind="unknown",
        cause="",
        text="; ".join(text),
        torch=f"{reference.name}: step {first + 1}",
        jax="",
        before=worst,
        after=worst,
        places=tensors,
        what="optimizer",
    )
