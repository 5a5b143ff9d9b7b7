"""What lockstep compares, and the constants of its rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from twinvit.parity.noise_rule import FACTOR

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
HUGE = 1e308  # written for infinity, which JSON lacks
FAR = 1e100  # distances beyond are alike, and their ratios are numbers
