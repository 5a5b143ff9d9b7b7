"""Claim: files of the authors' own programs are read as timm reads them, and written so.

Each is made from a small model of timm's under its author's names, with what the author's file has
beside the function; both names and forms are those that timm's converters take.
"""

import copy
import dataclasses
import json
import re
import sys
import warnings
from pathlib import Path
from typing import get_args

import helpers
import numpy as np
import pytest
import torch
from helpers import relative_l2

import torch_vit
from shared_vit import weights
from shared_vit.errors import UserError
from shared_vit.spec import canonical
from shared_vit.spec.config import model_config
from shared_vit.weights import table
from shared_vit.weights.formats import AUTHORS as AUTHORS_FORMATS
from shared_vit.weights.formats import NAMES
from shared_vit.weights.formats.authors.programs import PROGRAMS
from shared_vit.weights.formats.base import Hints
from shared_vit.weights.lazy import LazyArray
from shared_vit.weights.locate import checksum
from twinvit.convert.command import To

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import timm_zoo  # noqa: E402

_CLIP = {
    r"^patch_embed\.proj\.": "conv1.",
    r"^norm_pre\.": "ln_pre.",
    r"^norm\.": "ln_post.",
    r"^cls_token$": "class_embedding",
    r"^pos_embed$": "positional_embedding",
    r"^(blocks\.\d+)\.norm([12])\.": r"\1.ln_\2.",
    r"\.attn\.qkv\.": ".attn.in_proj_",
    r"^(blocks\.\d+)\.attn\.proj\.": r"\1.attn.out_proj.",
    r"^(blocks\.\d+)\.mlp\.fc1\.": r"\1.mlp.c_fc.",
    r"^(blocks\.\d+)\.mlp\.fc2\.": r"\1.mlp.c_proj.",
    r"^blocks\.": "transformer.resblocks.",
}
_GATED = {r"\.fc1_g\.": ".w1.", r"\.fc1_x\.": ".w2.", r"\.mlp\.fc2\.": ".mlp.w3."}


def renamed(state, patterns):
    out = {}
    for name, tensor in state.items():
        for pattern, theirs in patterns.items():
            name = re.sub(pattern, theirs, name)
        out[name] = tensor
    return out


def clip(state):
    out = renamed(state, _CLIP)
    out["class_embedding"] = out["class_embedding"].flatten()
    out["positional_embedding"] = out["positional_embedding"][0]
    out["proj"] = out.pop("head.weight").T
    out.pop("head.bias")
    # The text's tower has blocks of the same names.
    text = {n: t for n, t in out.items() if n.startswith("transformer.")}
    return (
        text
        | {f"visual.{name}": t for name, t in out.items()}
        | {
            "positional_embedding": torch.ones(9, 8),
            "ln_final.weight": torch.ones(8),
            "token_embedding.weight": torch.ones(9, 8),
            "logit_scale": torch.ones(1),
        }
    )


def perception_encoder(state):
    state = dict(state)
    for leaf in ("weight", "bias") if "attn_pool.q.weight" in state else ():
        parts = [state.pop(f"attn_pool.{part}.{leaf}") for part in ("q", "kv")]
        state[f"attn_pool.attn.in_proj_{leaf}"] = torch.cat(parts)
    pooling = {
        r"^attn_pool\.latent": "attn_pool.probe",
        r"^attn_pool\.proj": "attn_pool.attn.out_proj",
        r"^attn_pool\.norm": "attn_pool.layernorm",
        r"^attn_pool\.mlp\.fc1": "attn_pool.mlp.c_fc",
        r"^attn_pool\.mlp\.fc2": "attn_pool.mlp.c_proj",
    }
    out = renamed(state, pooling | {r"gamma_([12])$": r"ls_\1.gamma"} | _CLIP)
    out["class_embedding"] = out["class_embedding"].flatten()
    out["positional_embedding"] = out["positional_embedding"][0]
    if "head.weight" in out:
        out["proj"] = out.pop("head.weight").T
        out.pop("head.bias")
    return {f"visual.{name}": t for name, t in out.items()}


