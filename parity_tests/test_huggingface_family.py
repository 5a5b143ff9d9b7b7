"""Claim: transformers' plain ViTs and the twins are one function, from their folders and to them.

Each class is made small by transformers itself, its weights drawn; tokens and outputs are compared
in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import peers
import pytest
import torch
from helpers import random_images, to_torch

import jax_vit
import torch_vit
from shared_vit import weights
from shared_vit.weights.formats.huggingface import modules
from twinvit.convert import libraries
from twinvit.parity.noise_rule import relative_l2

T = peers.transformers
SIZES = dict(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96, patch_size=8
)
OBLONG, SQUARE = dict(SIZES, image_size=[40, 24]), dict(SIZES, image_size=24)
TEXT = dict(
    hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=20
)
IN_FLOAT32 = 1e-6  # transformers computes rotary tables and RMSNorm in float32
Outputs = Callable[[Any], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A class of transformers, and what of its output is ours."""

    kind: str  # the class without `Model`, `ForImageClassification` and the like
    cls: str
    args: dict
    output: Outputs
    normed: bool = True  # whether `last_hidden_state` is behind the last norm
    limit: float = 1e-10
    call: dict | None = None
    config: str = ""


def _logits(out: Any) -> torch.Tensor:
    return out.logits


def _token(out: Any) -> torch.Tensor:
    return out.last_hidden_state[:, 0]


def _mean(out: Any) -> torch.Tensor:
    return out.last_hidden_state.mean(dim=1)


def _pooled(out: Any) -> torch.Tensor:
    return out.pooler_output


def _projected(out: Any) -> torch.Tensor:
    return out.image_embeds


def _classes(kind: str, args: dict, **changes: Any) -> Case:
    return Case(kind, f"{kind}ForImageClassification", args | {"num_labels": 3}, _logits, **changes)


def _two_towers(kind: str, **outer: Any) -> dict:
    return dict(vision_config=dict(SQUARE), text_config=TEXT, **outer)


DINOV3 = OBLONG | {"num_register_tokens": 4}
GATED = DINOV3 | {"use_gated_mlp": True}
BEIT = SQUARE | {"use_relative_position_bias": True}
SWIGLU = {k: v for k, v in SQUARE.items() if k != "intermediate_size"} | {"use_swiglu_ffn": True}
CASES = {
    "vit": _classes("ViT", OBLONG),
    "vit, no qkv bias": _classes("ViT", OBLONG | {"qkv_bias": False}),
    "vit, quick": _classes("ViT", OBLONG | {"hidden_act": "quick_gelu"}),
    "vit, silu": _classes("ViT", OBLONG | {"hidden_act": "silu"}),
    "vit, gelu_new": _classes("ViT", OBLONG | {"hidden_act": "gelu_new"}),
    "vit body": Case("ViT", "ViTModel", OBLONG, _token),
    "deit": _classes("DeiT", OBLONG),
    "deit, distilled": Case(
        "DeiT", "DeiTForImageClassificationWithTeacher", OBLONG | {"num_labels": 3}, _logits
    ),
    "deit body": Case("DeiT", "DeiTModel", OBLONG, _token),
    "mae": Case(
        "ViTMAE", "ViTMAEModel", OBLONG | {"mask_ratio": 0.0}, _token,
        call={"noise": torch.arange(15.0).repeat(2, 1)},
    ),
    "msn": _classes("ViTMSN", OBLONG),
    "msn body": Case("ViTMSN", "ViTMSNModel", OBLONG, _token),
    "ijepa": _classes("IJepa", OBLONG),
    "ijepa body": Case("IJepa", "IJepaModel", OBLONG, _mean),
    "dinov2": _classes("Dinov2", SQUARE | {"mlp_ratio": 2}),
    "dinov2 body": Case("Dinov2", "Dinov2Model", SQUARE, _token),
    "dinov2, swiglu": Case("Dinov2", "Dinov2Model", SWIGLU, _token),
    "dinov2 with registers": _classes("Dinov2WithRegisters", SQUARE),
    "dinov2 with registers, body": Case(
        "Dinov2WithRegisters", "Dinov2WithRegistersModel", SQUARE, _token
    ),
    "dinov3": Case("DINOv3ViT", "DINOv3ViTModel", DINOV3, _token, limit=IN_FLOAT32),
    "dinov3, no registers": Case(
        "DINOv3ViT", "DINOv3ViTModel", OBLONG | {"key_bias": True}, _token, limit=IN_FLOAT32
    ),
    "dinov3, gated": Case("DINOv3ViT", "DINOv3ViTModel", GATED, _token, limit=IN_FLOAT32),
    "dinov3, swiglu": Case(
        "DINOv3ViT", "DINOv3ViTModel", GATED | {"hidden_act": "silu"}, _token, limit=IN_FLOAT32
    ),
    "siglip": Case("SiglipVision", "SiglipVisionModel", SQUARE, _pooled),
    "siglip, classes": _classes("Siglip", _two_towers("Siglip")),
    "siglip, no pooling": Case(
        "SiglipVision", "SiglipVisionModel", SQUARE | {"vision_use_head": False}, _mean
    ),
    "clip": Case("CLIPVision", "CLIPVisionModel", SQUARE, _pooled, normed=False),
    "clip, projection": Case(
        "CLIPVision", "CLIPVisionModelWithProjection", SQUARE | {"projection_dim": 16}, _projected,
        normed=False,
    ),
    "clip, classes": _classes("CLIP", _two_towers("CLIP")),
    "aimv2": Case(
        "Aimv2Vision", "Aimv2VisionModel", SQUARE | {"use_head": False}, _mean, limit=IN_FLOAT32
    ),
    "aimv2, biases": Case(
        "Aimv2Vision", "Aimv2VisionModel",
        SQUARE | {"use_head": False, "qkv_bias": True, "mlp_bias": True}, _mean, limit=IN_FLOAT32,
    ),
    "beit": _classes("Beit", BEIT),
    "beit body": Case("Beit", "BeitModel", BEIT, _pooled),
    "beit, shared": Case(
        "Beit", "BeitModel",
        SQUARE | {
            "use_shared_relative_position_bias": True, "use_absolute_position_embeddings": True,
        },
        _pooled,
    ),
    "beit, class token": Case(
        "Beit", "BeitModel",
        SQUARE | {"use_mean_pooling": False, "use_absolute_position_embeddings": True}, _pooled,
    ),
    "data2vec": _classes("Data2VecVision", BEIT),
}  # fmt: skip


