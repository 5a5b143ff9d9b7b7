"""Claim: the plain ViTs of timm, family by family, are the twins' functions, in float64.

Each has two blocks, 5 x 3 patches and drawn weights; logits and tokens within 1e-12 of timm's own
model, and what is written back is timm's file bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch

import jax_vit
import torch_vit
from benchmarks.twin_pairs import without_key_bias
from shared_vit import weights
from shared_vit.data.batch import Batch
from shared_vit.errors import UserError
from shared_vit.run.state import StepScalars, first_state
from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig, model_config
from shared_vit.spec.families import MODELS, timm_name
from shared_vit.spec.optimizers import BETA1, BETA2, EPS
from shared_vit.weights.formats.base import Hints
from shared_vit.weights.formats.timm import Timm
from shared_vit.weights.formats.timm_architectures import architectures, function_of

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import timm_zoo  # noqa: E402
from timm_fields import fields_of  # noqa: E402

# One of each kind of function and of spelling.
NAMES = [
    "vit_small_patch14_dinov2",
    "vit_giant_patch14_reg4_dinov2",
    "vit_base_patch16_dinov3",
    "vit_huge_plus_patch16_dinov3_qkvb",
    "vit_so400m_patch16_siglip_256",
    "vit_base_patch16_clip_quickgelu_224",
    "deit3_small_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "eva02_tiny_patch14_224",
    "eva02_base_patch16_clip_224",
    "eva02_enormous_patch14_clip_224",
    "aimv2_large_patch14_224",
    "beit_base_patch16_224",
    "vit_small_patch16_rope_mixed_ape_224",
    "vit_pe_core_base_patch16_224",
    "vit_so150m_patch16_reg4_gap_256",
    "vit_base_patch16_sapiens2",
    "naflexvit_base_patch16_gap",
]


@pytest.mark.parametrize("name", NAMES)
def test_both_twins_compute_what_timm_does(name, x64, tmp_path):
    found = timm_zoo.distances(timm_zoo.drawn(name, tmp_path / "model"))
    assert all(gap <= 1e-12 for gap in found.values()), found


def test_the_table_is_that_of_the_installed_timm():
    """Of each architecture above, so that a change of timm's is seen."""
    for name in NAMES:
        with torch.device("meta"):
            model = timm_zoo.timm.create_model(name)
        cfg = ModelConfig(**fields_of(model))
        known = architectures()[name].cfg
        assert dataclasses.replace(cfg, layer_scale_init=known.layer_scale_init) == known


def test_every_named_model_is_the_one_that_its_row_names():
    for name in MODELS:
        theirs = timm_name(name)
        if theirs is None or theirs not in architectures():
            assert name in ("vit_nano2", "vit_mini4", "vit_ti4"), name
            continue
        cfg, known = model_config(name, image_size=16 * MODELS[name]["patch_size"]), architectures()
        same = dataclasses.replace(known[theirs].cfg, image_size=cfg.image_size)
        assert function_of(cfg) == function_of(same), name
        for size in ("width", "depth", "num_heads", "mlp_dim"):
            assert getattr(cfg, size) == getattr(same, size), (name, size)


