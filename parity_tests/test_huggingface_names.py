"""Claim: transformers' files are read under the names of versions 4 and 5 and of the hub, what is
left out is said, and what is unknown, contradicted or impossible is refused."""

import json
from dataclasses import replace

import numpy as np
import peers
import pytest
import torch
from helpers import random_arrays, random_images, to_torch
from huggingface_files import BY_HAND, by_hand
from safetensors.numpy import load_file, save_file
from test_huggingface_family import CASES, SIZES, SQUARE, TEXT, made

import torch_vit
from shared_vit import weights
from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig
from twinvit.convert import libraries
from twinvit.parity.noise_rule import relative_l2

T = peers.transformers
# Parts of names that are left out of the files made by hand.
GONE = ("text", "logit", "decoder.", "position_ids", "mask_token", "index", "inv_freq")


@pytest.mark.parametrize("name", BY_HAND)
def test_files_made_by_hand(name, tmp_path):
    """Every array is read or listed, and each number is where it belongs."""
    text, fields, left_out = BY_HAND[name]
    arrays = by_hand(text)
    save_file(arrays, tmp_path / "x.safetensors")
    source = weights.open_weights(tmp_path / "x.safetensors", num_heads=2, image_size=4)
    cfg = source.cfg
    assert {key: getattr(cfg, key) for key in fields} == fields
    assert (cfg.width, cfg.patch_size, cfg.image_size, cfg.depth, cfg.mlp_dim) == (8, 2, 4, 1, 12)
    said = [line for line in source.assumed if line.startswith("left out: ")]
    assert len(said) == len(left_out)
    for line, expected in zip(sorted(said), sorted(left_out)):
        assert line.startswith(f"left out: {expected}"), said
    read = np.sort(np.concatenate([np.asarray(a).ravel() for a in source.arrays.values()]))
    kept = {n: a for n, a in arrays.items() if not any(part in n for part in GONE)}
    expected = np.sort(np.concatenate([a.ravel() for a in kept.values()]))
    assert np.array_equal(read[read != 0], expected)  # absent biases are zeros
    with pytest.raises(UserError, match="unknown: adapter.weight"):
        save_file(
            arrays | {"adapter.weight": np.ones((8, 8), np.float32)}, tmp_path / "y.safetensors"
        )
        weights.read(tmp_path / "y.safetensors", num_heads=2)
    del arrays[next(n for n in arrays if n.endswith(("query.weight", "q_proj.weight")))]
    save_file(arrays, tmp_path / "z.safetensors")
    with pytest.raises(UserError, match="missing: .*(query|q_proj).weight"):
        weights.read(tmp_path / "z.safetensors", num_heads=2)


@pytest.mark.parametrize("name", BY_HAND)
def test_any_other_shape_is_refused_in_a_sentence(name, tmp_path):
    arrays = {n: a for n, a in by_hand(BY_HAND[name][0]).items() if a.dtype.kind == "f"}
    for array in arrays:
        for shape in ((), (0,), (3,), (1, 2, 3, 1, 2)):
            if shape == arrays[array].shape:
                continue
            save_file(arrays | {array: np.ones(shape, np.float32)}, tmp_path / "x.safetensors")
            try:
                weights.open_weights(tmp_path / "x.safetensors", num_heads=2)
            except UserError as error:
                assert "\n" not in str(error)
            else:  # it is left out
                assert any(part in array for part in GONE), array


@pytest.mark.parametrize("name", CASES)
def test_names_of_the_modules_are_read_as_the_saved_ones(name, tmp_path):
    """Version 5 saves the names of version 4, and a `state_dict` has its own."""
    model = made(CASES[name]).float()
    model.save_pretrained(tmp_path)
    cfg, arrays = weights.read(tmp_path)
    state = {n: t.numpy() for n, t in model.state_dict().items()}
    save_file(
        {n: np.ascontiguousarray(a) for n, a in state.items()}, tmp_path / "model.safetensors"
    )
    again, others = weights.read(tmp_path)
    assert again == cfg and arrays.keys() == others.keys()
    assert all(np.array_equal(arrays[n], others[n]) for n in arrays)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:transformers computes another function")
