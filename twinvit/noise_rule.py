"""The noise rule: two training curves are the same if no more than rounding is between them.

G(t) is the largest gap up to step t between two runs: of the loss, over max(1, |loss|), and of the
grad norm, relative. N(t), the noise, is the largest gap between one run and three of the same twin
with --nudge=1, 2, 3, which multiply every weight by 1 + eps (2r - 1), r uniform, after each update.
The curves match if G(t) <= FACTOR N(t) + FLOOR_EPS eps at every t at which N(t) <= DECIDABLE.

Nudging after each update adds what a program adds that rounds otherwise. A single nudge at the
start gives the same in float64, and 15 to 25 times too little in float32.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from shared_vit.errors import UserError
from shared_vit.spec.precision import PRECISIONS

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
# A sound float32 run of the digits has a noise of 1e-5 at step 50. One with a hundred times as much
# is unstable (its learning rate is too high, as a rule), and its first steps prove little.
LEAST_STEPS = 50
QUANTITIES = ("loss", "grad_norm")


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
        raise UserError(f"{path} has values that are no numbers: {error!r:.200}") from None
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
    return np.maximum.accumulate(np.where(np.isnan(gaps), np.inf, gaps))


@dataclass
class Verdict:
    """Whether two curves match, up to which step that was decided, and the numbers behind it."""

    matched: bool
    decided_until: int  # the last step up to which every quantity was judged
    total: int  # steps of the runs
    steps: np.ndarray
    gaps: dict[str, np.ndarray]  # G(t) by quantity
    noise: dict[str, np.ndarray]  # N(t) by quantity, of the same length
    bound: dict[str, np.ndarray]
    reasons: list[str] = field(default_factory=list)  # why not matched

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
        if self.matched:
            lines.append(
                f"MATCH: up to step {self.decided_until} of {self.total} the curves differ by no "
                f"more than rounding does (gap <= {FACTOR} x noise + {FLOOR_EPS} eps)"
            )
            if self.decided_until < last:
                lines.append(
                    f"beyond step {self.decided_until} rounding alone moves the curve by over "
                    f"{DECIDABLE}: not decided"
                )
            elif last < self.total:
                lines.append(f"the nudged runs end at step {last}: beyond it nothing is decided")
        else:
            lines.append("NO MATCH: " + "; ".join(self.reasons))
        return "\n".join(lines)


def noise_rule(a: Curve, b: Curve, base: Curve, nudged: list[Curve], eps: float) -> Verdict:
    """Judge curves `a` and `b` by the noise that `nudged` runs show against their `base`.

    They match by the rule at the head of this module. A comparison undecided before LEAST_STEPS (or
    the end of a shorter run) does not match, nor does one with nothing to compare: a loss that did
    not move or is not finite, a gradient of zero, runs of different lengths. `eps` is the machine
    epsilon of the parameters' dtype. Raises UserError for fewer than three nudged runs.
    """
    if len(nudged) < 3:
        raise UserError(f"the noise rule needs at least three nudged runs, not {len(nudged)}")
    gaps = {q: gap(a, b, q) for q in QUANTITIES}
    noise = {
        q: np.max([gap(base, c, q)[: min(map(len, nudged))] for c in nudged], axis=0)
        for q in QUANTITIES
    }
    n = min(len(gaps["loss"]), len(noise["loss"]))
    gaps, noise = ({q: values[q][:n] for q in QUANTITIES} for values in (gaps, noise))
    bound = {q: FACTOR * noise[q] + FLOOR_EPS * eps for q in QUANTITIES}
    steps, reasons, decided = a.steps[:n], [], int(a.steps[n - 1])
    for q in QUANTITIES:
        judged = noise[q] <= DECIDABLE
        if not judged.all():
            decided = min(decided, int(steps[judged][-1]) if judged.any() else 0)
        outside = judged & ~(gaps[q] <= bound[q])
        if outside.any():
            i = int(np.argmax(outside))
            reasons.append(
                f"the {q} differs by {gaps[q][i]:.2g} at step {steps[i]}, where rounding explains "
                f"{bound[q][i]:.2g}"
            )
    if len(a) != len(b):
        reasons.append(f"one run has {len(a)} updates, the other {len(b)}")
    if decided < min(LEAST_STEPS, len(a)):
        reasons.append(
            f"rounding alone moves the curve by over {DECIDABLE} from step {decided + 1} on: too "
            "early to decide"
        )
    reasons += [f"nothing to compare: {what}" for what in _degenerate(a)]
    return Verdict(not reasons, decided, int(a.steps[-1]), steps, gaps, noise, bound, reasons)


def _degenerate(curve: Curve) -> list[str]:
    found = []
    if not np.isfinite(curve.loss).all():
        found.append("the loss is not finite")
    elif np.ptp(curve.loss) <= 1e-4 * max(1, np.abs(curve.loss).max()):
        found.append("the loss did not move")
    if not (curve.grad_norm > 0).all():
        found.append("a gradient is zero")
    return found


def machine_epsilon(precision: str) -> float:
    """Of the parameters' dtype."""
    return float(np.finfo(PRECISIONS[precision].param).eps)