def dinov2(state):
    names = {r"\.fc1\.": ".w12.", r"\.fc2\.": ".w3.", r"^reg_token$": "register_tokens"}
    out = renamed(state, names)
    if "register_tokens" not in out:
        return out | {"mask_token": torch.ones(1, out["cls_token"].shape[-1])}
    # Not alike in all channels, of which a norm takes the mean.
    rows = torch.linspace(-1, 1, out["cls_token"].shape[-1]).expand_as(out["cls_token"])
    out["cls_token"] = out["cls_token"] - rows
    out["pos_embed"] = torch.cat([rows, out["pos_embed"]], 1)
    return out | {"mask_token": torch.ones(1, out["cls_token"].shape[-1])}


def dinov2_in_chunks(state):
    out = renamed(state, {r"^blocks\.(\d+)\.": r"blocks.0.\1."})
    return {f"teacher.backbone.{name}": t for name, t in out.items()} | {
        "teacher.backbone.mask_token": torch.ones(1, 8),
        "teacher.dino_head.mlp.0.weight": torch.ones(8, 8),
    }


def dinov3(state):
    out = renamed(state, {r"gamma_([12])$": r"ls\1.gamma", r"^reg_token$": "storage_tokens"})
    for i in range(2) if "blocks.0.attn.q_bias" in out else ():
        q, v = (out.pop(f"blocks.{i}.attn.{part}_bias") for part in "qv")
        # The part of keys may be anything: it is masked.
        out[f"blocks.{i}.attn.qkv.bias"] = torch.cat([q, torch.full_like(q, 7.0), v])
        out[f"blocks.{i}.attn.qkv.bias_mask"] = torch.full_like(torch.cat([q, q, v]), np.nan)
    gated = _GATED if "blocks.0.mlp.fc1_g.weight" in out else {}
    return renamed(out, gated) | {
        "mask_token": torch.ones(1, 8),
        "rope_embed.periods": 100 ** (torch.arange(16) / 16),
    }


def aimv2(state):
    names = {
        r"^patch_embed\.": "preprocessor.patchifier.",
        r"^pos_embed$": "preprocessor.pos_embed",
        r"^norm\.": "trunk.post_trunk_norm.",
        r"\.norm([12])\.": r".norm_\1.",
        r"\.fc1_g\.": ".fc1.",
        r"\.fc1_x\.": ".fc3.",
        r"^blocks\.": "trunk.blocks.",
    }
    return renamed(state, names)


def eva02(state):
    names = {r"\.mlp\.norm\.": ".mlp.ffn_ln.", r"\.attn\.norm\.": ".attn.inner_attn_ln."}
    names |= {r"\.attn\.([qv])_proj\.bias$": r".attn.\1_bias"} | _GATED
    if "blocks.0.mlp.fc1.weight" in state:
        names |= {r"\.mlp\.fc1\.": ".mlp.w12."}
    return renamed(state, names) | {
        "rope.freqs_cos": torch.ones(4),
        "rope.freqs_sin": torch.ones(4),
    }


def eva02_clip(state):
    return {f"visual.{name}": t for name, t in eva02(state).items()}


def deit3(state):
    return renamed(state, {r"ls([12])\.gamma$": r"gamma_\1"})


def beit(state):
    extra = {f"blocks.{i}.attn.relative_position_index": torch.ones(16, 16) for i in range(2)}
    return dict(state) | extra


def beit3(state):
    out = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            for part, rows in zip("qkv", tensor.chunk(3)):
                out[name.replace("qkv", f"{part}_proj")] = rows
        else:
            out[name] = tensor
    rows = out.pop("pos_embed")[0]
    out["embed_positions.weight"] = torch.cat([torch.ones(2, rows.shape[1]), rows])
    names = {
        r"^blocks\.(\d+)\.mlp\.norm\.": r"layers.\1.ffn.ffn_layernorm.",
        r"^blocks\.(\d+)\.attn\.norm\.": r"layers.\1.self_attn.inner_attn_ln.",
        r"^blocks\.(\d+)\.attn\.proj\.": r"layers.\1.self_attn.out_proj.",
        r"^blocks\.(\d+)\.attn\.": r"layers.\1.self_attn.",
        r"^blocks\.(\d+)\.norm1\.": r"layers.\1.self_attn_layer_norm.",
        r"^blocks\.(\d+)\.norm2\.": r"layers.\1.final_layer_norm.",
        r"^blocks\.(\d+)\.mlp\.": r"layers.\1.ffn.",
        r"^patch_embed\.": "vision_embed.",
        r"^cls_token$": "vision_embed.cls_token",
    }
    out = renamed(out, names)
    done = {}
    for name, tensor in out.items():
        if name.startswith(("layers.", "embed_positions.")):
            inner = "ffn." if ".ffn." in name else ""  # as a whole, or its parts one by one
            before, _, leaf = name.rpartition(inner or ".")
            module = before + inner.removesuffix(".")
            done[f"beit3.encoder.{module}.A.{leaf}"] = tensor
            done[f"beit3.encoder.{module}.B.{leaf}"] = tensor + 1
        else:
            done[f"beit3.{name}" if name.startswith("vision_embed") else name] = tensor
    done["beit3.text_embed.weight"] = torch.ones(9, 8)
    return done


