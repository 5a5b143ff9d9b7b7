"""Claim: one optimizer step gives the same parameters and moments, with Adam and AdamW, clipping
and weight decay."""

import dataclasses
import inspect

import helpers
import numpy as np
import optax
import pytest
import torch
from helpers import DIGITS, TINY, jax_trainer, random_state, relative_l2, run, torch_trainer, worst

import jax_vit.optim
import jax_vit.trainer
import torch_vit.optim
import torch_vit.trainer
from benchmarks.twin_pairs import state_distance, without_key_bias
from shared_vit import model_config
from shared_vit.data import batches
from shared_vit.run.state import StepScalars
from shared_vit.spec import canonical
from shared_vit.spec.optimizers import ADAM_SLOTS, BETA1, BETA2, EPS

LIMIT = 1e-11


def train_config(**changes):
    return helpers.train_config("fp64", **changes)


def states_after(train, steps=1, cfg=TINY, jax_cfg=None):
    state = random_state(cfg, "fp64")
    trainers = (
        jax_trainer(dataclasses.replace(state, config=jax_cfg or cfg), train),
        torch_trainer(state, train),
    )
    curves = [run(t, train, steps, total=100) for t in trainers]
    return [t.state() for t in trainers], curves, state


def distance(a, b, cfg=TINY):
    assert list(a.slots) == list(b.slots) == list(ADAM_SLOTS)
    return state_distance(a, b)


@pytest.mark.quick
@pytest.mark.parametrize(
    "changes",
    [
        dict(optimizer="adamw", weight_decay=0.3),
        dict(optimizer="adam", weight_decay=0.0),
        dict(clip=0.01),
    ],
    ids=str,
)
def test_every_parameter_and_moment(changes, x64):
    train = train_config(**changes)
    (a, b), (curve_a, curve_b), before = states_after(train)
    gap, name = distance(a, b)
    assert gap <= LIMIT, name
    assert relative_l2(curve_a.grad_norm, curve_b.grad_norm) <= LIMIT
    for name in a.params:
        moved = np.abs(a.params[name] - before.params[name]).max()
        assert moved > 1e-6, name  # something to compare
    for side in (a, b):
        for i in range(TINY.depth):
            d, name = TINY.width, f"blocks.{i}.attn.qkv.bias"
            # Bounded by itself: rounding, over eps, times lr.
            keys = np.s_[d : 2 * d]
            assert (
                np.abs(side.params[name][keys] - before.params[name][keys]).max()
                <= 1e-4 * train.lr / 10
            )


@pytest.mark.quick
def test_formula(x64):
    """AdamW (Loshchilov and Hutter 2019) in NumPy, from the first moments of each twin."""
    train = train_config(weight_decay=0.3, clip=0.5)
    (a, b), (curve, _), before = states_after(train)
    lr = train.lr / train.warmup_steps
    for side in (a, b):
        for name, p in before.params.items():
            g = side.slots["exp_avg"][name] / (1 - BETA1)  # the clipped gradient
            np.testing.assert_allclose(
                side.slots["exp_avg_sq"][name], (1 - BETA2) * g * g, rtol=1e-10
            )
            direction = g / (np.abs(g) + EPS)
            wd = 0.3 if name.endswith(".weight") and "norm" not in name else 0.0
            np.testing.assert_allclose(
                side.params[name], p - lr * (direction + wd * p), rtol=1e-10, atol=1e-13
            )
        norm = np.sqrt(sum(((m / (1 - BETA1)) ** 2).sum() for m in side.slots["exp_avg"].values()))
        assert curve.grad_norm[0] > 0.5 and norm == pytest.approx(
            0.5, rel=1e-12
        )  # clipped exactly, nothing added


def first_batch(train):
    stream = batches(train, "train")
    batch = next(stream)
    stream.close()
    return batch


@pytest.mark.parametrize("grad_accum", [1, 2])
def test_gradients_and_update_are_the_step(grad_accum, precision):
    """In two calls, with a copy on the host between: the same step, in both twins."""
    model = dataclasses.replace(TINY, dropout=0.1, depth=1)  # twelve programs to compile
    train = helpers.train_config(precision, clip=0.5, nudge=1, grad_accum=grad_accum)
    train = dataclasses.replace(train, model=model)
    state, batch, scalars = random_state(model, precision), first_batch(train), StepScalars(1e-3)
    limit = {"fp64": LIMIT, "fp32": 1e-5}[precision]
    gradients = {}
    for twin, make in (("jax", jax_trainer), ("torch", torch_trainer)):
        whole, parts = make(state, train), make(state, train)
        expected = whole.train_step(whole.to_device(batch), scalars).get()
        metrics, grads = parts.gradients(parts.to_device(batch))
        unmoved = parts.state()
        assert unmoved.step == 0 and all(
            (unmoved.params[n] == state.params[n]).all() for n in grads
        )
        np.testing.assert_allclose(metrics.get()[:2], expected[:2], rtol=limit)
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
        assert norm == pytest.approx(expected.grad_norm, rel=limit) and norm > 2 * train.clip
        parts.update(grads, scalars)
        a, b = whole.state(), parts.state()
        assert (a.step, a.scalars) == (b.step, b.scalars) == (1, {"adam_count": 1})
        if twin == "torch":  # the same kernels: the same bits
            assert distance(a, b)[0] == 0
        elif precision == "fp64":
            assert distance(a, b)[0] <= LIMIT
        assert parts.train_step(parts.to_device(batch), scalars).get().loss < expected.loss
        gradients[twin] = grads
    assert list(gradients["jax"]) == list(gradients["torch"]) == list(state.slots["exp_avg"])
    a, b = (without_key_bias(model, grads) for grads in gradients.values())
    gap, name = worst(a, b)
    assert gap <= limit, name


