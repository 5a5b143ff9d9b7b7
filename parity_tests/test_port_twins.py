"""Claim: `twinvit port` finds the twins of this repository the same, and names what is planted."""

import dataclasses

import helpers
import jax
import numpy as np
import pytest
import torch
from helpers import SMALL, VARIANTS, random_arrays

import jax_vit
import jax_vit.attention
import jax_vit.ops
import torch_vit
from twinvit import port

BLOCKS = dataclasses.replace(SMALL, depth=1)


def explain(cfg, jax_cfg=None, **arguments):
    """The report on a pair of twins with the same weights, none of them constant."""
    arrays = random_arrays(cfg)
    reference = torch_vit.from_arrays(cfg, arrays)
    twin = jax_vit.from_arrays(jax_cfg or cfg, arrays)
    images = helpers.random_images(cfg).transpose(0, 3, 1, 2)
    return port.explain(reference, twin, (np.ascontiguousarray(images, np.float64),), **arguments)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_twins_are_the_same(variant):
    report = explain(dataclasses.replace(VARIANTS[variant], depth=1))
    assert report.same and not report.findings, str(report)


def test_their_gradients_are_the_same():
    report = explain(BLOCKS, what=("forward", "grad"))
    assert report.same, str(report)


CONFIGURED = {
    "gelu_tanh": dict(gelu="tanh"),
    "norm_eps": dict(norm_eps=1e-5),
}


@pytest.mark.parametrize("cause", CONFIGURED)
def test_another_function_is_named(cause):
    report = explain(SMALL, dataclasses.replace(SMALL, **CONFIGURED[cause]))
    assert report.explained and not report.same, str(report)
    assert [f.cause for f in report.findings] == [cause], str(report)
    assert report.remaining < 1e-12


def test_a_mutation_of_the_code_is_named_with_its_place(monkeypatch):
    """The scores scaled by the width of the model, not of a head."""
    original = jax_vit.ops.attention

    def scaled(q, *rest):
        factor = (1 / q.shape[2]) ** 0.5  # d / width
        return original(q * factor, *rest)

    monkeypatch.setattr(jax_vit.attention, "attention", scaled)
    report = explain(BLOCKS)
    assert report.explained, str(report)
    (finding,) = report.findings
    assert finding.cause == "attention_scale" and "blocks.0.attn" in finding.torch, str(report)


def test_swapped_square_weights_are_named():
    """The attention's output weight, square, transposed."""
    arrays = random_arrays(BLOCKS)
    reference = torch_vit.from_arrays(BLOCKS, arrays)
    name = "blocks.0.attn.proj.weight"
    twin = jax_vit.from_arrays(BLOCKS, arrays | {name: arrays[name].T.copy()})
    images = helpers.random_images(BLOCKS).transpose(0, 3, 1, 2)
    report = port.explain(reference, twin, (np.ascontiguousarray(images, np.float64),))
    assert not report.same and report.explained, str(report)
    assert [f.cause for f in report.findings] == ["weight_transposed"], str(report)
    assert "blocks.0.attn" in report.findings[0].torch


def test_x64_is_as_it_was():
    before = jax.config.jax_enable_x64
    explain(BLOCKS)
    assert jax.config.jax_enable_x64 == before
