"""Claim: positions resample as in timm and torch, a new head is zero, dtypes are checked."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import peers
import pytest
import scipy.ndimage
import torch
from helpers import SMALL, random_arrays
from PIL import Image

import jax_vit
import torch_vit
import twinvit
from shared_vit import weights
from shared_vit.errors import UserError
from shared_vit.run.command_line import parse
from shared_vit.run.evaluation import describe_evaluated
from shared_vit.run.plan import first_or_given_state, make_plan, state_to_evaluate
from shared_vit.spec import canonical
from shared_vit.spec.init import sincos2d
from shared_vit.spec.recipe import Recipe
from shared_vit.spec.settings import written
from shared_vit.weights import adapt
from shared_vit.weights.positions import describe_positions, resample_positions
from twinvit.convert.command import convert
from twinvit.parity.noise_rule import relative_l2
from twinvit.predict.command import predict
from twinvit.predict.embed import embed

SIDES = [(14, 24), (14, 7), (24, 14), (3, 5), (5, 3), (16, 16), (1, 4), (4, 1), (37, 16)]
GRIDS = [((a, a), (b, b)) for a, b in SIDES]
GRIDS += [((14, 14), (7, 21)), ((5, 3), (3, 5)), ((4, 4), (2, 8)), ((2, 9), (4, 4))]


RULES = ["bicubic", "dinov2", "corners"]


def theirs(positions: np.ndarray, old: tuple, new: tuple, prefix: int, rule: str) -> np.ndarray:
    """torch's own, in float64, with the arguments of those whose rule it is; timm's itself goes by
    way of float32."""
    grid = torch.from_numpy(positions[:, prefix:]).reshape(1, *old, -1).permute(0, 3, 1, 2)
    arguments = {
        "bicubic": dict(size=new, mode="bicubic", antialias=True),
        "dinov2": dict(scale_factor=tuple((b + 0.1) / a for a, b in zip(old, new)), mode="bicubic"),
        "corners": dict(size=new, mode="bilinear", align_corners=True),
    }
    grid = torch.nn.functional.interpolate(grid, **arguments[rule])
    assert grid.shape[2:] == new
    return np.concatenate(
        [positions[:, :prefix], grid.permute(0, 2, 3, 1).flatten(1, 2).numpy()],
        axis=1,
    )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("old, new", GRIDS)
def test_resampling(old, new, prefix, rule):
    tokens = prefix + old[0] * old[1]
    table = np.random.default_rng(0).standard_normal((1, tokens, 12))
    ours = resample_positions(table, old, new, prefix, rule)
    assert ours.dtype == np.float64 and ours.shape == (1, prefix + new[0] * new[1], 12)
    assert relative_l2(ours, theirs(table, old, new, prefix, rule)) <= 1e-12
    if rule != "bicubic":
        return
    single = table.astype(np.float32)
    timm = peers.timm.layers.resample_abs_pos_embed(
        torch.from_numpy(single), list(new), old_size=list(old), num_prefix_tokens=prefix
    )
    assert relative_l2(resample_positions(single, old, new, prefix), timm.numpy()) <= 5e-6


@pytest.mark.parametrize("old, new", GRIDS)
def test_corners_are_scipy_s(old, new):
    """Which big_vision and Google's ViT call."""
    table = np.random.default_rng(0).standard_normal((1, old[0] * old[1], 4))
    zoom = (new[0] / old[0], new[1] / old[1], 1)
    zoomed = scipy.ndimage.zoom(table.reshape(*old, 4), zoom, order=1)
    if zoomed.shape[:2] == new and 1 not in new:  # it rounds the size by itself
        ours = resample_positions(table, old, new, 0, "corners")
        assert relative_l2(ours.reshape(*new, 4), zoomed) <= 1e-12


def test_each_rule_is_another():
    """And none is torch's kernel without antialias at the sizes that are asked for."""
    table = np.random.default_rng(0).standard_normal((1, 14 * 14, 12))
    found = [resample_positions(table, (14, 14), (24, 24), 0, rule) for rule in RULES]
    grid = torch.from_numpy(table).reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
    plain = torch.nn.functional.interpolate(grid, size=(24, 24), mode="bicubic")
    found.append(plain.permute(0, 2, 3, 1).reshape(1, 576, 12).numpy())
    for i, a in enumerate(found):
        assert all(relative_l2(a, b) > 1e-2 for b in found[:i])
    with pytest.raises(UserError, match="unknown rule for positions 'area': choose from bicubic"):
        resample_positions(table, (14, 14), (24, 24), 0, "area")


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