def made(case: Case, seed: int = 0, **changes: Any) -> torch.nn.Module:
    """The class with drawn weights in float64, none of them zero or constant."""
    config = getattr(T, f"{case.kind}Config")(**case.args | changes)
    return peers.randomize(getattr(T, case.cls)(config), seed).double().eval()


def theirs(case: Case, model: torch.nn.Module, images: np.ndarray) -> dict[str, np.ndarray]:
    with torch.no_grad():
        out = model(to_torch(images), **case.call or {})
    found = {"output": case.output(out).numpy()}
    if getattr(out, "last_hidden_state", None) is not None:
        found["tokens"] = out.last_hidden_state.numpy()
    return found


def ours(case: Case, cfg, arrays, images: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """The same outputs of both twins."""
    found = {}
    for twin, batch in ((torch_vit, to_torch(images)), (jax_vit, images)):
        model = twin.from_arrays(cfg, arrays, "fp64")
        with torch.no_grad():
            seen = model.features(batch, 1, norm=False)
            tokens = seen.tokens if case.normed else seen.layers[0]
            found[twin.__name__] = {
                "output": np.asarray(model(batch)),
                "tokens": np.asarray(tokens),
            }
    return found


def distance(case: Case, model, cfg, arrays) -> float:
    """The worst relative L2 of either twin from transformers."""
    images = random_images(cfg, 2).astype(np.float64)
    right, twins = theirs(case, model, images), ours(case, cfg, arrays, images)
    assert all(np.ptp(value) > 0.1 for value in right.values())
    return max(relative_l2(seen[name], right[name]) for seen in twins.values() for name in right)


def loaded(path, cfg) -> torch.nn.Module:
    """transformers' class for a folder as `--verify` builds it, all names matched, in float64."""
    return libraries.load("huggingface", path, cfg).double()


@pytest.mark.parametrize("name", CASES)
def test_both_ways(name, x64, tmp_path):
    """Also: the modules that `--verify` compares are found, and compute what the class does."""
    case = CASES[name]
    model = made(case)
    model.save_pretrained(tmp_path / "theirs")
    source = weights.open_weights(tmp_path / "theirs")
    cfg, arrays = source.cfg, {name: np.asarray(array) for name, array in source.arrays.items()}
    assert distance(case, model, cfg, arrays) < case.limit
    assert weights.write_weights(tmp_path / "ours", cfg, arrays, "huggingface") == []
    again, back = weights.read(tmp_path / "ours")
    assert again == cfg and back.keys() == arrays.keys()
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)
    images = random_images(cfg, 2).astype(np.float64)
    right = theirs(case, model, images)["output"]
    for folder in ("theirs", "ours"):
        traced = libraries.trace(
            "huggingface", loaded(tmp_path / folder, cfg), to_torch(images), cfg
        )
        norm = {cfg.norm_name} if cfg.final_norm else set()
        assert traced.keys() == {"", "blocks.0", "blocks.1", *norm}
        assert relative_l2(traced[""].numpy(), right) < case.limit, folder


