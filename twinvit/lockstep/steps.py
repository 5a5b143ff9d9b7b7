"""A step by both sides at each state, measured and compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from shared_vit.errors import UserError
from twinvit.lockstep.distances import gaps, is_zero, not_finite
from twinvit.lockstep.limits import NOISE_EVERY, Arrays, Noise, Step
from twinvit.lockstep.noise import (
    Nudges,
    arrays_exceed,
    epsilon,
    exceeds,
    latest,
    noise_is_due,
    noise_of,
    of_both,
)
from twinvit.lockstep.rules import judge_by_limit, judge_by_noise, judge_by_reference
from twinvit.lockstep.verdict import Measured, Verdict


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
    """Take a step on both sides from each of `states` on its batch, and compare the gaps with their
    limits.

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
    zero = tuple(n for n in a if np.ndim(a[n]) and is_zero(a[n]) and is_zero(b[n]))
    found = gaps(b, a, relative_to)
    return Measured(step, found, noise, distances, zero, *not_finite(a, b, found))