def in_module(state):
    return {f"module.{name}": t for name, t in state.items()}


def as_it_is(state):
    return dict(state)


# timm's name, its author's names, and the format.
AUTHORS = {
    "CLIP": ("vit_base_patch16_clip_quickgelu_224", clip, "clip"),
    "open_clip": ("vit_base_patch16_clip_224", clip, "clip"),
    "Perception Encoder": (
        "vit_pe_core_base_patch16_224", perception_encoder, "perception_encoder",
    ),
    "Perception Encoder, language": (
        "vit_pe_lang_large_patch14_448", perception_encoder, "perception_encoder",
    ),
    "DINOv2 with registers": ("vit_giant_patch14_reg4_dinov2", dinov2, "dinov2"),
    "DINOv2 of gated MLPs": ("vit_giant_patch14_dinov2", dinov2, "dinov2"),
    "DINOv2 in training": ("vit_small_patch14_dinov2", dinov2_in_chunks, None),
    "DINOv3": ("vit_huge_plus_patch16_dinov3_qkvb", dinov3, "dinov3"),
    "DINOv3 without biases": ("vit_small_patch16_dinov3", dinov3, "dinov3"),
    "AIMv2": ("aimv2_large_patch14_224", aimv2, "aimv2"),
    "EVA-02": ("eva02_base_patch14_224", eva02, "eva02"),
    "EVA-02 of packed MLPs": ("eva02_tiny_patch14_224", eva02, "eva02"),
    "EVA-02 CLIP": ("eva02_base_patch16_clip_224", eva02_clip, "eva02_clip"),
    "DeiT-III": ("deit3_small_patch16_224", deit3, "deit3"),
    "BEiT": ("beit_base_patch16_224", beit, "beit"),
    "BEiT-3": ("beit3_base_patch16_224", beit3, "beit3"),
    "MAE": ("vit_base_patch16_224", as_it_is, "mae"),
    "DINO": ("vit_base_patch16_224", as_it_is, "dino"),
    "I-JEPA": ("vit_huge_patch14_gap_224", in_module, "ijepa"),
}  # fmt: skip
# Tensors whose numbers an author may have in two ways: rows that are not used, and a sum.
TWOFOLD = {"beit3": "embed_positions", "dinov2": "cls_token|pos_embed"}
WIDE = ("DINOv3", "DINOv3 without biases", "DINOv2 in training")  # as authors' code can be


def drawn(name, folder):
    """A small model of timm's for a row of `AUTHORS`, and its images."""
    architecture, in_their_names, format = AUTHORS[name]
    more = {}
    if name not in WIDE:
        patch = timm_zoo.architectures()[architecture].cfg.patch_size
        more["img_size"] = (3 * patch, 3 * patch)
    if format == "dino":
        more["num_classes"] = 0
    pair = timm_zoo.drawn(architecture, folder, **more)
    if in_their_names in (clip, perception_encoder) and hasattr(pair.model.head, "bias"):
        pair.model.head.bias.data.zero_()  # a projection has none
        timm_zoo.write_folder(pair)
    return pair


def theirs_of(name, pair):
    state = {n: t.detach().clone() for n, t in pair.model.state_dict().items()}
    return AUTHORS[name][1](state)


