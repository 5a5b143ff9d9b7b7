"""Claim: the learning rate of every step is the written formula, and the one that is logged."""

import math

import pytest

from shared_vit.errors import UserError
from shared_vit.run.schedule import learning_rate
from shared_vit.spec.recipe import Recipe

pytestmark = pytest.mark.quick


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


SHAPES = {
    "cosine": lambda t: math.cos(math.pi / 2 * (t - 100) / 900) ** 2,
    "linear": lambda t: 1 - (t - 100) / 900,
    "constant": lambda t: 1.0,
    "rsqrt": lambda t: (100 / t) ** 0.5,
}


@pytest.mark.parametrize("cooldown", [0, 200])
@pytest.mark.parametrize("schedule", SHAPES)
def test_every_step_of_every_schedule(schedule, cooldown):
    rates = [learning_rate(t, 1000, 2e-3, 100, schedule, cooldown) for t in range(1000)]
    for t, rate in enumerate(rates):
        expected = 2e-3 * ((t + 1) / 100 if t < 100 else SHAPES[schedule](t))
        expected *= min(1, (1000 - t) / cooldown) if cooldown else 1
        assert rate == pytest.approx(expected, rel=1e-9, abs=1e-18)
    assert rates[99] == rates[100] == 2e-3 == max(rates)
    if schedule in ("cosine", "linear") or cooldown:
        assert 0 < rates[-1] <= 2e-3 / 200
    else:
        assert rates[-1] == pytest.approx(2e-3 * (1 if schedule == "constant" else 999**-0.5 * 10))


@pytest.mark.parametrize("schedule", SHAPES)
def test_a_run_may_end_within_warm_up_or_cool_down(schedule):
    for total in (1, 5, 50, 100):
        rates = [learning_rate(t, total, 1.0, 50, schedule, 0) for t in range(total)]
        assert all(0 < rate <= 1 for rate in rates)
    assert [learning_rate(t, 4, 1.0, 0, "constant", 8) for t in range(4)] == [
        1 / 2, 3 / 8, 1 / 4, 1 / 8
    ]  # fmt: skip


def test_impossible_schedules_are_refused():
    with pytest.raises(UserError, match="--schedule=rsqrt counts from the warm-up"):
        Recipe(schedule="rsqrt", warmup_steps=0)
    for schedule in ("cosine", "linear"):
        with pytest.raises(UserError, match="ends at zero by itself"):
            Recipe(schedule=schedule, cooldown_steps=10)
    Recipe(schedule="rsqrt", cooldown_steps=10)


def test_the_plan_of_a_run_follows_its_recipe(tmp_path):
    from shared_vit.run.command_line import parse
    from shared_vit.run.plan import make_plan

    flags = ["--preset=digits", "--steps=40", "--warmup_steps=10", "--lr=0.5", "--device=cpu"]
    flags += ["--schedule=rsqrt", "--cooldown_steps=5", f"--run_dir={tmp_path / 'run'}"]
    plan = make_plan(parse(flags, "test").replace(world_size=1, precision="fp32"), "torch")
    expected = [learning_rate(t, 40, 0.5, 10, "rsqrt", 5) for t in range(40)]
    assert [plan.lr(t) for t in range(40)] == expected
