"""When two optimizers are the same: each tensor's way, against what rounding does to it.

The ways are compared from the start on, so that small updates of large parameters count, and tensor
by tensor, so that one that changes much cannot hide another. Gradients of other sizes show
thresholds that the usual ones never reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from twinvit.port.optimizer.model import Problem
from twinvit.port.verdict import FACTOR, UNJUDGED, Evidence, kinds, relative, tolerance

SCALES = (1e-5, 1e5)
"""Factors of the gradients in further runs: norms from 1e-7 to 1e7 with those of the first."""


@dataclass(frozen=True)
class Course:
    """What both sides make of one sequence of gradients.

    Attributes:
        problem: parameters and gradients.
        reference, port: parameters before and after each step, (steps + 1, elements), float64.
        nudged: runs of the reference whose numbers were changed by one eps, of the same shape.
        acted: (steps,) whether the reference's clip changed the gradient; None without a clip.
    """

    problem: Problem
    reference: np.ndarray
    port: np.ndarray
    nudged: Sequence[np.ndarray]
    acted: np.ndarray | None = None


@dataclass
class Ways:
    """Evidence for and against, tensor by tensor.

    Attributes:
        wrong: tensors that are apart, in words.
        open: what rounding decides or what is not a number, in words.
        moved: how many tensors the reference moved.
        still: tensors that neither side moved.
    """

    wrong: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    moved: int = 0
    still: list[str] = field(default_factory=list)


def ways(course: Course) -> Ways:
    """Compare each tensor's way in the port with that in the reference."""
    found = Ways()
    for i, name in enumerate(course.problem.shapes):
        own = course.problem.owner == i
        if not own.any():
            found.still.append(f"{name} (empty)")
            continue
        mine, theirs = way(course.reference, own), way(course.port, own)
        nudged = [way(run, own) for run in course.nudged]
        if not mine.any() and not theirs.any():
            found.still.append(name)
            continue
        found.moved += 1
        _one(name, mine, theirs, nudged, found)
    return found


def way(trajectory: np.ndarray, own: np.ndarray) -> np.ndarray:
    """(steps, elements of one tensor): how far from its start."""
    with np.errstate(invalid="ignore"):
        return trajectory[1:, own] - trajectory[0, own]


def _one(
    name: str, mine: np.ndarray, theirs: np.ndarray, nudged: list[np.ndarray], found: Ways
) -> None:
    far = relative(mine, theirs)
    noise = _noise(mine, nudged, len(mine))
    broken = (kinds(mine) != 0).any(axis=1)
    if broken.any() and np.isfinite(far):
        found.open.append(f"{name} is not finite from step {int(np.argmax(broken)) + 1} on")
    beyond = _gap(mine, theirs) > FACTOR * max(_gap(mine, run) for run in nudged)
    if beyond and far > tolerance(noise):
        found.wrong.append(f"{name} is {far:.1e} apart")
        return
    if noise <= UNJUDGED:
        if far > tolerance(noise):
            found.wrong.append(f"{name} is {far:.1e} apart")
        return
    judged = next((k for k in range(len(mine), 0, -1) if _noise(mine, nudged, k) <= UNJUDGED), 0)
    if judged and relative(mine[:judged], theirs[:judged]) > tolerance(
        _noise(mine, nudged, judged)
    ):
        found.wrong.append(f"{name} is apart by step {judged}")
        return
    found.open.append(
        f"rounding alone moves {name} by {noise:.1e} of its way from step {judged + 1} on"
    )


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    """The distance itself; inf where kinds differ."""
    far = relative(a, b)
    if not a.any():
        return float(np.linalg.norm(b))
    return far * float(np.linalg.norm(a[kinds(a) == 0])) if np.isfinite(far) else far


def _noise(mine: np.ndarray, nudged: list[np.ndarray], steps: int) -> float:
    return max(relative(mine[:steps], run[:steps]) for run in nudged)


def clip_open(courses: Sequence[Course]) -> str:
    """Why the reference's clip was not seen on both of its sides; "" if it was, or is none."""
    seen = [course.acted for course in courses if course.acted is not None]
    acted = np.concatenate(seen) if seen else np.array([True, False])
    if acted.any() and not acted.all():
        return ""
    side = "below" if not acted.any() else "above"
    return f"all drawn gradients are {side} the reference's clip: its other side was not seen"


def evidence(courses: Sequence[Course], names: Sequence[str]) -> tuple[Evidence, Ways]:
    """What the runs show, those of other gradients only against; `names` are reasons beforehand."""
    first = ways(courses[0])
    wrong, open_ = list(first.wrong), [*names, *first.open]
    for course, scale in zip(courses[1:], SCALES):
        wrong += [f"with gradients {scale:g} times as large, {t}" for t in ways(course).wrong]
    clip = clip_open(courses)
    if clip:
        open_.append(clip)
    if not first.moved:
        open_.append("neither side moved a parameter: nothing was compared")
    return Evidence(wrong, open_, first.moved), first