# Each changes one thing that no shape shows.
TRAPS = {
    "pairs of channels": ("vit_base_patch16_dinov3", dict(rope="axial")),
    "rows and columns": ("eva02_tiny_patch14_224", dict(rope="axial_xy")),
    "offset": ("vit_pe_core_base_patch16_224", dict(rope_offset=0.0)),
    "reference grid": ("eva02_tiny_patch14_224", dict(rope_grid=0)),
    "eps": ("vit_base_patch16_dinov3", dict(norm_eps=1e-6)),
    "GELU": ("vit_so400m_patch16_siglip_256", dict(gelu="erf")),
    "QuickGELU": ("vit_base_patch16_clip_quickgelu_224", dict(activation="gelu")),
    "heads of pooling": ("vit_pe_core_base_patch16_224", dict(map_heads=0)),
    "tokens of pooling": ("vit_pe_core_base_patch16_224", dict(pool_class_token=False)),
    "place of the norm": ("eva02_enormous_patch14_clip_224", dict(post_norm=False)),
    "pool": ("vit_base_patch16_dinov3", dict(pool="token")),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_wrong_function_of_the_same_tensors_is_seen(trap, tmp_path):
    """Far beyond 1e-12: the comparison above can fail."""
    name, changes = TRAPS[trap]
    pair = timm_zoo.drawn(name, tmp_path / "model")
    cfg, arrays = weights.read(pair.folder, "timm")
    if changes.get("rope") == "axial" and cfg.rope == "centred":
        changes = changes | dict(rope_grid=16)
    wrong = torch_vit.from_arrays(dataclasses.replace(cfg, **changes), arrays, "fp64")
    with torch.no_grad():
        assert timm_zoo.gap(wrong(pair.images), pair.model(pair.images)) > 1e-7


@pytest.mark.parametrize("first, second", [("attn.qkv", 0), ("mlp.fc1", 0), ("reg_token", 1)])
def test_parts_in_another_order_are_seen(first, second, tmp_path):
    """Queries for keys, the gate for the value, registers in another order."""
    pair = timm_zoo.drawn("vit_giant_patch14_reg4_dinov2", tmp_path / "model")
    cfg, arrays = weights.read(pair.folder, "timm")
    name = first if first == "reg_token" else f"blocks.0.{first}.weight"
    array = np.asarray(arrays[name])
    halves = np.array_split(array, 3 if "qkv" in first else 2, axis=second)
    arrays = {**arrays, name: np.concatenate(halves[::-1], axis=second)}
    wrong = torch_vit.from_arrays(cfg, arrays, "fp64")
    with torch.no_grad():
        far = timm_zoo.gap(
            wrong.features(pair.images).tokens, pair.model.forward_features(pair.images)
        )
    assert far > 1e-4


# timm's AdamW on timm's model, against the twins' on the same images and labels.
STEPPED = [
    "vit_small_patch14_dinov2",
    "vit_base_patch16_dinov3_qkvb",
    "vit_so400m_patch16_siglip_256",
    "vit_base_patch16_clip_quickgelu_224",
    "deit3_small_patch16_224",
    "eva02_base_patch14_224",
    "aimv2_large_patch14_224",
    "vit_base_patch16_rope_mixed_224",
    "beit_base_patch16_224",
]


@pytest.mark.parametrize("name", STEPPED)
def test_one_step_of_adamw_is_timms(name, x64, tmp_path):
    """Gradients, which parameters decay and the update, of a head on seven classes."""
    pair = timm_zoo.drawn(name, tmp_path / "model", num_classes=7)
    cfg, arrays = weights.read(pair.folder, "timm")
    arrays = {n: np.asarray(a) for n, a in arrays.items()}
    recipe = dataclasses.replace(
        helpers.DIGITS, model=cfg, precision="fp64", clip=np.inf, weight_decay=0.3, batch_size=4
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, *cfg.image_shape, 3), np.uint8)
    labels = np.array([0, 3, 6, 2], np.int32)
    _timm_step(pair.model, cfg, images, labels, recipe)
    timm_zoo.write_folder(pair)
    _, expected = weights.read(pair.folder, "timm")
    expected = without_key_bias(cfg, {n: np.asarray(a) for n, a in expected.items()})
    batch = Batch(images, labels, np.ones(4, np.float32), np.arange(4), 0)
    state = first_state(cfg, arrays, "fp64", recipe)
    for trainer in (helpers.torch_trainer(state, recipe), helpers.jax_trainer(state, recipe)):
        trainer.train_step(trainer.to_device(batch), StepScalars(1e-3)).get()
        found = without_key_bias(cfg, trainer.state().params)
        before = without_key_bias(cfg, arrays)
        gap, where = helpers.worst(
            {n: found[n] - before[n] for n in found}, {n: expected[n] - before[n] for n in found}
        )
        assert gap < 1e-7, where  # of the update alone
        assert helpers.worst(found, expected)[0] < 1e-10


