"""The rules for the gaps of compared steps: by noise, by a step in float64, by a limit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from shared_vit.errors import UserError, some
from twinvit.lockstep.limits import (
    ALONE,
    ARRAY_DEVIATION,
    ARRAY_RATIO,
    DECIDABLE_DISTANCE,
    DECIDABLE_WITH_DOUBLE,
    DEVIATIONS,
    ERRATIC,
    FAR,
    HUGE,
    SCALAR_FACTOR,
    WHOLE,
    WHOLE_DEVIATION,
    WHOLE_RATIO,
    WINDOW,
)
from twinvit.lockstep.verdict import Difference, Measured, Verdict
from twinvit.parity.noise_rule import DECIDABLE, FACTOR, FLOOR_EPS


def judge_by_noise(
    measured: Sequence[Measured], eps: float, exact: Mapping[int, Verdict] | None = None
) -> Verdict:
    """gap <= 10 noise + 16 eps for every quantity; undecided where the noise exceeds 1e-3.

    The noise at a step is the largest of the nearest measured ones: the last before it, the first
    after it, and its own. exact: {step: the verdict on the same step in float64}. Beyond a noise of
    1e-3 the bound passes wrong formulas, which float64 sees. So a quantity that it decides there is
    decided up to a noise of 3e-2, by the same bound (observed of correct twins that diverge: gaps
    up to a quarter of it, at a noise up to 1.6e-2).
    """
    if not measured:
        return Verdict([], [], nothing=["there was no step"])
    names = list(measured[0].gaps)
    found = np.array([[m.gaps[n] for n in names] for m in measured])
    noise = nearest_noise(measured, names)
    bound = FACTOR * np.minimum(noise, 1.0) + FLOOR_EPS * eps  # more is not decided
    judged = noise <= DECIDABLE
    for i, m in enumerate(measured):
        if (known := (exact or {}).get(m.step)) is not None:
            open_ = np.array([n in known.open for n in names])
            judged[i] |= ~open_ & (noise[i] <= DECIDABLE_WITH_DOUBLE)
    return _verdict(measured, names, found, bound, judged)


def nearest_noise(measured: Sequence[Measured], names: Sequence[str]) -> np.ndarray:
    """float64 [steps, names]: the noise that is each step's limit. Raises UserError without any.

    It is the largest of the step's own, the last before it and the first after it. Of those a noise
    that decides nothing counts for its own step alone: elsewhere a gap that is above the others'
    had its own measured.
    """
    if not any(m.noise is not None for m in measured):
        raise UserError("lockstep: the noise was measured at no step")
    unknown = dict.fromkeys(names, np.nan)
    own = np.array([[(m.noise or unknown)[n] for n in names] for m in measured])
    fit = np.where(own <= DECIDABLE, own, np.nan)
    none = np.full((1, len(names)), np.nan)
    before = _filled(np.concatenate([none, fit[:-1]]))
    after = _filled(np.concatenate([none, fit[:0:-1]]))[::-1]
    near = np.fmax(np.fmax(before, after), own)
    largest = np.nanmax(own, axis=0)  # where none is fit
    return np.where(np.isnan(near), largest, near)


def _filled(rows: np.ndarray) -> np.ndarray:
    """[steps, names]: the last number up to each step that is none NaN."""
    places = np.where(np.isnan(rows), -1, np.arange(len(rows))[:, None])
    last = np.maximum.accumulate(places, axis=0)
    found = np.take_along_axis(rows, np.maximum(last, 0), axis=0)
    return np.where(last < 0, np.nan, found)


def judge_by_reference(
    measured: Sequence[Measured], eps: float, relative_to: Mapping[str, str] | None = None
) -> Verdict:
    """Each side's distance from the float64 step against the other's; undecided where both are
    beyond 0.3.

    The ratio of two distances is a random number: on the digits model in bfloat16 its logarithm has
    a deviation of 0.19 for all arrays together and 0.16 to 0.36 for one. So the limits of 1.25 and
    2 are for its geometric mean over the last 16 steps. At a step by itself the rounding of a
    single example can make one side's distance several times its usual one: it is compared with the
    largest of the other side at the step and the 8 on each side, with twice the limits (observed on
    1,347 steps: 1.8 for all arrays, 2.0 for one).
    Means of fewer than 16 steps have wider limits, as they deviate by more. So have means of ratios
    that vary more than that: three standard errors of theirs, at most the limits of one step alone
    (a run that diverges, lr 0.5 without a clip: the logarithms deviate by 0.37 to 0.49, and a mean
    of correct twins was 1.33). A fault that is there at every step does not vary: its limit stays.
    A scalar's distance on one side is compared with ten times the largest of the other side at
    these steps, or twice its noise where that was measured (by nudges of the products' precision,
    which change it by more than rounding does), whichever is larger. Fewer than 16 steps without
    noise judge it by the distances of all arrays together as well. An array without a true value
    (`relative_to`) is rounding on both sides: it may be as large as twice the distance of the array
    it is measured against, or four times the other side's at these steps (where a softmax is
    saturated it may be larger than the array it belongs to, on both sides).
    """
    if not measured:
        return Verdict([], [], nothing=["there was no step"])
    names = list(measured[0].gaps)
    values = np.array([[m.distances[n] for n in names] for m in measured])  # type: ignore[index]
    values = np.minimum(values, FAR)
    floor = FLOOR_EPS * eps
    ratio = ((values + floor) / (_nearest_largest(values)[..., ::-1] + floor)).max(axis=2)
    limit = np.array([WHOLE_RATIO if n == WHOLE else ARRAY_RATIO for n in names])
    bound = np.broadcast_to(ALONE * limit, ratio.shape).copy()
    deviation = np.where(np.array(names) == WHOLE, WHOLE_DEVIATION, ARRAY_DEVIATION)
    mean, seen = _mean_ratio(values + floor)
    mean, limits = np.exp(mean), _mean_limits(seen, limit, deviation)
    over = mean > limits  # decided together with 15 steps before: shown instead of its own ratio
    ratio, bound = np.where(over, mean, ratio), np.where(over, limits, bound)
    largest = values.max(axis=2)
    decided = values.min(axis=2) <= DECIDABLE_DISTANCE
    whole, noise = names.index(WHOLE), next((m.noise for m in measured if m.noise), None)
    for i, name in enumerate(names):
        other = (relative_to or {}).get(name)
        if i < whole:  # scalars come first
            ratio[:, i], bound[:, i] = _judged_scalar(measured, name, values[:, i], floor)
            if noise is None and len(values) < WINDOW:
                bound[:, i] = np.maximum(bound[:, i], values[:, whole].sum(axis=1) + floor)
            decided[:, i] = decided[:, whole]
        elif other is not None:
            ratio[:, i], bound[:, i] = _judged_rounding(
                values[:, i], ARRAY_RATIO * largest[:, names.index(other)], floor
            )
            decided[:, i] = decided[:, names.index(other)]
    return _verdict(measured, names, ratio, bound, decided)


def _judged_scalar(
    measured: Sequence[Measured], name: str, distances: np.ndarray, floor: float
) -> tuple[np.ndarray, np.ndarray]:
    """([steps], [steps]): the distance of the side that is further off, and its bound."""
    bound = FACTOR * _nearest_largest(distances)[:, ::-1]
    if any(m.noise is not None for m in measured):
        bound = np.maximum(bound, SCALAR_FACTOR * nearest_noise(measured, [name]))
    rows, side = np.arange(len(distances)), (distances - bound).argmax(axis=1)
    return distances[rows, side], bound[rows, side] + floor


def _judged_rounding(
    distances: np.ndarray, bound: np.ndarray, floor: float
) -> tuple[np.ndarray, np.ndarray]:
    """([steps], [steps]): of an array that is rounding alone, the distance of the side that is
    further off, and its bound: `bound`, or that of any array at a step alone."""
    alone = ALONE * ARRAY_RATIO * _nearest_largest(distances)[:, ::-1]
    bounds = np.maximum(bound[:, None], alone) + floor
    rows, side = np.arange(len(distances)), (distances - bounds).argmax(axis=1)
    return distances[rows, side], bounds[rows, side]


def _nearest_largest(values: np.ndarray) -> np.ndarray:
    """[steps, ...] of [steps, ...]: the largest of the 8 steps before, the step, and 8 after."""
    half = WINDOW // 2
    rows = (values[max(0, i - half) : i + half + 1].max(axis=0) for i in range(len(values)))
    return np.stack(list(rows))


def _mean_ratio(distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([steps, names], [steps, names]) of [steps, names, 2]: the logarithm of the geometric mean,
    at least 0, of the sides' ratio over the last 16 steps, or over all where there are fewer, and
    the deviation of that mean as these steps show it."""
    log = np.log(distances[..., 0] / distances[..., 1])
    mean, deviation = np.zeros_like(log), np.zeros_like(log)
    for i in range(len(log)):
        rows = log[max(0, i + 1 - WINDOW) : i + 1]
        mean[i] = np.abs(rows.mean(axis=0))
        if len(rows) > 1:
            deviation[i] = rows.std(axis=0, ddof=1) / math.sqrt(len(rows))
    return mean, deviation


