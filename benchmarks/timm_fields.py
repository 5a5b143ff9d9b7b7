"""The fields of ModelConfig of a model of timm, read off its modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from shared_vit.errors import UserError

_CLASSES = ("VisionTransformer", "VisionTransformerDistilled", "Eva", "Beit", "NaFlexVit")
_BLOCKS = ("Block", "EvaBlock", "ResPostBlock", "EvaBlockPostNorm")
_ATTENTIONS = ("Attention", "EvaAttention", "AttentionRope")
_MLPS = ("Mlp", "GluMlp", "SwiGLU")
_ACTIVATIONS = {"QuickGELU": "quick_gelu", "SiLU": "silu", "GELU": "gelu", "GELUTanh": "gelu"}
_POOLS = {"avg": "mean", "token": "token", "map": "map"}
_ROPES = {
    "RotaryEmbeddingCat": "axial",
    "RotaryEmbeddingDinoV3": "centred",
    "RotaryEmbeddingMixed": "mixed",
}


def fields_of(model: Any) -> dict[str, Any]:
    """The fields of ModelConfig of a timm model, without those of its images' preparation.

    The model may be on the meta device. Raises UserError, with the reason, for one that the twins
    cannot compute.
    """
    kind, block = type(model).__name__, type(model.blocks[0]).__name__
    parts = [(kind, _CLASSES), (block, _BLOCKS)]
    if block in _BLOCKS:
        first = model.blocks[0]
        parts += [(type(first.attn).__name__, _ATTENTIONS), (type(first.mlp).__name__, _MLPS)]
    for part, known in parts:
        if part not in known:
            raise UserError(f"it has a {part}, and the twins have none")
    names = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    attn = model.blocks[0].attn
    found = _sizes(model, names) | _tokens(model, names) | _mlp(model, names)
    found |= _norms(model, names) | _pool(model, names) | _positions(model, attn)
    found["no_bias"] = _missing_biases(names)
    found["relative_bias"] = any("relative_position_bias_table" in name for name in names)
    kv = {getattr(b.attn, "num_kv_heads", None) or b.attn.num_heads for b in model.blocks}
    if kv != {attn.num_heads}:
        raise UserError("it has fewer heads of keys and values than of queries")
    return found


def _sizes(model: Any, names: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    embed = getattr(model, "patch_embed", None) or model.embeds
    patch = embed.patch_size
    height, width = getattr(embed, "img_size", None) or _naflex_size(model, patch)
    if patch[0] != patch[1]:
        raise UserError("its patches are not square")
    # No patch covers the pixels at the right and below that are too few for one.
    height, width = (side // patch[0] * patch[0] for side in (height, width))
    return dict(
        image_size=height,
        image_width=0 if height == width else width,
        patch_size=patch[0],
        width=model.embed_dim,
        depth=len(model.blocks),
        num_heads=model.blocks[0].attn.num_heads,
        num_classes=model.num_classes,
    )


def _naflex_size(model: Any, patch: tuple[int, int]) -> tuple[int, int]:
    """The image that needs no resampling of a NaFlexVit's positions."""
    if model.embeds.pos_embed_type not in ("learned", "none"):
        raise UserError(f"its positions are {model.embeds.pos_embed_type}")
    grid = model.embeds.pos_embed_grid_size or (16, 16)
    if max(grid) > 100:
        raise UserError("its positions are cut from a larger table by a rule of its own (RADIO)")
    return grid[0] * patch[0], grid[1] * patch[1]