def _timm_step(model, cfg, images, labels, recipe) -> None:
    """One step of torch's AdamW on timm's model and timm's groups of parameters."""
    from timm.optim import param_groups_weight_decay

    x = torch.from_numpy((images / 255 - np.array(cfg.mean)) / np.array(cfg.std))
    torch.nn.functional.cross_entropy(
        model(x.permute(0, 3, 1, 2)), torch.from_numpy(labels).long()
    ).backward()
    groups = param_groups_weight_decay(
        model, recipe.weight_decay, no_weight_decay_list=model.no_weight_decay()
    )
    torch.optim.AdamW(groups, lr=1e-3, betas=(BETA1, BETA2), eps=EPS).step()


def bare(folder: Path, to: Path) -> Path:
    """The weights without JSON, under another name."""
    to.write_bytes((folder / "model.safetensors").read_bytes())
    return to


def test_a_bare_file_is_known_by_its_name_or_its_tensors(tmp_path):
    pair = timm_zoo.drawn("vit_base_patch16_dinov3", tmp_path / "model")
    cfg, _ = weights.read(pair.folder, "timm")
    named = bare(pair.folder, tmp_path / "vit_base_patch16_dinov3.lvd1689m.safetensors")
    found = weights.open_weights(named).cfg
    assert function_of(found) == function_of(cfg) and found.rope == "centred"
    assert (found.width, found.num_heads) == (cfg.width, cfg.num_heads)
    unknown = bare(pair.folder, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="put timm's config.json next to it"):
        weights.open_weights(unknown)


def test_tensors_of_two_functions_are_refused(tmp_path):
    """CLIP's image tower has GELU or QuickGELU, and no tensor tells which."""
    with torch.device("meta"):
        model = timm_zoo.timm.create_model("vit_base_patch32_clip_224")
    state = {n: np.zeros(t.shape, np.float32) for n, t in model.state_dict().items()}
    from safetensors.numpy import save_file

    save_file(state, tmp_path / "clip.safetensors")
    with pytest.raises(UserError, match="compute different functions of the same tensors"):
        weights.open_weights(tmp_path / "clip.safetensors")
    (tmp_path / "clip.safetensors").rename(
        tmp_path / "vit_base_patch32_clip_quickgelu_224.safetensors"
    )
    source = weights.open_weights(tmp_path / "vit_base_patch32_clip_quickgelu_224.safetensors")
    assert source.cfg.activation == "quick_gelu" and source.cfg.num_classes == 1000


def test_a_new_head_and_a_bf16_file(tmp_path):
    """Headless weights: none unless it is asked for; the file's types stay."""
    pair = timm_zoo.drawn("vit_small_patch14_dinov2", tmp_path / "model")
    from safetensors.torch import load_file, save_file

    file = pair.folder / "model.safetensors"
    save_file({n: t.bfloat16() for n, t in load_file(file).items()}, file)
    source = weights.open_weights(pair.folder, num_classes=5)
    assert source.cfg.num_classes == 5 and source.new_head
    assert {str(a.dtype) for n, a in source.arrays.items() if "head" not in n} == {"bfloat16"}
    assert weights.open_weights(pair.folder).cfg.num_classes == 0


def test_config_json_goes_before_the_name(tmp_path):
    pair = timm_zoo.drawn("vit_small_patch14_dinov2", tmp_path / "model")
    path = pair.folder / "config.json"
    config = json.loads(path.read_text())
    config["model_args"] |= {"act_layer": "gelu_tanh", "global_pool": "avg"}
    path.write_text(json.dumps(config))
    cfg, _ = weights.read(pair.folder)
    assert (cfg.gelu, cfg.pool) == ("tanh", "mean")
    config["model_args"]["act_layer"] = "mish"
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="its activation is 'mish'; known are gelu"):
        weights.read(pair.folder)