@pytest.mark.parametrize("name", [n for n, row in AUTHORS.items() if row[1] is not as_it_is])
def test_the_authors_file_is_timms_model(name, tmp_path):
    pair = drawn(name, tmp_path / "model")
    state = theirs_of(name, pair)
    assert state.keys() != pair.model.state_dict().keys()
    path = tmp_path / "theirs"
    path.mkdir()
    torch.save({n: t.contiguous() for n, t in state.items()}, path / "pytorch_model.bin")
    args = {"img_size": pair.args["img_size"], "num_heads": pair.args["num_heads"]}
    config = {"architecture": pair.name, "model_args": args}
    (path / "config.json").write_text(json.dumps(config))
    source = weights.open_weights(path)
    known = AUTHORS[name][2] not in (None, "deit3", "beit", "ijepa")
    assert source.format == (AUTHORS[name][2] if known else "timm")
    arrays = {n: np.asarray(a) for n, a in source.arrays.items()}
    ours = torch_vit.from_arrays(source.cfg, arrays, "fp64")
    with torch.no_grad():
        assert relative_l2(ours(pair.images).numpy(), pair.model(pair.images).numpy()) < 1e-12
    if len(state) > len(pair.model.state_dict()):
        assert any("left out" in line for line in source.told(source.cfg))


@pytest.mark.parametrize("name", [n for n, row in AUTHORS.items() if row[2]])
def test_what_is_written_is_the_authors_file(name, tmp_path):
    """Of the names and numbers that timm's converter takes, made here by hand; by timm's converter
    it is timm's model, and it is read back bit for bit."""
    pair = drawn(name, tmp_path / "model")
    format = AUTHORS[name][2]
    cfg, arrays = weights.read(pair.folder, "timm")
    file = tmp_path / "written.pth"
    with warnings.catch_warnings(action="ignore"):
        weights.write(file, cfg, arrays, format)
    content = torch.load(file)
    program = PROGRAMS[format]
    assert set(content) == set(program.under) if program.under else "blocks" not in content
    written = content[program.under[0]] if program.under else content
    expected = {n: t for n, t in theirs_of(name, pair).items() if not is_beside(n)}
    beside = {program.prefix + n for n in program.beside(cfg)}
    assert (
        written.keys() - {n for n in written if is_beside(n)} - beside == expected.keys() - beside
    )
    for tensor, values in expected.items():
        if tensor not in beside and not re.search(TWOFOLD.get(format, "$^"), tensor):
            assert torch.equal(written[tensor], masked(tensor, values)), tensor
    back = weights.open_weights(file)
    assert (back.cfg, back.format) == (cfg, format) or program.known is None
    again = weights.open_weights(file, format)
    assert again.cfg == cfg and again.format == format
    assert all(np.array_equal(np.asarray(again.arrays[n]), arrays[n]) for n in arrays)
    model = copy.deepcopy(pair.model)
    for parameter in model.parameters():
        parameter.data.zero_()
    convert = sys.modules[type(model).__module__].checkpoint_filter_fn
    more = {"adapt_layer_scale": True} if format == "deit3" else {}
    model.load_state_dict(convert(content, model, **more), strict=True)
    with torch.no_grad():
        assert torch.equal(model(pair.images), pair.model(pair.images))


def is_beside(name):
    """What an author's file has that no model's function needs."""
    if name.startswith(("transformer.", "positional_embedding")):
        return True  # of CLIP's text
    beside = "mask_token|text|logit_scale|ln_final|token_embedding|[.]B[.]|freqs_|periods|bias_mask"
    return re.search(beside, name) is not None


def masked(name, values):
    """DINOv3's biases with zeros for those of keys, which its mask leaves out."""
    if name.endswith("attn.qkv.bias") and torch.equal(
        values.chunk(3)[1], torch.full_like(values.chunk(3)[1], 7.0)
    ):
        values = values.clone()
        values.view(3, -1)[1] = 0
    return values


def test_what_the_twins_have_not_is_refused_in_one_sentence(tmp_path):
    timm_zoo.drawn("vit_base_patch16_sapiens2", tmp_path / "model", num_kv_heads=(2, 1))
    with pytest.raises(UserError, match="fewer heads of keys than of queries .*Sapiens2"):
        weights.open_weights(tmp_path / "model")
    state = aimv2(dict(drawn("AIMv2", tmp_path / "aimv2").model.state_dict()))
    del state["preprocessor.pos_embed"]
    torch.save(state, tmp_path / "native.pth")
    with pytest.raises(UserError, match="an AIMv2 with positions that are computed for images"):
        weights.open_weights(tmp_path / "native.pth")


