"""The noise of a step: its results at nudged states, and what they explain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shared_vit.errors import UserError, some
from twinvit.lockstep.distances import gaps
from twinvit.lockstep.limits import NOISE_EVERY, NOISE_FIRST, SEEDS, Arrays, Step
from twinvit.lockstep.rules import _sums
from twinvit.lockstep.verdict import Measured
from twinvit.parity.noise_rule import DECIDABLE, FACTOR, FLOOR_EPS


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
    exactly zero and the other's a unit in the last place (observed in float64: the noise of
    `cls_token` 3e-15 to 3e-13 on one side, 9e-12 on the other). A side that rounds more than it
    should (TF32 in place of float32) does so in all arrays together, whose gap is compared with a's
    noise alone.
    """
    of_sums = replace(measured, gaps={n: measured.gaps[n] for n in _sums(measured.gaps)})
    return exceeds(measured, noise, eps) and not exceeds(of_sums, noise, eps)


def held(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    """a's noise, of the scalars and all arrays together at most ten times b's.

    A side whose products take ten bits instead of float32's has 10 to 30 times the noise, and
    would explain a fifth of its distance by it (parity_tests/test_lockstep_plants.py), more in a
    deeper model.
    """
    return dict(a) | {n: min(a[n], FACTOR * b[n]) for n in _sums(a)}


def of_both(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    """The larger noise of each quantity. b's counts where it decides: a side that is another one at
    each call (masks sampled anew) would explain everything by its noise."""
    return {n: max(x, b[n]) if b[n] <= DECIDABLE else x for n, x in a.items()}


def latest(
    before: Mapping[str, float] | None, noise: Mapping[str, float] | None
) -> dict[str, float]:
    """The last noise of each quantity that decides: what `exceeds` takes."""
    known = before or {}
    return {n: x if x <= DECIDABLE else known.get(n, 0.0) for n, x in (noise or {}).items()}