def test_gradients_and_update_under_a_gradient_scaler():
    """fp16: the gradients come out unscaled, and go in so; one that is not finite is a skipped
    step."""
    train, scalars = dataclasses.replace(DIGITS, precision="fp16"), StepScalars(1e-3)
    state, batch = random_state(TINY, "fp16"), first_batch(train)
    whole, parts = torch_trainer(state, train), torch_trainer(state, train)
    metrics = whole.train_step(whole.to_device(batch), scalars).get()
    lazy, grads = parts.gradients(parts.to_device(batch))
    assert lazy.get() == metrics and not metrics.skipped
    parts.update(grads, scalars)
    assert distance(whole.state(), parts.state())[0] == 0
    assert whole.state().scalars == parts.state().scalars
    before = parts.state()
    parts.update(grads | {"head.bias": np.full_like(grads["head.bias"], np.inf)}, scalars)
    after = parts.state()
    assert distance(before, after)[0] == 0 and after.step == 2
    assert after.scalars == {"adam_count": 1, "scale": 2.0**15, "growth_tracker": 0}


def test_float32_next_step():
    """In float32 the sign of a tiny gradient is rounding: a step is judged by what it leads to."""
    train = dataclasses.replace(DIGITS, precision="fp32")
    state = random_state(TINY, "fp32")
    a, b = (
        run(t, train, 2, total=100)
        for t in (jax_trainer(state, train), torch_trainer(state, train))
    )
    assert relative_l2(a.loss, b.loss) <= 1e-5 and relative_l2(a.grad_norm, b.grad_norm) <= 1e-5
    assert a.loss[0] != a.loss[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_ti16", "vit_s16", "vit_b16"])
def test_published_sizes_at_224(name, x64):
    cfg = model_config(name, num_classes=10)
    train = train_config(batch_size=1, image_size=224, weight_decay=0.3)
    (a, b), _, _ = states_after(train, cfg=cfg)
    gap, where = distance(a, b, cfg)
    assert gap <= LIMIT, where


@pytest.mark.quick
def test_constants_are_those_of_the_libraries():
    """The twins share them, so that no comparison of the twins shows another value."""
    known = torch.optim.AdamW([torch.zeros(1)]).defaults
    assert (BETA1, BETA2) == known["betas"] and EPS == known["eps"]
    theirs = inspect.signature(optax.adamw).parameters
    assert (BETA1, BETA2, EPS) == tuple(theirs[n].default for n in ("b1", "b2", "eps"))


@pytest.mark.quick
def test_decayed_elements():
    """Products only: not biases, norms, the class token or positions (counted, as an ndim rule
    would differ)."""
    cfg = model_config("vit_b16")
    table = canonical.shapes(cfg)
    decayed = {n for n in table if canonical.is_decayed(n)}
    expected = {"patch_embed.proj.weight", "head.weight"} | {
        f"blocks.{i}.{p}.weight"
        for i in range(12)
        for p in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    assert decayed == expected


def clip_with_eps(grads, clip):
    """As `torch.nn.utils.clip_grad_norm_` does it."""
    norm = torch.nn.utils.get_total_norm(grads)
    torch._foreach_mul_(grads, (clip / (norm + 1e-6)).clamp(max=1))
    return norm


MUTATIONS = {
    "clip adds 1e-6": (torch_vit.trainer, "clip_by_global_norm", clip_with_eps),
    "decay on the wrong tensors": (
        torch_vit.optim.canonical,
        "is_decayed",
        lambda name: name.endswith(".weight"),
    ),
    "another eps": (jax_vit.optim, "EPS", 1e-7),
    "no bias correction": (jax_vit.trainer, "BETA1", 0.0),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutations_are_caught(mutation, x64, monkeypatch):
    train, state = train_config(weight_decay=0.3, clip=0.5), random_state(TINY, "fp64")
    sound = {"jax": jax_trainer, "torch": torch_trainer}
    module = MUTATIONS[mutation][0]
    broken = "jax" if module.__name__.startswith("jax_vit") else "torch"
    results = {}
    for twin in ("jax", "torch"):
        with monkeypatch.context() as patch:
            if twin == broken:
                patch.setattr(*MUTATIONS[mutation])
            trainer = sound[twin](state, train)
            run(trainer, train, 1, total=100)
            results[twin] = trainer.state()
    assert distance(results["jax"], results["torch"])[0] > 100 * LIMIT
