"""Claim: the learning rate of every step is the design's formula, and the one that is logged."""

import math

import pytest

from shared_vit.run.schedule import learning_rate


def test_every_step():
    total, peak, warmup = 1000, 1e-3, 100
    rates = [learning_rate(t, total, peak, warmup) for t in range(total)]
    for t, rate in enumerate(rates):
        if t < warmup:
            assert rate == pytest.approx(peak * (t + 1) / warmup, rel=1e-15)
        else:
            assert rate == pytest.approx(
                peak * math.cos(math.pi / 2 * (t - warmup) / (total - warmup)) ** 2,
                rel=1e-9,
                abs=1e-18,
            )
    assert rates[0] == peak / warmup and rates[warmup - 1] == rates[warmup] == peak == max(rates)
    assert all(a >= b for a, b in zip(rates[warmup:], rates[warmup + 1 :]))
    assert 0 < rates[-1] < 1e-5 * peak


def test_no_warmup():
    assert learning_rate(0, 10, 1.0, 0) == 1.0
    assert learning_rate(5, 10, 1.0, 0) == pytest.approx(0.5)


@pytest.mark.parametrize("warmup", [10, 40])
def test_warmup_as_long_as_the_run(warmup):
    assert [learning_rate(t, 10, 1.0, warmup) for t in range(10)] == [
        (t + 1) / warmup for t in range(10)
    ]
