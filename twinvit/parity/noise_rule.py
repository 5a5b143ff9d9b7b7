"""The noise rule: two training curves are the same if no more than rounding is between them.

G(t) is the largest gap up to step t between two runs: of the loss, over max(1, |loss|), and of the
grad norm, relative. N(t), the noise, is the largest gap between one run and three of the same twin
with --nudge=1, 2, 3, which multiply every weight by 1 + eps (2r - 1), r uniform, after each update.
The curves are the same if G(t) <= FACTOR N(t) + FLOOR_EPS eps at every t at which
N(t) <= DECIDABLE.

Nudging after each update adds what a program adds that rounds otherwise. A single nudge at the
start gives the same in float64, and 15 to 25 times too little in float32.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from shared_vit.errors import UserError
from shared_vit.spec.precision import PRECISIONS
from twinvit.port.verdict import DIFFERENT, SAME, UNDECIDED

# Chaos makes N(t) a random number: the gaps of five nudged runs spread by 4.5x. The largest of
# three may therefore be several times too small, and twice the spread is allowed for. That costs
# nothing: a wrong formula is out by orders (in float64 by 1e8 with the 1e-6 that torch adds to the
# norm when it clips).
FACTOR = 10
# Up to about step 10 the nudges do not reach the loss and N(t) is zero or a few units in the last
# place, as is the gap of two programs that sum in another order: the floor is 16 of them.
FLOOR_EPS = 16
# Beyond this noise the limit would be 1e-2, and wrong formulas pass below it: LayerNorm's eps 1e-5
# for 1e-6 moves the logits of a ViT-B/16 by 7e-3, tanh GELU for erf by 5e-4.
DECIDABLE = 1e-3
# A stable float32 run of the digits has a noise of 1e-5 at step 50. One with a hundred times as
# much is unstable (its learning rate is too high, as a rule), and its first steps prove little.
LEAST_STEPS = 50
QUANTITIES = ("loss", "grad_norm")
STATUS = {SAME: 0, DIFFERENT: 1, UNDECIDED: 2}  # exit status of commands that compare training


@dataclass(frozen=True)
class Curve:
    """A run's updates: steps int64 [n], loss and grad_norm float64 [n]."""

    steps: np.ndarray
    loss: np.ndarray
    grad_norm: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)


