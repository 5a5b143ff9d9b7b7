"""Claim: both twins draw the same training curve; nothing but rounding is between them."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from helpers import TINY, jax_trainer, nudged_runs, random_state, run, torch_trainer, train_config

import torch_vit.trainer
from shared_vit.run.schedule import learning_rate
from shared_vit.run.state import first_state
from shared_vit.spec import init
from twinvit.parity.noise_rule import gap, machine_epsilon, noise_rule


def judge(precision, steps, cfg=TINY, state=None, **changes):
    train = train_config(precision, **changes)
    state = state or first_state(cfg, init.draw(cfg, 0), precision)
    a, b = (run(t, train, steps) for t in (jax_trainer(state, train), torch_trainer(state, train)))
    return noise_rule(a, b, b, nudged_runs(state, train, steps), machine_epsilon(precision)), a, b


def test_float64_200_steps(x64):
    verdict, a, b = judge("fp64", 200)
    assert verdict.matched and verdict.decided_until == 200, verdict.describe()
    assert gap(a, b, "loss")[99] <= 1e-10 and gap(a, b, "grad_norm")[99] <= 1e-10
    assert a.loss[-20:].mean() < 0.5 * a.loss[0]  # it learned


def test_float32():
    verdict, a, _ = judge("fp32", 100)
    assert verdict.matched and verdict.decided_until >= 50, verdict.describe()
    assert a.loss[-1] < a.loss[0]


def test_adam_and_mean_pooling(x64):
    cfg = dataclasses.replace(
        TINY, class_token=False, pool="mean", gelu="tanh", pos_embed="sincos2d"
    )
    verdict, *_ = judge("fp64", 60, cfg=cfg, optimizer="adam", weight_decay=0.0)
    assert verdict.matched, verdict.describe()


def test_dropout_50_steps(x64):
    """Both twins draw the same masks, else the curves would part at the first step."""
    cfg = dataclasses.replace(TINY, dropout=0.1)
    verdict, a, _ = judge("fp64", 50, cfg=cfg, state=random_state(cfg, "fp64"), dropout=0.1)
    assert verdict.matched, verdict.describe()
    without = run(
        torch_trainer(random_state(TINY, "fp64"), train_config("fp64")),
        train_config("fp64"),
        1,
        total=50,
    )
    assert abs(without.loss[0] - a.loss[0]) > 1e-3  # dropout did something


@functools.cache
def sound_curves(steps):
    """Curves of the JAX twin, the PyTorch twin and its nudged runs, in float64."""
    train, state = train_config("fp64"), first_state(TINY, init.draw(TINY, 0), "fp64")
    a, b = (run(t, train, steps) for t in (jax_trainer(state, train), torch_trainer(state, train)))
    return a, b, nudged_runs(state, train, steps)


def off_by_one(total, peak, warmup):
    return lambda step: learning_rate(step + 1, total, peak, warmup)


@pytest.mark.parametrize(
    "mutation", ["clip adds 1e-6", "schedule off by one", "tanh for erf", "eps 1e-5", "wrong decay"]
)
def test_mutations_are_caught(mutation, x64, monkeypatch):
    """One formula wrong in one twin is out of the noise rule's bounds."""
    steps, train = 50, train_config("fp64")
    state = first_state(TINY, init.draw(TINY, 0), "fp64")
    sound, base, nudged = sound_curves(steps)
    assert noise_rule(sound, base, base, nudged, machine_epsilon("fp64")).matched
    rate = None
    if mutation == "clip adds 1e-6":

        def clip(grads, clip):
            norm = torch.nn.utils.get_total_norm(grads)
            torch._foreach_mul_(grads, (clip / (norm + 1e-6)).clamp(max=1))
            return norm

        monkeypatch.setattr(torch_vit.trainer, "clip_by_global_norm", clip)
    elif mutation == "schedule off by one":
        rate = off_by_one(steps, train.lr, train.warmup_steps)
    elif mutation == "wrong decay":
        train = dataclasses.replace(train, weight_decay=train.weight_decay * 1.001)
    else:
        change = dict(gelu="tanh") if mutation == "tanh for erf" else dict(norm_eps=1e-5)
        state = dataclasses.replace(state, config=dataclasses.replace(TINY, **change))
    wrong = run(torch_trainer(state, train), train, steps, lr=rate)
    verdict = noise_rule(sound, wrong, base, nudged, machine_epsilon("fp64"))
    assert not verdict.matched
    excess = max((verdict.gaps[q] / verdict.bound[q]).max() for q in verdict.gaps)
    assert excess > 1e3, excess  # by many orders


def test_first_updates_gap_is_rounding(x64):
    """At the first step nothing has grown yet: the twins agree to a few units in the last place."""
    train = train_config("fp64")
    state = random_state(TINY, "fp64")
    a, b = (
        run(t, train, 1, total=10) for t in (jax_trainer(state, train), torch_trainer(state, train))
    )
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-14)
    np.testing.assert_allclose(a.grad_norm, b.grad_norm, rtol=1e-13)