def test_every_tensor_of_the_family_has_first_values():
    """And both twins the same, a forward pass and a number of parameters."""
    cfg = model_config("dinov3_s16", image_size=32)
    cfg = dataclasses.replace(cfg, depth=1, num_classes=3)
    torch_model, jax_model = torch_vit.create(cfg, 1), jax_vit.create(cfg, 1)
    (_, a), (_, b) = torch_vit.to_arrays(torch_model), jax_vit.to_arrays(jax_model)
    assert a.keys() == b.keys() == canonical.shapes(cfg).keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert np.all(a["blocks.0.ls1.gamma"] == np.float32(1e-5))


@pytest.mark.parametrize(
    "argument, refused",
    [
        ({"rope_temperature": 50.0}, ""),
        ({"rope_grid_offset": 0.5}, ""),
        ({"rope_rotate_half": True}, "its config.json gives create_model rope_rotate_half"),
        ({"block_fn": "ParallelScalingBlock"}, "gives create_model block_fn"),
    ],
)
def test_arguments_that_no_tensor_shows_are_not_passed_over(argument, refused, tmp_path):
    pair = timm_zoo.drawn("vit_pe_core_base_patch16_224", tmp_path / "model")
    before, _ = weights.read(pair.folder)
    path = pair.folder / "config.json"
    config = json.loads(path.read_text())
    config["model_args"] |= argument
    path.write_text(json.dumps(config))
    if refused:
        with pytest.raises(UserError, match=refused):
            weights.read(pair.folder)
    else:
        after, _ = weights.read(pair.folder)
        assert (after.rope_base, after.rope_offset) != (before.rope_base, before.rope_offset)


def test_arguments_of_the_first_models_are_not_passed_over_either(tmp_path):
    """A block of another order has the same tensors."""
    pair = timm_zoo.drawn("vit_tiny_patch16_224", tmp_path / "model")
    path = pair.folder / "config.json"
    config = json.loads(path.read_text())
    config["model_args"]["block_fn"] = "ResPostBlock"
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="gives create_model block_fn"):
        weights.read(pair.folder)


def test_positions_by_row_and_column_keep_their_grid(tmp_path):
    """8 x 32 and 16 x 16 have the same number of rows."""
    from safetensors.torch import load_file, save_file

    pair = timm_zoo.drawn("naflexvit_base_patch16_gap", tmp_path / "model")
    file = pair.folder / "model.safetensors"
    state = load_file(file)
    state["embeds.pos_embed"] = state["embeds.pos_embed"].reshape(1, 8, 32, -1)
    save_file(state, file)
    cfg, _ = weights.read(pair.folder)
    assert cfg.grid == (8, 32)


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("vit_base_patch16_gap_224", {}),  # 16 heads of 48
        ("vit_giantopt_patch16_siglip_gap_256", {}),
        ("vit_tiny_patch16_384", {"embed_dim": 96}),  # timm keeps the name's heads
        ("vit_base_patch16_clip_384", {"embed_dim": 96}),
        ("vit_pe_core_base_patch16_224", {"global_pool": "avg", "use_fc_norm": False}),
    ],
)
def test_what_the_name_decides_without_an_argument(name, arguments, tmp_path):
    """Heads, and whether the mean counts the tokens before the patches'."""
    before = timm_zoo.small_arguments(name)
    pair = timm_zoo.drawn(name, tmp_path / "model")
    args = {"depth": 1, "img_size": before["img_size"], "num_classes": 7} | arguments
    if "giantopt" in name:
        args |= {"embed_dim": 64, "mlp_ratio": 2.0}
    with torch.device("cpu"):
        torch.manual_seed(0)
        model = timm_zoo.timm.create_model(name, **args).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    pair = dataclasses.replace(pair, model=model, args=args)
    timm_zoo.write_folder(pair)
    cfg, arrays = weights.read(pair.folder)
    assert cfg.num_heads == model.blocks[0].attn.num_heads
    ours = torch_vit.from_arrays(cfg, arrays, "fp64")
    limit = 1e-6 if cfg.rope != "none" else 1e-12  # this model's tables are timm's own
    with torch.no_grad():
        assert timm_zoo.gap(ours(pair.images), model(pair.images)) < limit