def read_curve(run_dir: Path | str) -> Curve:
    """The updates in a run's metrics.jsonl. Raises UserError where there are none, or a line is
    broken."""
    path = Path(run_dir) / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{run_dir} is not a run with results: {path} is not there")
    rows = []
    for number, line in enumerate(_lines(path), 1):
        try:
            row = json.loads(line)
            if "loss" in row:
                rows.append((row["step"], row["loss"], row["grad_norm"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path}, line {number}, is not a metrics line: {error!r:.200}"
            ) from None
    if not rows:
        raise UserError(f"{path} holds no update")
    try:
        steps, loss, grad_norm = (np.array(column, np.float64) for column in zip(*rows))
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{path} has values that are not numbers: {error!r:.200}") from None
    return Curve(steps.astype(np.int64), loss, grad_norm)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def relative_l2(a: ArrayLike, b: ArrayLike) -> float:
    """|a - b| / |b| in float64; inf where that is not a number, or the shapes differ."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        return float("inf")
    distance = (
        np.linalg.norm(a - b) / np.linalg.norm(b) if b.any() else float(np.linalg.norm(a) > 0)
    )
    return float(distance) if np.isfinite(distance) else float("inf")


def gap(a: Curve, b: Curve, quantity: str) -> np.ndarray:
    """float64 [n]: the largest gap up to each step that both have, of the loss over max(1, |loss|),
    of the grad norm relative. Raises UserError for runs of other steps."""
    n = min(len(a), len(b))
    if not np.array_equal(a.steps[:n], b.steps[:n]):
        raise UserError(
            "the runs are not of the same steps: one of them has gaps or repeats in its "
            "metrics.jsonl"
        )
    x, y = getattr(a, quantity)[:n], getattr(b, quantity)[:n]
    scale = np.maximum(1, np.abs(x)) if quantity == "loss" else np.abs(x)
    with np.errstate(invalid="ignore", divide="ignore"):
        gaps = np.where(x == y, 0, np.abs(x - y) / scale)
    numbers = np.isfinite(x) & np.isfinite(y) & np.isfinite(gaps)
    return np.maximum.accumulate(np.where(numbers, gaps, np.inf))


@dataclass
class Verdict:
    """Whether two curves are the same, up to which step that was decided, and the numbers of it.

    wrong: what differs by more than rounding. reasons: that, or why it is undecided. compared: what
    was compared besides the curves, in words; left: what of it was not, and why.
    """

    decided_until: int  # the last step up to which every quantity was compared
    total: int  # steps of the runs
    steps: np.ndarray
    gaps: dict[str, np.ndarray]  # G(t) by quantity
    noise: dict[str, np.ndarray]  # N(t) by quantity, of the same length
    bound: dict[str, np.ndarray]
    wrong: list[str] = field(default_factory=list)
    vague: list[str] = field(default_factory=list)
    compared: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """ "same", "different" or "undecided"."""
        return DIFFERENT if self.wrong else UNDECIDED if self.vague else SAME

    @property
    def matched(self) -> bool:
        return self.verdict == SAME

    @property
    def exit_status(self) -> int:
        """0: same; 1: different; 2: undecided."""
        return STATUS[self.verdict]

    @property
    def reasons(self) -> list[str]:
        return self.wrong or self.vague

    def headline(self) -> str:
        """The verdict in one line: for which steps, and why no more is decided."""
        if self.verdict != SAME:
            return f"{self.verdict}: {'; '.join(self.reasons)}"
        line = f"same for steps 1 to {self.decided_until:,} of {self.total:,}"
        if rest := self.rest():
            line += f"; {rest}"
        return "; ".join([line, *self.left])

    def rest(self) -> str:
        """Which steps are undecided, and why; empty where none is."""
        if self.decided_until >= self.total:
            return ""
        steps = f"{self.decided_until + 1:,} to {self.total:,}"
        if self.decided_until < int(self.steps[-1]):
            return f"{steps} undecided (rounding alone is above {DECIDABLE:g})"
        return f"{steps} undecided (the nudged runs end at step {int(self.steps[-1]):,})"

    def describe(self) -> str:
        """A table of gaps and noise, and the verdict, in words."""
        lines = [
            f"{'up to step':>10} " + "".join(f"{f'{q}: gap':>18}{'noise':>10}" for q in QUANTITIES)
        ]
        last = int(self.steps[-1])
        for step in sorted(
            {s for s in (1, 10, 50, 100, 200, 500, 1000, 2000, 5000) if s < last} | {last}
        ):
            i = int(np.searchsorted(self.steps, step))
            lines.append(
                f"{step:>10} "
                + "".join(f"{self.gaps[q][i]:>18.1e}{self.noise[q][i]:>10.1e}" for q in QUANTITIES)
            )
        lines += [f"compared too: {what}" for what in self.compared]
        lines.append(self.headline())
        if self.matched:
            lines.append(
                f"rule: gap <= {FACTOR} x noise + {FLOOR_EPS} eps, where rounding alone changes "
                f"the curve by at most {DECIDABLE:g}"
            )
        return "\n".join(lines)


def noise_rule(a: Curve, b: Curve, base: Curve, nudged: list[Curve], eps: float) -> Verdict:
    """Compare curves `a` and `b` by the noise that `nudged` runs show against their `base`.

    They are the same by the rule at the head of this module. A comparison undecided before
    LEAST_STEPS is undecided, as is one with nothing to compare: a loss that did not change or is
    not finite, a gradient of zero, runs of different lengths. `eps` is the machine epsilon of the
    parameters' dtype. Raises UserError for fewer than three nudged runs.
    """
    if len(nudged) < 3:
        raise UserError(f"the noise rule needs at least three nudged runs, not {len(nudged)}")
    gaps = {q: gap(a, b, q) for q in QUANTITIES}
    noise = {
        q: np.max([gap(base, c, q)[: min(map(len, nudged))] for c in nudged], axis=0)
        for q in QUANTITIES
    }
    for q in QUANTITIES:  # what is not finite stays so
        spread = _spread(nudged, q, eps)[: len(noise[q])]
        noise[q] = np.where(np.isfinite(noise[q]), np.minimum(noise[q], spread), noise[q])
    n = min(len(gaps["loss"]), len(noise["loss"]))
    gaps, noise = ({q: values[q][:n] for q in QUANTITIES} for values in (gaps, noise))
    bound = {q: FACTOR * noise[q] + FLOOR_EPS * eps for q in QUANTITIES}
    steps, decided = a.steps[:n], int(a.steps[n - 1])
    result = Verdict(decided, int(max(a.steps[-1], b.steps[-1])), steps, gaps, noise, bound)
    for q in QUANTITIES:
        judged = noise[q] <= DECIDABLE
        if not judged.all():
            decided = min(decided, int(steps[judged][-1]) if judged.any() else 0)
        outside = judged & ~(gaps[q] <= bound[q])
        apart = _finite(a, q)[:n] != _finite(b, q)[:n]
        if apart.any():
            result.wrong.append(f"the {q} at step {steps[int(np.argmax(apart))]} is finite in one "
                                "of the runs alone")  # fmt: skip
        if outside.any():
            i = int(np.argmax(outside))
            result.wrong.append(
                f"the {q} differs by {gaps[q][i]:.2g} at step {steps[i]}, where rounding explains "
                f"{bound[q][i]:.2g}"
            )
    result.decided_until = decided
    if len(a) != len(b):
        result.vague.append(f"one run has {len(a)} updates, the other {len(b)}")
    if decided < LEAST_STEPS:
        result.vague.append(_too_few(decided, int(steps[-1])))
    result.vague += [f"nothing to compare: {what}" for what in _degenerate(a)]
    return result


def _spread(nudged: list[Curve], quantity: str, eps: float) -> np.ndarray:
    """float64 [n]: what the nudged runs' gaps to one another allow as a gap to their own run. More
    is no rounding: then that run is not of their program."""
    n = min(map(len, nudged))
    pairs = itertools.combinations(nudged, 2)
    gaps = np.max([gap(a, b, quantity)[:n] for a, b in pairs], axis=0)
    return FACTOR * gaps + FLOOR_EPS * eps


def _finite(curve: Curve, quantity: str) -> np.ndarray:
    return np.isfinite(getattr(curve, quantity))


def _too_few(decided: int, last: int) -> str:
    if decided < last:
        return (
            f"rounding alone changes the curve by over {DECIDABLE} from step {decided + 1} on: too "
            f"early to decide, {LEAST_STEPS} steps are needed"
        )
    return f"{decided} steps are too few to decide, {LEAST_STEPS} are needed"


def _degenerate(curve: Curve) -> list[str]:
    found = []
    if not np.isfinite(curve.loss).all():
        found.append("the loss is not finite")
    elif np.ptp(curve.loss) <= 1e-4 * max(1, np.abs(curve.loss).max()):
        found.append("the loss did not change")
    if not np.isfinite(curve.grad_norm).all():
        found.append("a grad norm is not finite")
    elif not (curve.grad_norm > 0).all():
        found.append("a gradient is zero")
    return found


def machine_epsilon(precision: str) -> float:
    """Of the parameters' dtype."""
    return float(np.finfo(PRECISIONS[precision].param).eps)
