"""A step by both sides, how far apart its results are, and the verdict over many steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from shared_vit.errors import UserError, some
from twinvit.parity.noise_rule import DECIDABLE, FACTOR, FLOOR_EPS, STATUS
from twinvit.port.verdict import DIFFERENT, SAME, UNDECIDED

Arrays = Mapping[str, np.ndarray]
Step = Callable[[Any, Any], Arrays]  # (state, batch) -> {name: array}
Noise = Callable[[Any, Any], Iterable[Arrays]]  # (state, batch) -> results of the same step, nudged

WHOLE = "whole"  # the quantity that is all arrays of a step together
SEEDS = (1, 2, 3)  # of the nudges; five of them spread by 4.5 times, hence three and the factor
NOISE_EVERY = 40  # noise is measured at one compared step of so many,
NOISE_FIRST = (1, 2, 4, 8, 16)  # and at these: it grows from a head of zeros
# Where two sides may round differently, each one's distance from a float64 step is compared with
# the other's: that of all arrays together, and that of a single one.
WHOLE_RATIO, ARRAY_RATIO = 1.25, 2.0
WINDOW, ALONE = 16, 2.0  # steps whose mean obeys these limits; one step's are twice as wide
# The logarithm of the ratio at one step deviates by so much; means of fewer steps than WINDOW are
# held to as many deviations as the mean of WINDOW is, and where ratios vary more, to ERRATIC of
# those that are seen.
WHOLE_DEVIATION, ARRAY_DEVIATION, DEVIATIONS, ERRATIC = 0.19, 0.36, 4.7, 3.0
DECIDABLE_DISTANCE = 0.3
DECIDABLE_WITH_DOUBLE = DECIDABLE_DISTANCE / FACTOR  # a float32 noise, where float64 decides too
SCALAR_FACTOR = 2.0  # times the noise of a scalar by nudges of the products' precision
_HUGE = 1e308  # stands for infinity, which JSON lacks
_FAR = 1e100  # distances beyond are alike, and their ratios are numbers


@dataclass(frozen=True)
class Measured:
    """One step from one state by both sides.

    gaps: {quantity: distance of b from a}, relative L2; a scalar named "loss" over max(1, |loss|).
    noise: the same of a from itself nudged, the largest of all nudges; None where not measured.
    distances: {quantity: (of a, of b)} from a step in float64; None without one. zero: arrays that
    are zero on both sides, in which nothing was compared. apart: quantities with a number that is
    finite on one side alone. vague: those with one that is finite on neither.
    """

    step: int
    gaps: dict[str, float]
    noise: dict[str, float] | None = None
    distances: dict[str, tuple[float, float]] | None = None
    zero: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()
    vague: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """A quantity outside its bound."""

    step: int
    name: str
    gap: float
    bound: float

    def __str__(self) -> str:
        return f"{self.name}: {self.gap:.2g} at step {self.step}, bound {self.bound:.2g}"


@dataclass
class Verdict:
    """Which steps were decided, and the first that differ.

    steps: numbers of the compared steps. decided: one flag a step. differences: those of the first
    step that differs, the worst first. nothing: reasons why there was nothing to compare. open:
    {quantity: steps at which it is undecided}. among: of which steps these are, in words, where
    they are not all.
    """

    steps: list[int]
    decided: list[bool]
    differences: list[Difference] = field(default_factory=list)
    nothing: list[str] = field(default_factory=list)
    open: dict[str, list[int]] = field(default_factory=dict)
    among: str = ""

    @property
    def verdict(self) -> str:
        """ "same" where every step was decided, "different" where one differs, else "undecided"."""
        if self.differences:
            return DIFFERENT
        return SAME if self.steps and all(self.decided) and not self.nothing else UNDECIDED

    @property
    def matched(self) -> bool:
        return self.verdict == SAME

    @property
    def exit_status(self) -> int:
        """0: same; 1: different; 2: undecided."""
        return STATUS[self.verdict]

    def line(self) -> str:
        """The verdict in one line."""
        among = f" ({self.among})" if self.among else ""
        counted = f"lockstep: decided {sum(self.decided)} of {len(self.steps)} steps{among}"
        if self.differences:
            first = self.differences[0]
            return f"{counted}, {DIFFERENT} (first at step {first.step}, {first.name})"
        if self.verdict == UNDECIDED:
            return f"{counted}, {UNDECIDED} ({some([*self.nothing, *self.undecided()])})"
        return f"{counted}, {SAME}"

    def undecided(self) -> list[str]:
        """A line for each quantity that is undecided somewhere, and where."""
        return [f"{name} at {self.spans(steps)}" for name, steps in self.open.items()]

    def spans(self, steps: Sequence[int]) -> str:
        """Some of the compared steps in words: "steps 1, 4 to 9"."""
        places = sorted(self.steps.index(s) for s in steps)
        runs: list[list[int]] = []
        for i in places:
            if runs and i == runs[-1][1] + 1:
                runs[-1][1] = i
            else:
                runs.append([i, i])
        text = [
            f"{self.steps[a]}" if a == b else f"{self.steps[a]} to {self.steps[b]}" for a, b in runs
        ]
        return f"step{'s' if len(places) > 1 else ''} {some(text)}"

    def joined(self, other: Verdict) -> Verdict:
        """The verdict of two comparisons at the same steps, both of which must hold."""
        found = sorted((v for v in (self, other) if v.differences), key=_first_step)
        return Verdict(
            self.steps,
            [a and b for a, b in zip(self.decided, other.decided, strict=True)],
            found[0].differences if found else [],
            [*self.nothing, *other.nothing],
            self.open | other.open,
            self.among,
        )


def _first_step(verdict: Verdict) -> int:
    return verdict.differences[0].step


def run(
    step_a: Step,
    step_b: Step,
    states: Iterable[Any],
    batches: Iterable[Any],
    noise: Noise | None = None,
    *,
    reference: Step | None = None,
    limit: float | None = None,
    relative_to: Mapping[str, str] | None = None,
    noise_every: int = NOISE_EVERY,
) -> Verdict:
    """Take a step on both sides from each of `states` on the batch beside it, and judge the gaps.

    States and batches are read one pair at a time, so a generator may train between them. Give one
    of three yardsticks. `noise`: results of `step_a` at nudged states, see `nudges`; the sides
    agree if gap <= 10 noise + 16 eps, with eps that of the arrays' dtype; undecided where the noise
    exceeds 1e-3. Where the noise of `step_a` does not explain an array's gap, that of `step_b` is
    measured too, if it comes from `nudges`. `reference`: the step in float64, for sides that round
    differently on purpose (bfloat16); each side's distance from it must be within 1.25 times the
    other's, 2 times for one array.
    `limit`: the largest gap, for a map that does not amplify rounding, such as an optimizer's in
    float64. `relative_to` names, for an array without a true value (a gradient that is zero but for
    rounding), the array on whose norm its gap is measured.

    Raises UserError where the yardstick is missing, or the sides return other names or shapes, or
    arrays of a dtype that NumPy lacks (bfloat16).
    """
    if sum(y is not None for y in (noise, reference, limit)) != 1:
        raise UserError("lockstep.run needs one yardstick: noise, reference or limit")
    measured: list[Measured] = []
    eps, last = 0.0, None
    for number, (state, batch) in enumerate(zip(states, batches), 1):
        a, b = step_a(state, batch), step_b(state, batch)
        eps = max(eps, epsilon(a))
        exact = reference(state, batch) if reference else None
        found = measure(number, a, b, None, exact, relative_to)
        if noise and (noise_is_due(number, noise_every) or exceeds(found, last, eps)):
            own = noise_of(a, noise(state, batch), relative_to)
            if isinstance(noise, Nudges) and arrays_exceed(found, own, eps):
                others = noise_of(b, noise.of(step_b)(state, batch), relative_to)
                own = of_both(own, others)
            found = replace(found, noise=own)
            last = latest(last, own)
        measured.append(found)
    if noise is not None:
        return judge_by_noise(measured, eps)
    if reference is not None:
        return judge_by_reference(measured, eps, relative_to)
    return judge_by_limit(measured, limit or 0.0)


def noise_is_due(number: int, every: int = NOISE_EVERY) -> bool:
    """Whether noise is measured at the compared step of this number, from 1, whatever its gaps."""
    return number in NOISE_FIRST or (number - 1) % every == 0


def nudge(arrays: Arrays, seed: int, eps: float | None = None) -> dict[str, np.ndarray]:
    """Each weight times 1 + eps (2 r - 1), r uniform in [0, 1), eps that of its dtype or as given.

    Raises UserError for other dtypes than float32 and float64.
    """
    rng = np.random.default_rng(seed)
    moved = {}
    for name, array in arrays.items():
        if array.dtype not in (np.float32, np.float64):
            raise UserError(
                f"lockstep: {name} is {array.dtype}, and float32 and float64 can be nudged: name a "
                "`move` to nudges(step, move)"
            )
        r = rng.random(array.shape, array.dtype)
        by = np.finfo(array.dtype).eps if eps is None else eps
        moved[name] = array * (1 + by * (2 * r - 1)).astype(array.dtype)
    return moved


@dataclass(frozen=True)
class Nudges:
    """The noise of a step: its results at the same state nudged three times."""

    step: Step
    move: Callable[[Any, int], Any]

    def __call__(self, state: Any, batch: Any) -> Iterator[Arrays]:
        for seed in SEEDS:
            yield self.step(self.move(state, seed), batch)

    def of(self, step: Step) -> Nudges:
        """That of another step."""
        return replace(self, step=step)


def nudges(step: Step, move: Callable[[Any, int], Any] = nudge) -> Nudges:
    """The noise of a step: its results at the same state nudged three times.

    `move(state, seed)` returns the nudged state; by default a state is a dictionary of arrays.
    """
    return Nudges(step, move)


def epsilon(arrays: Arrays) -> float:
    """The machine epsilon of the arrays, scalars left out; the largest of several dtypes."""
    kinds = {np.asarray(a).dtype for a in arrays.values() if np.ndim(a)}
    if unfit := [str(d) for d in kinds if d.kind not in "fiub"]:
        raise UserError(
            f"lockstep: the step returned {some(unfit)}: return float32, which holds bfloat16 "
            "exactly, or float64"
        )
    found = [float(np.finfo(d).eps) for d in kinds if d.kind == "f"]
    if not found:
        raise UserError("lockstep: the step returned no floating-point array")
    return max(found)


def measure(
    step: int,
    a: Arrays,
    b: Arrays,
    nudged: Iterable[Arrays] | None = None,
    reference: Arrays | None = None,
    relative_to: Mapping[str, str] | None = None,
) -> Measured:
    """Compare the two results of one step; raises UserError for other names or shapes."""
    noise = None if nudged is None else noise_of(a, nudged, relative_to)
    distances = None
    if reference is not None:
        of_a, of_b = gaps(a, reference, relative_to), gaps(b, reference, relative_to)
        distances = {n: (of_a[n], of_b[n]) for n in of_a}
    zero = tuple(n for n in a if np.ndim(a[n]) and _is_zero(a[n]) and _is_zero(b[n]))
    found = gaps(b, a, relative_to)
    return Measured(step, found, noise, distances, zero, *_not_finite(a, b, found))


def noise_of(
    a: Arrays, nudged: Iterable[Arrays], relative_to: Mapping[str, str] | None = None
) -> dict[str, float]:
    """`{quantity: the largest distance of the nudged results from a}`."""
    noise: dict[str, float] = {}
    for other in nudged:
        noise = {n: max(noise.get(n, 0.0), g) for n, g in gaps(other, a, relative_to).items()}
    return noise


def exceeds(measured: Measured, noise: Mapping[str, float] | None, eps: float) -> bool:
    """Whether a gap is above what the noise of an earlier step explains; then the step's own is
    measured."""
    if noise is None:
        return True
    return any(g > FACTOR * noise[n] + FLOOR_EPS * eps for n, g in measured.gaps.items())


def arrays_exceed(measured: Measured, noise: Mapping[str, float], eps: float) -> bool:
    """Whether a's noise explains the scalars and all arrays together, and not a single array.

    Then b's counts as well, see `of_both`. Where a softmax is saturated one side's gradients may be
    exactly zero and the other's a last place of one (observed in float64: the noise of `cls_token`
    3e-15 to 3e-13 on one side, 9e-12 on the other). A side that rounds more than it should (TF32 in
    place of float32) does so in all arrays together, whose gap is held to a's noise alone.
    """
    of_sums = replace(measured, gaps={n: measured.gaps[n] for n in _sums(measured.gaps)})
    return exceeds(measured, noise, eps) and not exceeds(of_sums, noise, eps)


def held(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    """a's noise, of the scalars and all arrays together at most ten times b's.

    A side whose products take ten bits in place of float32's has 10 to 30 times the noise, and
    would explain a fifth of its distance by it (parity_tests/test_lockstep_plants.py), more in a
    deeper model.
    """
    return dict(a) | {n: min(a[n], FACTOR * b[n]) for n in _sums(a)}


def of_both(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    """The larger noise of each quantity. b's counts where it decides: a side that is another one at
    each call (masks drawn afresh) would explain everything by its noise."""
    return {n: max(x, b[n]) if b[n] <= DECIDABLE else x for n, x in a.items()}


def latest(
    before: Mapping[str, float] | None, noise: Mapping[str, float] | None
) -> dict[str, float]:
    """The last noise of each quantity that decides: what `exceeds` takes."""
    known = before or {}
    return {n: x if x <= DECIDABLE else known.get(n, 0.0) for n, x in (noise or {}).items()}


def _not_finite(
    a: Arrays, b: Arrays, found: Mapping[str, float]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The quantities with a number that is finite on one side alone, and on neither.

    found: their gaps. A number that is not finite makes its difference so, and the gap infinite.
    """
    apart, vague, arrays = [], [], False
    for name in a:
        if found[name] < _HUGE:
            continue
        x, y = np.isfinite(a[name]), np.isfinite(b[name])
        if np.any(x != y):
            apart.append(name)
        elif not np.all(x):
            vague.append(name)
        else:
            continue
        arrays |= bool(np.ndim(a[name]))
    if arrays:
        (apart if any(np.ndim(a[n]) for n in apart) else vague).append(WHOLE)
    return tuple(apart), tuple(vague)


