"""Claim: files of the authors' own programs are read as timm reads them.

Each is made from a small model of timm's under its author's names, with what the author's file has
beside the function; both names and forms are those that timm's converters take.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import relative_l2

import torch_vit
from shared_vit import weights
from shared_vit.errors import UserError

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
    return {f"visual.{name}": t for name, t in out.items()} | {
        "ln_final.weight": torch.ones(8),
        "token_embedding.weight": torch.ones(9, 8),
        "logit_scale": torch.ones(1),
    }


def perception_encoder(state):
    state = dict(state)
    for leaf in ("weight", "bias"):
        parts = [state.pop(f"attn_pool.{part}.{leaf}") for part in ("q", "kv")]
        state[f"attn_pool.attn.in_proj_{leaf}"] = torch.cat(parts)
    pooling = {
        r"^attn_pool\.latent": "attn_pool.probe",
        r"^attn_pool\.proj": "attn_pool.attn.out_proj",
        r"^attn_pool\.norm": "attn_pool.layernorm",
        r"^attn_pool\.mlp\.fc1": "attn_pool.mlp.c_fc",
        r"^attn_pool\.mlp\.fc2": "attn_pool.mlp.c_proj",
    }
    out = renamed(state, pooling | _CLIP)
    out["class_embedding"] = out["class_embedding"].flatten()
    out["positional_embedding"] = out["positional_embedding"][0]
    out["proj"] = out.pop("head.weight").T
    out.pop("head.bias")
    return out


def dinov2(state):
    names = {r"\.fc1\.": ".w12.", r"\.fc2\.": ".w3.", r"^reg_token$": "register_tokens"}
    out = renamed(state, names)
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
    for i in range(2):
        q, v = (out.pop(f"blocks.{i}.attn.{part}_bias") for part in "qv")
        # The part of keys may be anything: it is masked.
        out[f"blocks.{i}.attn.qkv.bias"] = torch.cat([q, torch.full_like(q, 7.0), v])
        out[f"blocks.{i}.attn.qkv.bias_mask"] = torch.full_like(torch.cat([q, q, v]), np.nan)
    return renamed(out, _GATED) | {
        "mask_token": torch.ones(1, 8),
        "rope_embed.periods": torch.ones(16),
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
    return renamed(state, names) | {
        "rope.freqs_cos": torch.ones(4),
        "rope.freqs_sin": torch.ones(4),
    }


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
            module, _, leaf = name.rpartition(".")
            done[f"beit3.encoder.{module}.A.{leaf}"] = tensor
            done[f"beit3.encoder.{module}.B.{leaf}"] = tensor + 1
        else:
            done[f"beit3.{name}" if name.startswith("vision_embed") else name] = tensor
    done["beit3.text_embed.weight"] = torch.ones(9, 8)
    return done


ORIGINALS = {
    "CLIP": ("vit_base_patch16_clip_quickgelu_224", clip),
    "Perception Encoder": ("vit_pe_core_base_patch16_224", perception_encoder),
    "DINOv2 with registers": ("vit_giant_patch14_reg4_dinov2", dinov2),
    "DINOv2 in training": ("vit_small_patch14_dinov2", dinov2_in_chunks),
    "DINOv3": ("vit_huge_plus_patch16_dinov3_qkvb", dinov3),
    "AIMv2": ("aimv2_large_patch14_224", aimv2),
    "EVA-02": ("eva02_base_patch14_224", eva02),
    "EVA-02 CLIP": ("eva02_base_patch16_clip_224", eva02),
    "DeiT-III": ("deit3_small_patch16_224", deit3),
    "BEiT": ("beit_base_patch16_224", beit),
    "BEiT-3": ("beit3_base_patch16_224", beit3),
}
SQUARE = ("DeiT-III",)


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_authors_file_is_timms_model(name, tmp_path):
    architecture, in_their_names = ORIGINALS[name]
    more = {"img_size": (48, 48)} if name in SQUARE else {}
    pair = timm_zoo.drawn(architecture, tmp_path / "model", **more)
    if in_their_names in (clip, perception_encoder):
        pair.model.head.bias.data.zero_()  # a projection has none
    state = in_their_names({n: t.clone() for n, t in pair.model.state_dict().items()})
    assert state.keys() != pair.model.state_dict().keys()
    path = tmp_path / "theirs"
    path.mkdir()
    torch.save({n: t.contiguous() for n, t in state.items()}, path / "pytorch_model.bin")
    args = {"img_size": pair.args["img_size"], "num_heads": pair.args["num_heads"]}
    config = {"architecture": architecture, "model_args": args}
    (path / "config.json").write_text(json.dumps(config))
    source = weights.open_weights(path)
    arrays = {n: np.asarray(a) for n, a in source.arrays.items()}
    ours = torch_vit.from_arrays(source.cfg, arrays, "fp64")
    with torch.no_grad():
        assert relative_l2(ours(pair.images).numpy(), pair.model(pair.images).numpy()) < 1e-12
    if len(state) > len(pair.model.state_dict()):
        assert any("left out" in line for line in source.told(source.cfg))


def test_an_unknown_tensor_is_an_error(tmp_path):
    pair = timm_zoo.drawn("vit_small_patch14_dinov2", tmp_path / "model")
    state = dinov2_in_chunks(dict(pair.model.state_dict()))
    state["teacher.backbone.blocks.0.1.attn.gate"] = torch.ones(3)
    torch.save(state, tmp_path / "vit_small_patch14_dinov2.pth")
    with pytest.raises(UserError, match="unknown: blocks.1.attn.gate"):
        weights.open_weights(tmp_path / "vit_small_patch14_dinov2.pth")