@pytest.mark.parametrize(
    "name, arguments, refused",
    [
        ("vit_small_patch14_dinov2", {"global_pool": "max"}, "global_pool is 'max'"),
        ("vit_tiny_patch16_224", {"global_pool": "avgmax"}, "global_pool is 'avgmax'"),
        ("deit3_small_patch16_224", {"fc_norm": True, "global_pool": "token"}, "fc_norm"),
        ("eva02_tiny_patch14_224", {"swiglu_mlp": False}, "with gated=False"),
        ("vit_base_patch16_dinov3", {"global_pool": "map"}, "no attention pooling of its own"),
    ],
)
def test_functions_that_the_twins_do_not_have_are_refused(name, arguments, refused, tmp_path):
    pair = timm_zoo.drawn(name, tmp_path / "model", **arguments)
    with pytest.raises(UserError, match=refused):
        weights.read(pair.folder)


def test_a_name_that_the_tensors_contradict_is_refused(tmp_path):
    pair = timm_zoo.drawn("vit_tiny_patch16_224", tmp_path / "model")
    for name in ("vit_small_patch16_dinov3", "vit_base_patch16_clip_quickgelu_224"):
        with pytest.raises(UserError, match=f"is no {name}, as it is called"):
            weights.read(bare(pair.folder, tmp_path / f"{name}.safetensors"))


def test_scales_that_two_families_have_are_not_guessed(tmp_path):
    """DeiT-III's authors and RoPE-ViT in timm's Eva have the same names and shapes."""
    from safetensors.numpy import save_file

    with torch.device("meta"):
        model = timm_zoo.timm.create_model("vit_small_patch16_rope_ape_224")
    state = {n: np.zeros(t.shape, np.float32) for n, t in model.state_dict().items()}
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="compute different functions of the same tensors"):
        weights.open_weights(tmp_path / "x.safetensors")
    pair = timm_zoo.drawn("vit_small_patch16_rope_ape_224", tmp_path / "model")
    cfg, arrays = weights.read(pair.folder)
    weights.write(tmp_path / "back", cfg, arrays, format="timm")
    assert weights.read(tmp_path / "back")[0] == cfg


@pytest.mark.parametrize(("name", "gelu"), [("weights", "erf"), ("gap", "tanh")])
def test_the_gelu_of_a_file_that_nothing_names_is_said(name, gelu, tmp_path):
    """SigLIP's mean-pooled models have one set of tensors and two forms of GELU."""
    sizes = dict(depth=27, width=1152, num_heads=16, mlp_dim=4304, patch_size=16)
    cfg = model_config("vit_b16", 0, 32, class_token=False, pool="mean", **sizes)
    arrays = {n: np.lib.stride_tricks.as_strided(np.ones(1, np.float16), s, [0] * len(s))
              for n, s in canonical.shapes(cfg).items()}  # fmt: skip
    named = "vit_so400m_patch16_siglip_gap_256" if name == "gap" else "weights"
    found = Timm().read(arrays, Hints(f"{named}.pth"))
    assert found.cfg.gelu == gelu
    assert any(text.startswith(f"{gelu} GELU") for text in found.notes.assumed)
    said = [text for text in found.notes.notices if "siglip_gap" in text and "tanh GELU" in text]
    assert len(said) == (name == "weights")


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("dinov3_s16", "pool", "token"),
        ("dinov2_s14", "gelu", "tanh"),
        ("dinov2_s14", "registers", 7),
    ],
)
def test_what_timm_lacks_is_said_of_the_nearest_architecture(name, field, value):
    """And not by all that a later ViT has beside the first ones."""
    cfg = dataclasses.replace(model_config(name), **{field: value})
    assert Timm().not_held(cfg) == [field]