# Mistakes that load without complaint: the case, and what is done to the reading of its file.
PLANTS: dict[str, tuple[str, Any]] = {
    "rotary positions of neighbours": ("dinov3", dict(rope="axial")),
    "rotary positions of another base": ("dinov3", dict(rope_base=1e4)),
    "gate and value swapped": ("dinov3, gated", (modules.DINOV3, "gated.fc1", (1, 0))),
    "AIMv2's gate and value swapped": ("aimv2", (modules.AIMV2, "gated.fc1", (1, 0))),
    "keys for queries": ("clip", (modules.CLIP, "attn.qkv", (1, 0, 2))),
    "another eps": ("dinov3", dict(norm_eps=1e-6)),
    "CLIP's eps as ViT's": ("clip", dict(norm_eps=1e-6)),
    "erf for tanh": ("siglip", dict(gelu="erf")),
    "erf for QuickGELU": ("clip", dict(activation="gelu")),
    "GELU for SwiGLU's gate": ("dinov3, swiglu", dict(activation="gelu")),
    "the class token alone": ("dinov2", "half a head"),
    "the last norm before CLIP's mean": ("clip, classes", "norm"),
    "BEiT's norm before the mean": ("beit", "norm before"),
    "a distilled model's class head alone": ("deit, distilled", "one head"),
    "the distillation token before the class token": ("deit, distilled", "tokens"),
    "attention pooling of other heads": ("siglip", dict(map_heads=4)),
    "rows of pooling's products shifted": ("siglip", "pooling"),
    "positions of registers before the class token's": ("dinov2 with registers", "rows"),
    "a table read along the other axis": ("beit", "table"),
    "masked patches": ("mae", "masked"),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_mistakes_are_seen(plant, x64, tmp_path, monkeypatch):
    name, how = PLANTS[plant]
    case = CASES[name]
    model = made(case)
    model.save_pretrained(tmp_path)
    if isinstance(how, tuple):
        table, module, order = how
        names = table[module]
        monkeypatch.setitem(table, module, tuple(names[i] for i in order))
    cfg, arrays = weights.read(tmp_path)
    if isinstance(how, dict):
        cfg = replace(cfg, **how)
    elif isinstance(how, str):
        cfg, arrays = _mistaken(how, cfg, dict(arrays))
    if how == "masked":
        model.config.mask_ratio = 0.75
        images = random_images(cfg, 2).astype(np.float64)
        assert theirs(case, model, images)["tokens"].shape[1] == 1 + cfg.num_patches // 4
        return
    assert distance(case, model, cfg, arrays) > max(10 * case.limit, 1e-6)


def _mistaken(how: str, cfg, arrays):
    width = cfg.width
    if how == "half a head":
        arrays["head.weight"] = np.concatenate([arrays["head.weight"][:, :width]] * 2, axis=1)
    elif how == "norm":
        cfg = replace(cfg, final_norm=True)
        arrays |= {"norm.weight": np.ones(width), "norm.bias": np.zeros(width)}
    elif how == "norm before":
        cfg = replace(cfg, norm_after_pool=False)
        arrays |= {f"norm.{leaf}": arrays.pop(f"fc_norm.{leaf}") for leaf in ("weight", "bias")}
    elif how == "one head":
        cfg = replace(cfg, distilled=False, registers=1)
        arrays["reg_token"] = arrays.pop("dist_token")
        arrays = {name: a for name, a in arrays.items() if not name.startswith("head_dist")}
    elif how == "tokens":
        arrays["cls_token"], arrays["dist_token"] = arrays["dist_token"], arrays["cls_token"]
    elif how == "pooling":
        both = np.concatenate([arrays["attn_pool.q.weight"], arrays["attn_pool.kv.weight"]])
        arrays["attn_pool.kv.weight"], arrays["attn_pool.q.weight"] = np.split(both, [2 * width])
    elif how == "rows":
        rows, n = arrays["pos_embed"], cfg.registers
        arrays["pos_embed"] = np.concatenate([rows[:, 1 : 1 + n], rows[:, :1], rows[:, 1 + n :]], 1)
    elif how == "table":
        for name in [n for n in arrays if n.endswith("table")]:
            arrays[name] = np.concatenate([arrays[name][-4::-1], arrays[name][-3:]])
    return cfg, arrays
