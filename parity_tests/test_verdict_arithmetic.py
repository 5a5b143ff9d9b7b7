"""Claim: the arithmetic of verdicts holds in float32 as in float64, by the unit of its type."""

import numpy as np
import pytest

from twinvit.port.verdict import FLOAT32, FLOAT64, judge

pytestmark = pytest.mark.quick

X = np.random.default_rng(0).standard_normal((4, 50)) * np.logspace(0, 3, 50)


@pytest.mark.parametrize("arithmetic, eps", [(FLOAT64, 2.0**-52), (FLOAT32, 2.0**-23)])
def test_a_number_is_held_to_its_own_rounding(arithmetic, eps):
    rounding = 2 * eps * np.abs(X)
    for units, verdict in ((0, "same"), (50, "same"), (1000, "different")):
        other = X.copy()
        other[2, 0] *= 1 + units * eps  # the smallest column, beside ones a thousand times as large
        assert judge(X, other, rounding, arithmetic).verdict == verdict, units


@pytest.mark.parametrize("arithmetic", [FLOAT64, FLOAT32])
def test_rounding_is_bounded_and_then_decides_nothing(arithmetic):
    share = arithmetic.unjudged / 2
    other = X * (1 + 2 * arithmetic.most)
    assert judge(X, other, share * np.abs(X), arithmetic).verdict == "different"
    assert judge(X, X, share * np.abs(X), arithmetic).verdict == "same"
    assert judge(X, X, 100 * share * np.abs(X), arithmetic).verdict == "undecided"


def test_float32_is_not_float64():
    other = X * (1 + 2.0**-23)
    assert judge(X, other, None, FLOAT32).verdict == "same"
    assert judge(X, other).verdict == "different"