def test_a_file_without_patches_is_told(tmp_path):
    state = eva02(
        dict(timm_zoo.drawn("eva02_base_patch14_224", tmp_path / "model").model.state_dict())
    )
    del state["patch_embed.proj.weight"]
    torch.save(state, tmp_path / "eva02_base_patch14_224.pth")
    with pytest.raises(UserError, match="missing: patch_embed.proj.weight"):
        weights.open_weights(tmp_path / "eva02_base_patch14_224.pth")


def test_an_unknown_tensor_is_an_error(tmp_path):
    pair = timm_zoo.drawn("vit_small_patch14_dinov2", tmp_path / "model")
    state = dinov2_in_chunks(dict(pair.model.state_dict()))
    state["teacher.backbone.blocks.0.1.attn.gate"] = torch.ones(3)
    torch.save(state, tmp_path / "vit_small_patch14_dinov2.pth")
    with pytest.raises(UserError, match="unknown: blocks.1.attn.gate"):
        weights.open_weights(tmp_path / "vit_small_patch14_dinov2.pth")


@pytest.mark.parametrize(
    ("name", "tensor", "change"),
    [
        ("DINOv3", "rope_embed.periods", lambda t: t**1.01),
        ("DINOv3", "blocks.1.attn.qkv.bias_mask", lambda t: torch.ones_like(t)),
        ("EVA-02", "rope.freqs_cos", lambda t: t.flip(0)),
        ("BEiT", "blocks.1.attn.relative_position_index", lambda t: t.T),
    ],
)
def test_tables_in_a_file_are_held_to_the_model(name, tensor, change, tmp_path):
    """They are computed and not read, so that a file of another base or grid would be another
    function without a word. Rounding to bfloat16, as published files have it, is none."""
    pair = drawn(name, tmp_path / "model")
    cfg, arrays = weights.read(pair.folder, "timm")
    format, file = AUTHORS[name][2], tmp_path / "written.pth"
    with warnings.catch_warnings(action="ignore"):
        weights.write(file, cfg, arrays, format)
    card = json.loads((tmp_path / "written.pth.json").read_text())
    for altered in (False, True):
        content = torch.load(file)
        state = content.get("model", content)
        if state[tensor].is_floating_point() and not altered:
            state[tensor] = state[tensor].bfloat16().double()
        if altered:
            state[tensor] = change(state[tensor]).contiguous()
        torch.save(content, tmp_path / "other.pth")
        card["sha256"] = checksum(tmp_path / "other.pth")
        (tmp_path / "other.pth.json").write_text(json.dumps(card))
        if not altered:
            weights.open_weights(tmp_path / "other.pth", format)
            continue
        with pytest.raises(UserError, match=f"its {tensor} has other values"):
            weights.open_weights(tmp_path / "other.pth", format)


def test_what_an_author_has_not_is_refused(tmp_path):
    cfg = model_config("dinov2r_s14", 0, 28, width=64, depth=1, num_heads=2, mlp_dim=96)
    arrays = helpers.random_arrays(cfg)
    for change, said in (
        (dict(num_classes=10), "num_classes=10.*--num_classes=0"),
        (dict(layer_scale="attention"), "layer_scale='attention'"),
        (dict(gelu="tanh"), "gelu='tanh'"),
        (dict(image_size=28, image_width=14), "image_width=14"),
    ):
        other = dataclasses.replace(cfg, **change)
        with pytest.raises(UserError, match=f"dinov2 cannot hold a model with .*{said}"):
            weights.write(tmp_path / "a.pth", other, arrays, "dinov2")
    cfg = model_config("clip_b16", 5, 32, width=64, depth=1, num_heads=2, mlp_dim=96)
    with pytest.raises(UserError, match="no place for head.bias, and it is not zero"):
        weights.write(tmp_path / "a.pth", cfg, helpers.random_arrays(cfg), "clip")


