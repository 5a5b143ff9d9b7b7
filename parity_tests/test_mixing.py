"""Claim: the draws of mixup and cutmix are those of the papers, and functions of (seed, step)
alone; both twins mix by them."""

import dataclasses
import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from helpers import DIGITS, IN_THREADS
from mixing_reference import mix, mixed_loss
from scipy import stats

import jax_vit.objective
import torch_vit.objective
from shared_vit.data import batches
from shared_vit.data.mixing import Mix, check_mixing, draw_mix, mix_of, mix_seed
from shared_vit.errors import UserError
from shared_vit.run.command_line import parse

COUNT = 4000


def draws(**alphas):
    settings = {"mixup": 0.0, "cutmix": 0.0} | alphas
    return [draw_mix(7, t, 32, **settings) for t in range(COUNT)]


def distance(lam, a, b):
    """From Beta(a, b) rounded to 2^-20; Kolmogorov's, over its 0.1 % level."""
    k = np.arange(0, 2**20, 64)
    found = np.searchsorted(np.sort(lam * 2**20), k, "right") / len(lam)
    return np.abs(found - stats.beta(a, b).cdf((k + 0.5) / 2**20)).max() * len(lam) ** 0.5 / 1.95


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.8, 1.0, 2.5])
def test_lam_of_mixup_has_the_beta_distribution(alpha):
    found = draws(mixup=alpha)
    lam = np.array([d.lam for d in found])
    assert {d.kind for d in found} == {"mixup"} and all(d.box == (0, 0, 0, 0) for d in found)
    assert all(d.pixels == d.lam and (d.lam * 2**20).is_integer() for d in found)
    assert distance(lam, alpha, alpha) < 1 < distance(lam, 1.3 * alpha, alpha)
    assert distance(lam, 1.6 * alpha, 1.6 * alpha) > 1


def test_tiny_alphas_neither_fail_nor_loop():
    for alpha in (1e-6, 1e-3, 4.0):
        lam = [draw_mix(1, t, 8, mixup=alpha, cutmix=0).lam for t in range(50)]
        assert all(0 <= v <= 1 for v in lam) and len(set(lam)) > 1
    assert set(lam) != {0, 1}


