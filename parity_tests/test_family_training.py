"""Claim: training every family is the same in both twins, and goes on in the other one.

Small models of six families, three updates in float64 by a recipe with everything in it.
"""

import dataclasses

import helpers
import numpy as np
import pytest
from helpers import jax_trainer, random_arrays, run, torch_trainer

from benchmarks.twin_pairs import state_distance
from shared_vit.run.state import first_state
from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig, model_config

SMALL = dict(image_size=8, patch_size=4, width=32, depth=2, num_heads=2, mlp_dim=48, num_classes=10)
FAMILIES = {
    "DINOv2": model_config("dinov2r_g14", **SMALL),
    "DINOv3": model_config("dinov3_splus16", **SMALL),
    "SigLIP": model_config("siglip_b16", **SMALL),
    "EVA-02": model_config("eva02_b14", **SMALL),
    "BEiT": model_config("beit_b16", **SMALL),
    "AIMv2": model_config("aimv2_l14", **SMALL),
    "RoPE mixed": model_config("rope_s16", **SMALL, rope="mixed", rope_base=10.0, rope_offset=0.0),
    "DeiT distilled": model_config("vit_s16", **SMALL, distilled=True),
}
LIMIT = 1e-11


@pytest.fixture(params=FAMILIES)
def cfg(request) -> ModelConfig:
    return dataclasses.replace(FAMILIES[request.param], drop_path=0.2, dropout=0.1)


def recipe_of(cfg, **changes):
    everything = dict(clip=0.5, layer_decay=0.8, ema=0.9, label_smoothing=0.1, weight_decay=0.1)
    recipe = dataclasses.replace(helpers.DIGITS, model=cfg, precision="fp64", batch_size=8)
    return dataclasses.replace(recipe, **everything | changes)


def start_of(cfg, recipe):
    return first_state(cfg, random_arrays(cfg, dtype=np.float64), "fp64", recipe)


def test_both_twins_take_the_same_steps_and_change_places(cfg, x64):
    recipe = recipe_of(cfg)
    state = start_of(cfg, recipe)
    in_torch, in_jax = torch_trainer(state, recipe), jax_trainer(state, recipe)
    for trainer in (in_torch, in_jax):
        run(trainer, recipe, 2, total=10)
    assert state_distance(in_torch.state(), in_jax.state())[0] < LIMIT
    # Each goes on where the other stopped.
    swapped = jax_trainer(in_torch.state(), recipe), torch_trainer(in_jax.state(), recipe)
    for trainer in swapped:
        run(trainer, recipe, 1, total=10)
    assert state_distance(*(trainer.state() for trainer in swapped))[0] < LIMIT


@pytest.mark.parametrize("name", ["DINOv3", "SigLIP", "BEiT", "RoPE mixed"])
def test_remat_changes_rounding_alone(name, x64):
    recipe = recipe_of(FAMILIES[name])
    cfg = FAMILIES[name]
    state = start_of(cfg, recipe)
    for make in (torch_trainer, jax_trainer):
        plain, again = make(state, recipe), make(state, recipe, remat=True)
        for trainer in (plain, again):
            run(trainer, recipe, 1, total=10)
        assert state_distance(plain.state(), again.state())[0] < LIMIT


def test_biases_that_do_not_exist_stay_exactly_zero(x64):
    """The keys' third of EVA-02's and BEiT's, under Adam, which scales rounding up."""
    for name in ("EVA-02", "BEiT"):
        cfg = FAMILIES[name]
        recipe = recipe_of(cfg)
        arrays = random_arrays(cfg, dtype=np.float64)
        keys = slice(cfg.width, 2 * cfg.width)
        for tensor in [n for n in arrays if n.endswith("qkv.bias")]:
            arrays[tensor][keys] = 0
        state = first_state(cfg, arrays, "fp64", recipe)
        for trainer in (torch_trainer(state, recipe), jax_trainer(state, recipe)):
            run(trainer, recipe, 2, total=10)
            after = trainer.state()
            moved = [n for n in arrays if n.endswith("qkv.bias")]
            assert moved and not any(after.params[n][keys].any() for n in moved)
            assert all(np.delete(after.params[n], keys).any() for n in moved)


def test_every_tensor_of_a_family_moves(cfg, x64):
    """And each by its own rate: no part is forgotten by an optimizer."""
    recipe = recipe_of(cfg, weight_decay=0.0, label_smoothing=0.0)
    state = start_of(cfg, recipe)
    trainer = torch_trainer(state, recipe)
    run(trainer, recipe, 1, total=10)
    after = trainer.state()
    rows = canonical.arrays(cfg)
    still = [n for n, a in after.params.items() if np.array_equal(a, state.params[n])]
    assert still == [n for n in still if not rows[n].trained]