REGISTERS = dict(registers=4, prefix_positions=False)
FAMILY = {
    "rows for the patches alone": (REGISTERS, 0),
    "rows for registers": (dict(registers=4), 5),
    "distilled": (dict(distilled=True), 2),
    "map": (dict(class_token=False, pool="map"), 0),
    "token and mean": (dict(pool="token+mean"), 1),
    "rotary alone": (
        dict(pos_embed="none", rope="centred", rope_base=100.0, width=40) | dict(registers=2),
        None,
    ),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", FAMILY)
def test_later_families(kind, rule):
    """Rows of the tokens before the patches' stay, where there are any; every head is new."""
    changes, prefix = FAMILY[kind]
    old = dataclasses.replace(SMALL, **changes)
    arrays = random_arrays(old, dtype=np.float64)
    new, out = adapt.adapt(old, arrays, (32, 48), num_classes=11, positions=rule)
    canonical.check(new, out)
    assert new == dataclasses.replace(old, image_size=32, image_width=48, num_classes=11)
    changed = {"head.weight", "head.bias"} & set(out) | {n for n in out if "head_dist" in n}
    assert out["head.weight"].shape == (11, old.pooled_width)
    assert ("head_dist.weight" in out) == old.distilled
    assert not any(out[name].any() for name in changed)
    if prefix is None:
        assert "pos_embed" not in out
    else:
        changed |= {"pos_embed"}
        expected = theirs(arrays["pos_embed"], (3, 3), (4, 6), prefix, rule)
        assert relative_l2(out["pos_embed"], expected) <= 1e-12
    assert {name for name in out if not np.array_equal(out[name], arrays[name])} == changed


def test_tables_of_relative_positions_are_not_resampled():
    cfg = dataclasses.replace(SMALL, relative_bias=True)
    arrays = random_arrays(cfg)
    said = "biases by relative position for images of 24 px, which are not resampled to 32 px"
    with pytest.raises(UserError, match=said):
        adapt.adapt(cfg, arrays, image_size=32)
    assert adapt.adapt(cfg, arrays, image_size=24, num_classes=3)[0].num_classes == 3


def test_what_becomes_of_positions_is_said():
    larger = dataclasses.replace(SMALL, image_size=32, image_width=48)
    assert describe_positions(SMALL, SMALL) == "kept, 3 x 3"
    said = [describe_positions(SMALL, larger, rule) for rule in RULES]
    assert said == [
        "3 x 3 -> 4 x 6: bicubic with antialias, as timm",
        "3 x 3 -> 4 x 6: bicubic without antialias, as DINOv2's hub models without registers",
        "3 x 3 -> 4 x 6: bilinear between the corners, as big_vision",
    ]
    none = [dataclasses.replace(cfg, pos_embed="none") for cfg in (SMALL, larger)]
    assert describe_positions(*none) == "3 x 3 -> 4 x 6: no learned ones"


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


@pytest.mark.parametrize("rule", RULES)
def test_every_way_in_takes_the_rule(rule, tmp_path, capsys):
    path, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    arrays = random_arrays(SMALL)
    weights.write(path, SMALL, arrays)
    table = resample_positions(arrays["pos_embed"], (3, 3), (4, 6), 1, rule)
    changes = dict(image_size="32,48", positions=rule)

    def is_of_the_rule(model) -> bool:
        return np.array_equal(np.asarray(model.pos_embed.detach()), table)

    assert convert(str(path), str(out), to="torch", **changes) == 0
    said = describe_positions(
        SMALL, dataclasses.replace(SMALL, image_size=32, image_width=48), rule
    )
    assert f"positions {said}\n" in capsys.readouterr().out
    assert np.array_equal(weights.read(out)[1]["pos_embed"], table)
    assert np.array_equal(weights.read(path, **changes)[1]["pos_embed"], table)
    assert is_of_the_rule(torch_vit.load(path, **changes))
    assert np.array_equal(np.asarray(jax_vit.load(path, **changes).pos_embed[...]), table)
    assert is_of_the_rule(twinvit.load(path, **changes).model)
    assert is_of_the_rule(twinvit.embedder(path, **changes).model)


@pytest.mark.parametrize("rule", RULES)
def test_a_run_takes_the_rule(rule, tmp_path):
    """And an evaluation; a record of before the flag means timm's."""
    path = tmp_path / "a.safetensors"
    cfg = dataclasses.replace(SMALL, patch_size=2, image_size=6, num_classes=10)
    arrays = random_arrays(cfg)
    weights.write(path, cfg, arrays)
    table = resample_positions(arrays["pos_embed"], (3, 3), (4, 4), 1, rule)
    flags = ["--preset=digits", "--device=cpu", "--world_size=1", "--precision=fp32"]
    flags += [
        f"--init_from={path}",
        f"--positions={rule}",
        "--image_size=8",
        f"--run_dir={tmp_path / 'run'}",
    ]
    plan = make_plan(parse(flags, "x"), "torch")
    assert np.array_equal(first_or_given_state(plan).params["pos_embed"], table)
    plan = make_plan(parse(["--mode=eval", *flags], "x"), "torch")
    assert np.array_equal(state_to_evaluate(plan).params["pos_embed"], table)
    result = dict(val_top1=0.5, val_top5=0.5, val_loss=1.0, val_count=2)
    said = f"positions {describe_positions(cfg, plan.model, rule)}, "
    assert said in describe_evaluated(plan, result)
    assert ("positions" in written(plan.recipe)) == (rule != "bicubic")
    assert Recipe.from_dict(written(plan.recipe)) == plan.recipe


def test_commands_say_the_rule(tmp_path, capsys):
    """With what they write: features, classes, a program."""
    path, picture = tmp_path / "a.safetensors", tmp_path / "a.png"
    weights.write(path, SMALL, random_arrays(SMALL))
    Image.fromarray(np.arange(60 * 50 * 3, dtype=np.uint8).reshape(60, 50, 3)).save(picture)
    larger = dict(image_size="32,48", positions="corners")
    features = twinvit.embedder(path, **larger).embed(picture)
    probability = twinvit.load(path, **larger).predict(picture)[0]["probability"]
    capsys.readouterr()
    said = "notice: positions 3 x 3 -> 4 x 6: bilinear between the corners, as big_vision\n"
    out = tmp_path / "a.npz"
    assert embed(str(path), (str(picture),), str(out), **larger) == 0
    assert said in capsys.readouterr().err
    assert np.array_equal(np.load(out)["features"][0], features)
    assert predict(str(path), (str(picture),), json=True, **larger) == 0
    output = capsys.readouterr()
    assert said in output.err
    assert json.loads(output.out)["top"][0]["probability"] == probability
    card = twinvit.export(path, tmp_path / "a.pt2", "torch", verify=False, **larger)
    assert said in capsys.readouterr().err and card["model_config"]["image_width"] == 48