def test_boxes_of_cutmix():
    found = draws(cutmix=1.0)
    inside = []
    for d in found:
        top, left, bottom, right = d.box
        assert d.kind == "cutmix" and d.pixels == 1
        assert 0 <= top <= bottom <= 32 and 0 <= left <= right <= 32
        assert d.lam == 1 - (bottom - top) * (right - left) / 1024
        if 0 < top and 0 < left and bottom < 32 and right < 32:
            assert bottom - top == right - left and (bottom - top) % 2 == 0
            inside.append((bottom - top) // 2)
    assert len(inside) > 500
    middles = Counter(d.box[0] + d.box[2] >= 32 for d in found if d.box[0] < d.box[2])
    assert abs(middles[True] - middles[False]) < 5 * math.sqrt(COUNT)


@pytest.mark.parametrize("size", [8, 32, 224])
def test_a_box_has_the_published_half_side(size, monkeypatch):
    """int(size sqrt(1 - lam) / 2) each way about a uniform centre, for every lam of a grid."""
    from shared_vit.data import mixing

    for k in range(0, 2**20 + 1, 2**20 // 97):
        monkeypatch.setattr(mixing, "symmetric_beta", lambda alpha, uniform, k=k: k)
        half = int(size * math.sqrt(1 - k / 2**20) / 2)
        for t in range(3):
            top, left, bottom, right = draw_mix(3, t, size, 0, 1.0).box
            if 0 < top and bottom < size:
                assert bottom - top == 2 * half
            assert bottom - top <= 2 * half and right - left <= 2 * half


def test_where_both_are_on_half_of_the_batches_take_each():
    found = draws(mixup=0.2, cutmix=1.0)
    kinds = Counter(d.kind for d in found)
    assert set(kinds) == {"mixup", "cutmix"}
    assert abs(kinds["mixup"] - COUNT / 2) < 3.3 * math.sqrt(COUNT / 4)
    lam = np.array([d.lam for d in found if d.kind == "mixup"])
    assert distance(lam, 0.2, 0.2) < 1


def test_a_draw_depends_on_seed_and_step_alone():
    settings = dict(size=32, mixup=0.2, cutmix=1.0)
    assert draw_mix(5, 9, **settings) == draw_mix(5, 9, **settings)
    assert len({draw_mix(s, t, **settings).lam for s in range(10) for t in range(10)}) > 60
    assert draw_mix(5, 9, 32, 0, 0) == Mix()
    # These may never change: runs are resumed.
    assert draw_mix(5, 9, 32, 0.2, 0) == Mix("mixup", *2 * [0.9954252243041992])
    assert draw_mix(5, 9, 32, 0, 1.0) == Mix("cutmix", 0.765625, box=(2, 17, 18, 32))


def test_the_seed_is_new_and_those_before_it_stay():
    for seed in (0, 3, 2**63):
        before = np.random.SeedSequence(seed).generate_state(2).tolist()
        assert np.random.SeedSequence(seed).generate_state(3).tolist() == [*before, mix_seed(seed)]


def test_the_reference_mixes_pairs():
    rng = np.random.default_rng(15)
    images, labels = rng.normal(size=(6, 8, 8, 3)), np.arange(6)
    mixed, own, partners = mix(images, labels, Mix("mixup", 0.25, 0.25))
    assert partners.tolist() == [1, 0, 3, 2, 5, 4] and own.tolist() == labels.tolist()
    assert np.allclose(mixed[2], 0.25 * images[2] + 0.75 * images[3])
    mixed, _, _ = mix(images, labels, Mix("cutmix", 0.5, box=(2, 0, 6, 8)))
    assert np.array_equal(mixed[1, 2:6], images[0, 2:6])
    assert np.array_equal(mixed[1, :2], images[1, :2])
    draw = Mix("mixup", 0.3, 0.3)
    parts = [mix(images[i : i + 2], labels[i : i + 2], draw)[0] for i in (0, 2, 4)]
    assert np.array_equal(np.concatenate(parts), mix(images, labels, draw)[0])


@pytest.mark.parametrize(
    "draw", [Mix("mixup", 0.25, 0.25), Mix("cutmix", 0.625, box=(2, 3, 6, 8))], ids=str
)
def test_the_twins_mix_and_judge_as_the_reference(draw, x64):
    rng = np.random.default_rng(16)
    images, labels = rng.normal(size=(6, 8, 8, 3)), np.arange(6)
    logits = rng.normal(size=(6, 7))
    mixed, own, partners = mix(images, labels, draw)
    numbers, box = np.array([draw.lam, draw.pixels]), np.array(draw.box, np.int32)
    in_jax = jax_vit.objective.Mixing(numbers, box)
    in_torch = torch_vit.objective.Mixing(torch.from_numpy(numbers), torch.from_numpy(box))
    assert np.array_equal(jax_vit.objective.mix(images, in_jax), mixed)
    assert np.array_equal(torch_vit.objective.mix(torch.from_numpy(images), in_torch), mixed)
    tensors = torch.from_numpy(logits), torch.from_numpy(labels)
    for kind, s in itertools.product(("softmax", "sigmoid"), (0.0, 0.1)):
        target = (1 - s) * (draw.lam * np.eye(7)[own] + (1 - draw.lam) * np.eye(7)[partners])
        target += s / 7
        p = 1 / (1 + np.exp(-logits))
        expected = {
            "softmax": mixed_loss(logits, own, partners, draw.lam, s),
            "sigmoid": -(target * np.log(p) + (1 - target) * np.log(1 - p)).sum(1),
        }[kind]
        a = jax_vit.objective.losses(logits, labels, kind, s, in_jax)
        b = torch_vit.objective.losses(*tensors, kind, s, in_torch)
        np.testing.assert_allclose(a, expected, rtol=1e-12)
        np.testing.assert_allclose(b, expected, rtol=1e-12)


@pytest.mark.parametrize("value", [-1e3, -40.0, 40.0, 1e3])
def test_losses_of_extreme_logits_stay_exact(value, x64):
    """Sigmoid's loss of one class is log(1 + e^z), also where e^z overflows or vanishes."""
    logits, labels = np.array([[value, 0.0]]), np.array([1])
    expected = np.logaddexp(0, value) + np.log(2)
    a = jax_vit.objective.losses(logits, labels, "sigmoid")
    b = torch_vit.objective.losses(torch.from_numpy(logits), torch.from_numpy(labels), "sigmoid")
    assert float(a[0]) == pytest.approx(expected, rel=1e-14)
    assert float(b[0]) == pytest.approx(expected, rel=1e-14)


def test_the_closed_form_is_the_loss_of_a_soft_target():
    rng = np.random.default_rng(16)
    logits, own, partners = rng.normal(size=(5, 7)), np.arange(5), np.arange(5)[::-1]
    for lam, s in ((1.0, 0.0), (0.3, 0.0), (0.3, 0.1)):
        target = (1 - s) * (lam * np.eye(7)[own] + (1 - lam) * np.eye(7)[partners]) + s / 7
        logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        expected = -(target * logs).sum(1)
        assert np.allclose(mixed_loss(logits, own, partners, lam, s), expected, rtol=1e-13)


def test_batches_of_training_are_mixed_and_those_of_evaluation_not():
    recipe = dataclasses.replace(DIGITS, mixup=0.2, seed=5)
    for split, expected in (("train", mix_of(recipe, 4)), ("val", None)):
        stream = batches(recipe, split, start=4, runtime=IN_THREADS)
        assert next(stream).mix == expected
        stream.close()
    assert mix_of(recipe, 4) == draw_mix(mix_seed(5), 4, 8, 0.2, 0.0) != mix_of(recipe, 5)


def test_odd_shares_and_impossible_alphas_are_refused():
    check_mixing(24, 4, mixup=0.2, cutmix=0)
    check_mixing(12, 4, mixup=0, cutmix=0)
    with pytest.raises(UserError, match="leaves 3 rows to each, an odd number; a multiple of 8"):
        check_mixing(12, 4, mixup=0, cutmix=1.0)
    with pytest.raises(UserError, match="leaves 3 rows to each"):
        parse(["--preset=digits", "--mixup=0.2", "--batch_size=12", "--world_size=4"], "train")
    for alpha in ("-1", "5", "nan"):
        with pytest.raises(UserError, match="--cutmix must be"):
            parse(["--preset=digits", f"--cutmix={alpha}"], "train")