def test_big_visions_attention_pooling_is_timms_model(tmp_path):
    """SigLIP's image tower in big_vision's file, by the loader that timm has for those."""
    side = 3 * 16
    pair = timm_zoo.drawn(
        "vit_so400m_patch16_siglip_256", tmp_path / "model", img_size=(side, side)
    )
    cfg, arrays = weights.read(pair.folder, "timm")
    cfg = dataclasses.replace(cfg, gelu="tanh")
    with warnings.catch_warnings(action="ignore"):
        weights.write(tmp_path / "a.npz", cfg, arrays, "big_vision")
    model = copy.deepcopy(pair.model).float()
    for parameter in model.parameters():
        parameter.data.zero_()
    model.load_pretrained(str(tmp_path / "a.npz"))
    expected = pair.model.float().state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in model.state_dict().items())
    (tmp_path / "a.npz.json").unlink()  # what big_vision's own file does not have
    with pytest.warns(UserWarning, match="tanh GELU"):
        found, again = weights.read(tmp_path / "a.npz")
    same = "pool", "gelu", "num_classes", "num_heads", "mlp_dim", "class_token"
    assert all(getattr(found, n) == getattr(cfg, n) for n in same) and found.pool == "map"
    assert again.keys() == arrays.keys()
    assert all(np.array_equal(again[n], arrays[n]) for n in arrays)
    with pytest.raises(UserError, match="google cannot hold a model with pool='map'"):
        weights.write(tmp_path / "b.npz", cfg, arrays, "google")


PUBLISHED = {
    "dinov2": "vit_giant_patch14_reg4_dinov2",
    "dinov3": "vit_small_patch16_dinov3_qkvb",
    "deit3": "deit3_base_patch16_384",
    "perception_encoder": "vit_pe_spatial_base_patch16_512",
    "eva02": "eva02_tiny_patch14_224",
    "beit3": "beit3_large_patch16_224",
}


@pytest.mark.parametrize("format", PUBLISHED)
def test_a_published_size_is_known_by_its_tensors(format):
    """In its author's format, once that is said; DINOv3 and LingBot, DeiT-III and RoPE-ViT have the
    same tensors and other functions, and are told apart by nothing else."""
    cfg = timm_zoo.architectures()[PUBLISHED[format]].cfg
    fmt, one = AUTHORS_FORMATS[format], np.dtype(np.float32)
    arrays = {
        name: LazyArray(shape, one, lambda shape=shape: np.zeros(shape, one))
        for name, shape in canonical.shapes(cfg).items()
    }
    file = {**fmt.written(cfg, arrays), **fmt.beside(cfg, one)}
    every = fmt.in_known_names(fmt.strip(file))
    read, _ = fmt.without_ignored(every)
    found = fmt.read(read, Hints("weights.pth", format_said=True)).cfg
    assert dataclasses.replace(found, layer_scale_init=cfg.layer_scale_init) == dataclasses.replace(
        cfg, **{n: getattr(found, n) for n in ("mean", "std", "eval_resize", "interpolation")}
    )
    table.check(fmt.table(found), read, "w", fmt.about)
    if format in ("dinov3", "deit3"):
        with pytest.raises(UserError, match="compute different functions of the same tensors"):
            fmt.read(read, Hints("weights.pth"))


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "eva02_tiny_patch14_224"])
def test_transformers_folder_of_a_model_of_timms(name, tmp_path):
    """`TimmWrapperModel.save_pretrained`: transformers' config.json around timm's architecture."""
    import transformers

    args = timm_zoo.small_arguments(name) | {"img_size": (42, 42)}
    config = transformers.TimmWrapperConfig(architecture=name, model_args=args, num_labels=2)
    wrapped = transformers.TimmWrapperModel(config).eval()
    for parameter in wrapped.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    wrapped.save_pretrained(tmp_path / "wrapped")
    said = json.loads((tmp_path / "wrapped/config.json").read_text())
    assert (said["model_type"], said["architecture"]) == ("timm_wrapper", name)
    source = weights.open_weights(tmp_path / "wrapped")
    assert source.format == "timm" and source.cfg.num_classes == 0
    images = torch.randn(2, 3, 42, 42)
    arrays = {n: np.asarray(a) for n, a in source.arrays.items()}
    with torch.no_grad():
        expected = wrapped(images).pooler_output
        ours = torch_vit.from_arrays(source.cfg, arrays)(images)
    assert relative_l2(ours.numpy(), expected.numpy()) < 5e-6


def test_the_commands_know_the_formats():
    assert set(get_args(To)) == set(NAMES)
