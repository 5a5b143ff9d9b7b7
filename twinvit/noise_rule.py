"""Distances between arrays and between training curves, and the noise rule that says whether two curves are the same."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shared_vit.errors import UserError
from shared_vit.spec.precision import PRECISIONS

FACTOR, FLOOR_EPS = 10, 16  # curves match where G(t) <= 10 N(t) + 16 eps
DECIDABLE = 1e-3  # where the noise is larger, the rule decides nothing
LEAST_STEPS = 50  # a comparison decided for fewer (of a run that has them) does not pass
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
    """The updates in a run directory's metrics.jsonl. Raises UserError where there are none, or a line is broken."""
    path = Path(run_dir) / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{run_dir} is not a run with results: {path} is not there")
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            if "loss" in row:
                rows.append((row["step"], row["loss"], row["grad_norm"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number}, is not a metrics line: {error!r}") from None
    if not rows:
        raise UserError(f"{path} holds no update")
    steps, loss, grad_norm = (np.array(column) for column in zip(*rows))
    return Curve(steps.astype(np.int64), loss.astype(np.float64), grad_norm.astype(np.float64))


def relative_l2(a, b) -> float:
    """|a - b| / |b| in float64; inf where that is not a number, or the shapes differ."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        return float("inf")
    distance = (
        np.linalg.norm(a - b) / np.linalg.norm(b) if b.any() else float(np.linalg.norm(a) > 0)
    )
    return float(distance) if np.isfinite(distance) else float("inf")


def gap(a: Curve, b: Curve, quantity: str) -> np.ndarray:
    """float64 [n]: the largest gap up to each step both have; of the loss over max(1, |loss|), of the grad norm relative."""
    n = min(len(a), len(b))
    if not np.array_equal(a.steps[:n], b.steps[:n]):
        raise UserError(
            "the runs are not of the same steps: one of them has gaps or repeats in its metrics.jsonl"
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
                f"MATCH: up to step {self.decided_until} of {self.total} the curves differ by no more than rounding does "
                f"(gap <= {FACTOR} x noise + {FLOOR_EPS} eps)"
            )
            if self.decided_until < last:
                lines.append(
                    f"beyond step {self.decided_until} rounding alone moves the curve by over {DECIDABLE}: not decided"
                )
            elif last < self.total:
                lines.append(f"the nudged runs end at step {last}: beyond it nothing is decided")
        else:
            lines.append("NO MATCH: " + "; ".join(self.reasons))
        return "\n".join(lines)


def noise_rule(a: Curve, b: Curve, base: Curve, nudged: list[Curve], eps: float) -> Verdict:
    """Judge curves `a` and `b` by the noise that `nudged` runs (three or more) show against their `base`.

    They match if at every step t, for the loss and for the grad norm, G(t) <= 10 N(t) + 16 eps, where G is the largest gap
    up to t and N the largest gap of a nudged run. Where N exceeds 1e-3 nothing more is decided; a comparison undecided
    before step 50 (or the end of a shorter run) does not match, nor does one in which there was nothing to compare.
    `eps` is the machine epsilon of the parameters' dtype.
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
                f"the {q} differs by {gaps[q][i]:.2g} at step {steps[i]}, where rounding explains {bound[q][i]:.2g}"
            )
    if len(a) != len(b):
        reasons.append(f"one run has {len(a)} updates, the other {len(b)}")
    if decided < min(LEAST_STEPS, len(a)):
        reasons.append(
            f"rounding alone moves the curve by over {DECIDABLE} from step {decided + 1} on: too early to decide"
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