def _tokens(model: Any, names: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    short = {name.removeprefix("embeds."): shape for name, shape in names.items()}
    registers = short["reg_token"][1] if "reg_token" in short else 0
    found: dict[str, Any] = dict(
        class_token="cls_token" in short,
        registers=registers,
        distilled="dist_token" in short,
        pos_embed="learned" if "pos_embed" in short else "none",
    )
    prefix = found["class_token"] + found["distilled"] + registers
    embed = getattr(model, "patch_embed", None)
    if prefix and "pos_embed" in short:
        rows = short["pos_embed"]
        found["prefix_positions"] = embed is not None and rows[1] == embed.num_patches + prefix
    return found


def _mlp(model: Any, names: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    mlp = model.blocks[0].mlp
    act = type(mlp.act).__name__
    if act not in _ACTIVATIONS:
        raise UserError(f"its activation is {act}")
    tanh = act == "GELUTanh" or getattr(mlp.act, "approximate", "none") == "tanh"
    return dict(
        activation=_ACTIVATIONS[act],
        gelu="tanh" if tanh else "erf",
        gated=type(mlp).__name__ in ("GluMlp", "SwiGLU"),
        mlp_dim=names["blocks.0.mlp.fc2.weight"][1],
    )


def _norms(model: Any, names: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    block = model.blocks[0]
    post = "Post" in type(block).__name__
    first = "blocks.0.attn.norm.weight" in names, "blocks.0.mlp.norm.weight" in names
    scales = [name for name in names if name.startswith("blocks.0.") and "gamma" in name]
    after = "fc_norm.weight" in names
    embed = {"patch_embed.norm.weight", "embeds.norm.weight"} & set(names)
    found: dict[str, Any] = dict(
        norm="rms" if "rms" in type(block.norm1).__name__.lower() else "layer",
        norm_eps=block.norm1.eps,
        post_norm=post,
        inner_norm={(False, False): "none", (False, True): "mlp", (True, True): "both"}[first],
        qk_norm="blocks.0.attn.q_norm.weight" in names,
        norm_after_pool=after,
        final_norm=after or "norm.weight" in names,
        embed_norm="patches" if embed else "tokens" if "norm_pre.weight" in names else "none",
        layer_scale={0: "none", 1: "attention", 2: "both"}[len(scales)],
    )
    if scales:
        found["layer_scale_init"] = _first_scale(block)
    return found


def _first_scale(block: Any) -> float:
    scale = getattr(block, "ls1", None)
    value = getattr(scale, "init_values", None)
    return float(1e-5 if value is None else value)


def _pool(model: Any, names: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    if model.global_pool not in _POOLS:
        raise UserError(f"its pooling is {model.global_pool!r}")
    found: dict[str, Any] = dict(pool=_POOLS[model.global_pool])
    if found["pool"] == "token" and "dist_token" not in names and not _has_class_token(names):
        raise UserError("it pools a class token that it does not have")
    every = bool(getattr(model, "pool_include_prefix", False))
    if found["pool"] == "map":
        heads, hidden = model.attn_pool.num_heads, names["attn_pool.mlp.fc1.weight"][0]
        found["map_heads"] = 0 if heads == model.blocks[0].attn.num_heads else heads
        found["map_mlp"] = 0 if hidden == names["blocks.0.mlp.fc2.weight"][1] else hidden
        every = every or type(model).__name__ == "Eva"
    prefix = _has_class_token(names) or any("reg_token" in name for name in names)
    found["pool_class_token"] = bool(every and prefix and found["pool"] != "token")
    return found


def _has_class_token(names: Mapping[str, object]) -> bool:
    return "cls_token" in names or "embeds.cls_token" in names


def _positions(model: Any, attn: nn.Module) -> dict[str, Any]:
    rope = getattr(model, "rope", None)
    if rope is None:
        return {}
    kind = _ROPES.get(type(rope).__name__)
    if kind is None:
        raise UserError(f"its rotary positions are {type(rope).__name__}")
    if kind == "axial" and getattr(rope, "grid_indexing", "ij") == "xy":
        kind = "axial_xy"
    halves = bool(getattr(attn, "rotate_half", False))
    if halves != (kind == "centred") or (kind == "mixed" and rope.grid_indexing != "xy"):
        raise UserError("its rotary positions are in an order that the twins do not have")
    grid = getattr(rope, "ref_feat_shape", None) or (0, 0)
    return dict(
        rope=kind,
        rope_base=float(rope.temperature),
        rope_offset=float(getattr(rope, "grid_offset", 0.0)) if "axial" in kind else 0.0,
        rope_grid=int(grid[0]) if "axial" in kind else 0,
    )


def _missing_biases(names: Mapping[str, object]) -> tuple[str, ...]:
    b = "blocks.0."
    patch = {"patch_embed.proj.bias", "embeds.proj.bias"} & set(names)
    keys = {b + "attn.qkv.bias", b + "attn.k_proj.bias"} & set(names)
    queries = {b + "attn.q_bias", b + "attn.q_proj.bias"} & set(names)
    first = {b + "mlp.fc1.bias", b + "mlp.fc1_g.bias"} & set(names)
    found = [] if patch else ["patch"]
    found += [] if keys else ["k"] if queries else ["qkv"]
    found += [] if b + "attn.proj.bias" in names else ["proj"]
    found += [] if first else ["mlp"]
    return tuple(found)