def _is_zero(array: np.ndarray) -> bool:
    """Whether all numbers are zero; the first that is not answers for most arrays."""
    flat = np.ravel(array)
    return not (flat.size and flat[0]) and not np.any(flat)


def gaps(b: Arrays, a: Arrays, relative_to: Mapping[str, str] | None = None) -> dict[str, float]:
    """`{quantity: distance of b from a}`: scalars, `whole`, and each array.

    Relative L2 in float64; infinite where it is not a number. Raises UserError for other names or
    shapes.
    """
    relative_to = relative_to or {}
    if set(a) != set(b):
        raise UserError(f"the sides return other arrays: {some(sorted(set(a) ^ set(b)))}")
    scalars, squares, norms = {}, {}, {}
    for name in a:
        x, y = np.asarray(a[name], np.float64), np.asarray(b[name], np.float64)
        if x.shape != y.shape:
            raise UserError(f"{name} has shape {x.shape} on one side, {y.shape} on the other")
        if x.ndim == 0:
            size = abs(float(x))
            scale = max(1.0, size) if name == "loss" else size
            scalars[name] = _ratio(abs(float(x - y)), scale)
        else:
            x, difference = x.ravel(), (x - y).ravel()
            norms[name], squares[name] = float(x @ x), float(difference @ difference)
    found = {WHOLE: _ratio(math.sqrt(sum(squares.values())), math.sqrt(sum(norms.values())))}
    for name, square in squares.items():
        scale = norms[relative_to.get(name, name)]
        found[name] = _ratio(math.sqrt(square), math.sqrt(scale))
    return scalars | found


