"""Lockstep: two implementations of a training step, compared at every state that a training visits.

Free runs part by chaos, and a comparison of their curves decides little in float32. Here both sides
start each step from the same state, so what is compared is the map that a step is.

    verdict = lockstep.run(step_a, step_b, states, batches, lockstep.nudges(step_a))
    print(verdict.line())

`step_a` and `step_b` are functions `(state, batch) -> {name: array}`; this module knows neither
models nor frameworks. docs/lockstep.md proves your own trainer with it.
"""

from twinvit.lockstep.distances import gaps
from twinvit.lockstep.limits import (
    ALONE,
    ARRAY_RATIO,
    DECIDABLE_DISTANCE,
    DECIDABLE_WITH_DOUBLE,
    NOISE_EVERY,
    NOISE_FIRST,
    SCALAR_FACTOR,
    SEEDS,
    WHOLE,
    WHOLE_RATIO,
    WINDOW,
    Arrays,
    Noise,
    Step,
)
from twinvit.lockstep.noise import (
    Nudges,
    arrays_exceed,
    epsilon,
    exceeds,
    held,
    latest,
    noise_is_due,
    noise_of,
    nudge,
    nudges,
    of_both,
)
from twinvit.lockstep.rules import judge_by_limit, judge_by_noise, judge_by_reference, nearest_noise
from twinvit.lockstep.steps import measure, run
from twinvit.lockstep.verdict import Difference, Measured, Verdict

__all__ = [
    "ALONE",
    "ARRAY_RATIO",
    "Arrays",
    "DECIDABLE_DISTANCE",
    "DECIDABLE_WITH_DOUBLE",
    "Difference",
    "Measured",
    "NOISE_EVERY",
    "NOISE_FIRST",
    "Noise",
    "Nudges",
    "SCALAR_FACTOR",
    "SEEDS",
    "Step",
    "Verdict",
    "WHOLE",
    "WHOLE_RATIO",
    "WINDOW",
    "arrays_exceed",
    "epsilon",
    "exceeds",
    "gaps",
    "held",
    "judge_by_limit",
    "judge_by_noise",
    "judge_by_reference",
    "latest",
    "measure",
    "nearest_noise",
    "noise_is_due",
    "noise_of",
    "nudge",
    "nudges",
    "of_both",
    "run",
]
