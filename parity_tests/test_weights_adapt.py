"""Claim: positions resample as in timm and torch, a new head is zero, dtypes are checked."""

import dataclasses

import ml_dtypes
import numpy as np
import peers
import pytest
import torch
from helpers import SMALL, random_arrays

from shared_vit import weights
from shared_vit.errors import UserError
from shared_vit.spec import canonical
from shared_vit.spec.init import sincos2d
from shared_vit.weights import adapt
from twinvit.noise_rule import relative_l2

SIDES = [(14, 24), (14, 7), (24, 14), (3, 5), (5, 3), (16, 16), (1, 4), (4, 1), (37, 16)]
GRIDS = [((a, a), (b, b)) for a, b in SIDES]
GRIDS += [((14, 14), (7, 21)), ((5, 3), (3, 5)), ((4, 4), (2, 8)), ((2, 9), (4, 4))]


def theirs(positions: np.ndarray, old: tuple, new: tuple, prefix: int) -> np.ndarray:
    """torch's own, in float64, where timm's goes by way of float32."""
    grid = torch.from_numpy(positions[:, prefix:]).reshape(1, *old, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=new, mode="bicubic", antialias=True)
    return np.concatenate(
        [positions[:, :prefix], grid.permute(0, 2, 3, 1).flatten(1, 2).numpy()],
        axis=1,
    )


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("old, new", GRIDS)
def test_resampling(old, new, prefix):
    tokens = prefix + old[0] * old[1]
    positions = np.random.default_rng(0).standard_normal((1, tokens, 12))
    ours = adapt.resample_positions(positions, old, new, prefix)
    assert ours.dtype == np.float64 and ours.shape == (1, prefix + new[0] * new[1], 12)
    assert relative_l2(ours, theirs(positions, old, new, prefix)) <= 1e-12
    single = positions.astype(np.float32)
    timm = peers.timm.layers.resample_abs_pos_embed(
        torch.from_numpy(single), list(new), old_size=list(old), num_prefix_tokens=prefix
    )
    ours = adapt.resample_positions(single, old, new, prefix)
    assert relative_l2(ours, timm.numpy()) <= 5e-6  # float32 throughout


def test_mutation_is_caught():
    """torch's kernel without antialias (a = -3/4) is far from its kernel with it."""
    positions = np.random.default_rng(0).standard_normal((1, 14 * 14, 12))
    grid = torch.from_numpy(positions).reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
    wrong = (
        torch.nn.functional.interpolate(grid, size=(24, 24), mode="bicubic")
        .permute(0, 2, 3, 1)
        .reshape(1, 576, 12)
    )
    assert (
        relative_l2(adapt.resample_positions(positions, (14, 14), (24, 24), 0), wrong.numpy())
        > 1e-2
    )


@pytest.mark.parametrize("size, classes", [(48, None), (None, 11), (16, 3), (24, 7)])
def test_sizes(size, classes):
    arrays = random_arrays(SMALL)
    cfg, out = adapt.adapt(SMALL, arrays, image_size=size, num_classes=classes)
    expected = dataclasses.replace(SMALL, image_size=size or 24, num_classes=classes or 7)
    assert cfg == expected
    canonical.check(cfg, out)
    assert list(out) == list(canonical.shapes(cfg)) and all(
        isinstance(array, np.ndarray) for array in out.values()
    )
    changed = {"pos_embed"} if size not in (None, 24) else set()
    if classes not in (None, 7):
        changed |= {"head.weight", "head.bias"}
        assert not out["head.weight"].any() and not out["head.bias"].any()
    assert {name for name in out if not np.array_equal(out[name], arrays[name])} == changed


def test_a_new_task_drops_the_pre_logits():
    cfg = dataclasses.replace(SMALL, pre_logits=28)
    same, out = adapt.adapt(cfg, random_arrays(cfg), num_classes=7)
    assert same == cfg and "pre_logits.weight" in out
    other, out = adapt.adapt(cfg, random_arrays(cfg), num_classes=8)
    assert (
        other.pre_logits == 0
        and out["head.weight"].shape == (8, 60)
        and "pre_logits.weight" not in out
    )


def test_fixed_positions_are_computed_anew():
    cfg = dataclasses.replace(SMALL, pos_embed="sincos2d")
    arrays = random_arrays(cfg) | {"pos_embed": sincos2d(cfg)}
    larger, out = adapt.adapt(cfg, arrays, image_size=48)
    assert np.array_equal(out["pos_embed"], sincos2d(larger))


def test_impossible_size_is_refused():
    with pytest.raises(UserError, match="patches of 8 px do not divide an image of 50 px"):
        adapt.adapt(SMALL, random_arrays(SMALL), image_size=50)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_dtype(dtype):
    arrays = random_arrays(SMALL)
    kind = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32}[dtype]
    _, out = adapt.adapt(SMALL, arrays, dtype=dtype)
    for name, array in arrays.items():
        assert out[name].dtype == kind
        expected = torch.from_numpy(array).to(
            {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
        )
        assert np.array_equal(
            out[name].astype(np.float32), expected.float().numpy()
        )  # rounded as torch rounds


def test_a_value_too_large_for_the_dtype_is_named():
    arrays = random_arrays(SMALL)
    arrays["blocks.2.mlp.fc2.weight"][3, 4] = 7e4
    with pytest.raises(
        UserError, match=r"blocks.2.mlp.fc2.weight has values up to 70000.*float16.*bf16"
    ):
        adapt.adapt(SMALL, arrays, dtype="fp16")
    adapt.adapt(SMALL, arrays, dtype="bf16")


def test_lazy_arrays_stay_lazy(tmp_path):
    weights.write(tmp_path / "a.safetensors", SMALL, random_arrays(SMALL))
    source = weights.open_weights(tmp_path / "a.safetensors")
    _, out = adapt.adapt(source.cfg, source.arrays, image_size=48, num_classes=9, dtype="bf16")
    assert all(isinstance(array, weights.lazy.LazyArray) for array in out.values())
    cfg, eager = adapt.adapt(
        SMALL, random_arrays(SMALL), image_size=48, num_classes=9, dtype="bf16"
    )
    weights.write(tmp_path / "b.safetensors", cfg, out)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(weights.read(tmp_path / "b.safetensors")[1].values(), eager.values())
    )