def _ratio(distance: float, scale: float) -> float:
    if distance == 0:
        return 0.0
    ratio = distance / scale if scale else math.inf
    return min(ratio, _HUGE) if not math.isnan(ratio) else _HUGE


def judge_by_noise(
    measured: Sequence[Measured], eps: float, exact: Mapping[int, Verdict] | None = None
) -> Verdict:
    """gap <= 10 noise + 16 eps for every quantity; undecided where the noise exceeds 1e-3.

    The noise at a step is the largest of the nearest measured ones: the last before it, the first
    after it, and its own. exact: {step: the verdict on the same step in float64}. Beyond a noise of
    1e-3 the bound passes wrong formulas, which float64 sees. So a quantity that it decides there is
    decided up to a noise of 3e-2, by the same bound (observed of sound twins that diverge: gaps up
    to a quarter of it, at a noise up to 1.6e-2).
    """
    if not measured:
        return Verdict([], [], nothing=["there was no step"])
    names = list(measured[0].gaps)
    found = np.array([[m.gaps[n] for n in names] for m in measured])
    noise = nearest_noise(measured, names)
    bound = FACTOR * np.minimum(noise, 1.0) + FLOOR_EPS * eps  # more is not judged
    judged = noise <= DECIDABLE
    for i, m in enumerate(measured):
        if (known := (exact or {}).get(m.step)) is not None:
            open_ = np.array([n in known.open for n in names])
            judged[i] |= ~open_ & (noise[i] <= DECIDABLE_WITH_DOUBLE)
    return _verdict(measured, names, found, bound, judged)