def _mean_limits(seen: np.ndarray, limit: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """[steps, names]: the limits of the mean ratio up to each step, of which `seen` is the
    deviation seen. They widen for the mean of fewer than 16 steps, as its deviation does, not
    beyond those of one step alone; and where the ratios vary more than they usually do."""
    steps = np.minimum(np.arange(1, len(seen) + 1), WINDOW)[:, None]
    wide = np.where(steps < WINDOW, DEVIATIONS * deviation / np.sqrt(steps), 0.0)
    wide = np.exp(np.maximum(np.log(limit), np.maximum(wide, ERRATIC * seen)))
    return np.minimum(wide, ALONE * limit)


def judge_by_limit(measured: Sequence[Measured], limit: float) -> Verdict:
    """Every gap at most `limit`; undecided where a number is finite on neither side."""
    if not measured:
        return Verdict([], [], nothing=["there was no step"])
    names = list(dict.fromkeys(n for m in measured for n in m.gaps))
    values = np.array([[m.gaps.get(n, 0.0) for n in names] for m in measured])
    bound = np.full(values.shape, limit)
    return _verdict(measured, names, values, bound, np.ones(values.shape, bool))


def _verdict(
    measured: Sequence[Measured],
    names: Sequence[str],
    values: np.ndarray,
    bound: np.ndarray,
    judged: np.ndarray,
) -> Verdict:
    """The verdict of values and bounds [steps, names], of which those `judged` count.

    What is finite on one side alone differs, whatever the bound; on neither, nothing is decided.
    """
    apart = np.array([[n in m.apart for n in names] for m in measured], bool)
    vague = np.array([[n in m.vague for n in names] for m in measured], bool)
    values, bound = np.where(apart, HUGE, values), np.where(apart, 0.0, bound)
    judged = apart | (judged & ~vague)
    outside = judged & ~(values <= bound)
    differences: list[Difference] = []
    if outside.any():
        i = int(np.argmax(outside.any(axis=1)))
        differences = [
            Difference(measured[i].step, names[int(j)], float(values[i, j]), float(bound[i, j]))
            for j in np.flatnonzero(outside[i])
        ]
        differences.sort(key=lambda d: (_is_sum(names, d.name), -d.gap / max(d.bound, 1e-300)))
    open_ = {
        n: [measured[int(i)].step for i in np.flatnonzero(~judged[:, j])]
        for j, n in enumerate(names)
        if not judged[:, j].all()
    }
    steps, decided = [m.step for m in measured], [bool(row.all()) for row in judged]
    return Verdict(steps, decided, differences, _nothing_to_compare(measured), open_)


def _sums(gaps: Mapping[str, float]) -> list[str]:
    """The scalars and `whole`, which come first."""
    names = list(gaps)
    return names[: names.index(WHOLE) + 1]


def _is_sum(names: Sequence[str], name: str) -> bool:
    """Whether a quantity sums others up: the scalars and `whole`; an array says where."""
    return WHOLE in names and list(names).index(name) <= list(names).index(WHOLE)


def _nothing_to_compare(measured: Sequence[Measured]) -> list[str]:
    always = set.intersection(*(set(m.zero) for m in measured))
    return [f"{some(sorted(always))} zero at every step"] if always else []