def test_bare_files_say_how_they_are_loaded(name, tmp_path):
    """A card says the function; transformers' class takes every array of the file."""
    made(CASES[name]).float().save_pretrained(tmp_path / "theirs")
    cfg, arrays = weights.read(tmp_path / "theirs")
    file = tmp_path / "ours.safetensors"
    weights.write(file, cfg, arrays, "huggingface")
    again, back = weights.read(file)
    assert again == cfg and all(np.array_equal(back[n], arrays[n]) for n in arrays)
    card = json.loads((tmp_path / "ours.safetensors.json").read_text())
    built = eval(card["load"], {"transformers": T})
    ours = libraries.load("huggingface", file, cfg)
    assert type(built) is type(ours.model)
    images = to_torch(random_images(cfg, 2).astype(np.float32))
    with torch.no_grad():
        theirs = libraries.load("huggingface", tmp_path / "theirs", cfg)(images).numpy()
        assert relative_l2(ours(images).numpy(), theirs) < 1e-5


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_the_library_is_not_run_on_half_a_file(change, tmp_path):
    """transformers only warns of such a file, and draws what it lacks."""
    made(CASES["dinov2"]).float().save_pretrained(tmp_path)
    cfg, _ = weights.read(tmp_path)
    arrays = load_file(tmp_path / "model.safetensors")
    if change == "missing":
        del arrays["dinov2.encoder.layer.1.mlp.fc1.weight"]
    else:
        arrays["dinov2.adapter.weight"] = np.ones((8, 8), np.float32)
    save_file(arrays, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match=rf"{change} .'dinov2\.(encoder\.layer\.1|adapter)"):
        libraries.load("huggingface", tmp_path, cfg)


def test_two_towers_are_read_as_the_one_of_images(tmp_path):
    """A CLIP and a SigLIP as the hub has them give what their towers alone give."""
    for kind, alone, extra in (
        ("CLIP", "CLIPVisionModelWithProjection", dict(projection_dim=16)),
        ("Siglip", "SiglipVisionModel", {}),
    ):
        config = getattr(T, f"{kind}Config")(
            vision_config=SQUARE | extra, text_config=TEXT, **extra
        )
        both = peers.randomize(getattr(T, f"{kind}Model")(config))
        both.save_pretrained(tmp_path / kind)
        cfg, arrays = weights.read(tmp_path / kind)
        one = getattr(T, alone).from_pretrained(tmp_path / kind)
        images = random_images(cfg, 2).astype(np.float64)
        with torch.no_grad():
            out = one.double().eval()(to_torch(images))
            ours = torch_vit.from_arrays(cfg, arrays, "fp64")(to_torch(images))
        theirs = out.image_embeds if kind == "CLIP" else out.pooler_output
        assert relative_l2(ours.numpy(), theirs.numpy()) < 1e-10
        left_out = " ".join(weights.open_weights(tmp_path / kind).assumed)
        assert "left out: the text tower: " in left_out and "(logit_" in left_out


def test_siglip2_of_a_square_grid(x64, tmp_path):
    """Its patches come as rows of numbers, and are a convolution's in another order."""
    config = T.Siglip2VisionConfig(**SIZES, num_patches=9)
    model = peers.randomize(T.Siglip2VisionModel(config)).double().eval()
    model.save_pretrained(tmp_path / "theirs")
    source = weights.open_weights(tmp_path / "theirs")
    cfg = source.cfg
    assert cfg.image_size == 24 and "images of any shape" in source.notices[0]
    images = random_images(cfg, 2).astype(np.float64)
    patches = images.reshape(2, 3, 8, 3, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 9, -1)
    with torch.no_grad():
        out = model(
            torch.from_numpy(patches), torch.ones(2, 9, dtype=torch.int64), torch.full((2, 2), 3)
        ).pooler_output
        ours = torch_vit.from_arrays(cfg, source.arrays, "fp64")(to_torch(images))
    assert relative_l2(ours.numpy(), out.numpy()) < 1e-10
    weights.write(tmp_path / "ours", cfg, source.arrays, "huggingface")
    assert weights.read(tmp_path / "ours")[0] == cfg
    second = T.SiglipVisionModel.from_pretrained(tmp_path / "ours").double().eval()
    with torch.no_grad():
        assert relative_l2(second(to_torch(images)).pooler_output.numpy(), out.numpy()) < 1e-10


REGISTERS = ModelConfig(
    image_size=24, patch_size=8, width=64, depth=2, num_heads=2, mlp_dim=128, num_classes=0,
    registers=3, layer_scale="both",
)  # fmt: skip


@pytest.mark.parametrize("rows", ["of all tokens", "of patches alone"])
def test_positions_of_registers_are_added_to_them(rows, tmp_path):
    """transformers has no row for a register: timm's with one, and with none at all, are written
    for the same function."""
    cfg = replace(REGISTERS, prefix_positions=rows == "of all tokens")
    arrays = random_arrays(cfg)
    weights.write(tmp_path / "hf", cfg, arrays, "huggingface")
    found, back = weights.read(tmp_path / "hf")
    assert found.prefix_positions == cfg.prefix_positions
    model = T.Dinov2WithRegistersModel.from_pretrained(tmp_path / "hf").double().eval()
    images = random_images(cfg, 2).astype(np.float64)
    with torch.no_grad():
        theirs = model(to_torch(images)).last_hidden_state.numpy()
        ours = torch_vit.from_arrays(cfg, arrays, "fp64").features(to_torch(images)).tokens.numpy()
    assert relative_l2(ours, theirs) < (1e-6 if cfg.prefix_positions else 1e-10)