def nearest_noise(measured: Sequence[Measured], names: Sequence[str]) -> np.ndarray:
    """float64 [steps, names]: the noise that judges each step. Raises UserError without any.

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
    single example can make one side's distance several times its usual one: it is held against the
    largest of the other side at the step and the 8 on each side, with twice the limits (observed on
    1,347 steps: 1.8 for all arrays, 2.0 for one).
    Means of fewer than 16 steps have wider limits, as they deviate by more. So have means of ratios
    that vary more than that: three standard errors of theirs, at most the limits of one step alone
    (a run that diverges, lr 0.5 without a clip: the logarithms deviate by 0.37 to 0.49, and a mean
    of sound twins was 1.33). A fault that is there at every step does not vary: its limit stays.
    A scalar's distance on one side is held against ten times the largest of the other side at these
    steps, or twice its noise where that was measured (by nudges of the products' precision, which
    move it further than rounding does), whichever is larger. Fewer than 16 steps without noise
    judge it by the distances of all arrays together as well. An array without a true value
    (`relative_to`) is rounding on both sides: it may be as large as twice the distance of the array
    it is measured against, or four times the other side's at these steps (where a softmax is
    saturated it may be larger than the array it belongs to, on both sides).
    """
    if not measured:
        return Verdict([], [], nothing=["there was no step"])
    names = list(measured[0].gaps)
    values = np.array([[m.distances[n] for n in names] for m in measured])  # type: ignore[index]
    values = np.minimum(values, _FAR)
    floor = FLOOR_EPS * eps
    ratio = ((values + floor) / (_nearest_largest(values)[..., ::-1] + floor)).max(axis=2)
    limit = np.array([WHOLE_RATIO if n == WHOLE else ARRAY_RATIO for n in names])
    bound = np.broadcast_to(ALONE * limit, ratio.shape).copy()
    deviation = np.where(np.array(names) == WHOLE, WHOLE_DEVIATION, ARRAY_DEVIATION)
    mean, seen = _mean_ratio(values + floor)
    mean, limits = np.exp(mean), _mean_limits(seen, limit, deviation)
    over = mean > limits  # judged together with 15 steps before: shown in place of its own ratio
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

    What is finite on one side alone differs, whatever the bound; on neither, nothing is judged.
    """
    apart = np.array([[n in m.apart for n in names] for m in measured], bool)
    vague = np.array([[n in m.vague for n in names] for m in measured], bool)
    values, bound = np.where(apart, _HUGE, values), np.where(apart, 0.0, bound)
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
