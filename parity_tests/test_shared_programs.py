"""Claim: trainers share programs only where these are the same, and nothing else."""

import dataclasses

import pytest
import shared_programs
from helpers import jax_trainer, random_state, train_config

import jax_vit.optim
import jax_vit.trainer
from shared_vit.run.state import StepScalars

RECIPE = train_config("fp32", dropout=0.1)


def made(devices: int = 2, recipe=RECIPE, **memory):
    return jax_trainer(random_state(recipe.model, recipe.precision), recipe, devices, **memory)


@pytest.fixture
def first():
    shared_programs.forget()
    return made()


def test_equal_trainers_share_and_keep_their_own_state(first):
    second = made()
    for name in shared_programs.PROGRAMS:
        assert getattr(first, name) is getattr(second, name)
    grads = random_state(RECIPE.model, "fp32").params
    second.update({n: grads[n] for n in second.trained_names}, StepScalars(0.1))
    assert (first.step, second.step) == (0, 1)
    a, b = (trainer.state().params["head.weight"] for trainer in (first, second))
    assert (a == grads["head.weight"]).all() and (b != a).any()


OTHERS = {
    "recipe": dict(recipe=dataclasses.replace(RECIPE, clip=0.5)),
    "model": dict(recipe=train_config("fp32", dropout=0.2)),
    "precision": dict(recipe=train_config("bf16", dropout=0.1)),
    "slots": dict(recipe=dataclasses.replace(RECIPE, ema=0.9)),
    "devices": dict(devices=4),
    "remat": dict(remat=True),
    "shard": dict(shard=True),
}


@pytest.mark.parametrize("other", OTHERS)
def test_others_do_not(first, other):
    assert made(**OTHERS[other]).compute_step is not first.compute_step


@pytest.mark.parametrize(
    "place, name",
    [
        (jax_vit.trainer, "clip_by_global_norm"),
        (jax_vit.optim, "global_norm"),
        (jax_vit.trainer.Trainer, "_update"),
    ],
)
def test_nor_does_a_trainer_with_a_fault_planted(first, place, name, monkeypatch):
    sound = getattr(place, name)
    monkeypatch.setattr(place, name, lambda *args: sound(*args))
    faulty = made()
    assert faulty.compute_step is not first.compute_step
    monkeypatch.undo()
    assert made().compute_step is first.compute_step