def with_config(name: str, folder, **changes) -> None:
    model = made(CASES[name]).float()
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    "name, changes, match",
    [
        ("dinov2", dict(image_size=[40, 24]), "dinov2 resamples or reads the positions"),
        ("beit", dict(image_size=[40, 24]), "beit resamples or reads the positions"),
        ("aimv2", dict(is_native=True), "is_native"),
        ("aimv2", dict(qkv_bias=True), "missing: .*q_proj.bias"),
        ("dinov3", dict(key_bias=True), "missing: .*k_proj.bias"),
        ("siglip, no pooling", dict(vision_use_head=True), "missing: .*head.probe"),
        ("vit", dict(model_type="dinov2"), "missing: .*norm1.weight"),
        ("clip", dict(hidden_act="relu"), "hidden_act = 'relu'"),
        ("vit", dict(image_size=[48, 24]), "expected .1, 19, 64"),
    ],
)
def test_contradictions_are_refused(name, changes, match, tmp_path):
    with_config(name, tmp_path, **changes)
    with pytest.raises(UserError, match=match):
        weights.read(tmp_path)


BASE = ModelConfig(
    image_size=24, patch_size=8, width=64, depth=1, num_heads=2, mlp_dim=128, num_classes=3
)
CLIP = dict(embed_norm="tokens", no_bias=("patch",), activation="quick_gelu")


@pytest.mark.parametrize(
    "fields, match",
    [
        (dict(pool="map", class_token=False), "num_classes=3|pool='map'"),
        (dict(rope="centred", rope_base=100.0, pos_embed="none", layer_scale="both"), "torch"),
        (dict(relative_bias=True, norm_after_pool=True, pool="mean", no_bias=("k",),
              image_width=40), "image_width=40"),
        (dict(qk_norm=True), "qk_norm=True"),
        (dict(layer_scale="both", num_classes=0, image_width=40, registers=2), "image_width=40"),
        (dict(pos_embed="none"), "pos_embed='none'"),
        (dict(post_norm=True), "post_norm=True"),
    ],
)  # fmt: skip
def test_what_transformers_cannot_compute_is_not_written(fields, match, tmp_path):
    cfg = replace(BASE, **fields)
    with pytest.raises(UserError, match=match):
        weights.write(tmp_path / "x", cfg, random_arrays(cfg), "huggingface")
    assert not (tmp_path / "x").exists()


def test_a_projection_has_no_bias(tmp_path):
    cfg = replace(BASE, **CLIP)
    arrays = random_arrays(cfg)
    with pytest.raises(UserError, match="no place for head.bias, and it is not zero"):
        weights.write(tmp_path / "x", cfg, arrays, "huggingface")
    arrays["head.bias"] = np.zeros_like(arrays["head.bias"])
    weights.write(tmp_path / "x", cfg, arrays, "huggingface")
    assert "head.bias" not in load_file(tmp_path / "x" / "model.safetensors")
    assert weights.read(tmp_path / "x")[0].num_classes == 3


def test_what_aimv2s_own_pooling_would_do_is_left_out(tmp_path):
    config = T.Aimv2VisionConfig(**SQUARE, use_head=True)
    peers.randomize(T.Aimv2VisionModel(config)).save_pretrained(tmp_path)
    source = weights.open_weights(tmp_path)
    assert source.cfg.pool == "mean"
    assert any(
        "AIMv2's attention pooling" in line and "5 arrays" in line for line in source.assumed
    )


PROCESSORS = {
    "dinov3": ("DINOv3ViTImageProcessor", (0.0, "bilinear"), 0.485, "in floats"),
    "siglip": ("SiglipImageProcessor", (0.0, "bicubic"), 0.5, ""),
    "clip": ("CLIPImageProcessor", (1.0, "bicubic"), 0.48145466, ""),
    "dinov2": ("BitImageProcessor", (256 / 224, "bicubic"), 0.485, ""),
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("said", [True, False])
def test_images_come_along(name, said, tmp_path):
    """As the processor's file says, else as transformers' defaults are."""
    kind, (resize, interpolation), red, notice = PROCESSORS[name]
    made(CASES[name]).float().save_pretrained(tmp_path)
    if said:
        square = {"height": 24, "width": 24}
        short = {"dinov2": 27, "clip": 24}
        size = {"shortest_edge": short[name]} if name in short else square
        options = dict(crop_size=square) if name in short else {}
        if name == "dinov2":
            options |= dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
        getattr(T, kind)(size=size, **options).save_pretrained(tmp_path)
    source = weights.open_weights(tmp_path)
    cfg = source.cfg
    if not said and name == "dinov2":
        resize, red = 1.0, 0.48145466
    assert (round(cfg.eval_resize, 6), cfg.interpolation) == (round(resize, 6), interpolation)
    assert cfg.mean[0] == red
    assert any("no preprocessor_config.json" in line for line in source.assumed) is not said
    assert any("in floats" in line for line in source.notices) is bool(notice and said)
