"""What transformers' configurations say of a model, in addition to what all of them say."""

from typing import Any

from shared_vit.spec.config import ModelConfig


def nothing(cfg: ModelConfig) -> dict[str, Any]:
    return {}


def qkv_bias(cfg: ModelConfig) -> dict[str, Any]:
    return {"qkv_bias": "qkv" not in cfg.no_bias}


def _hidden(cfg: ModelConfig, ratio: float) -> int:
    hidden = int(cfg.width * ratio)
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if cfg.gated else hidden


def mlp_ratio(cfg: ModelConfig) -> int | None:
    """DINOv2's `mlp_ratio`, an integer, from which its code computes the MLP's width; None
    where none does."""
    near = round(cfg.mlp_dim / cfg.width * (1.5 if cfg.gated else 1))
    fits = (r for r in (near, near - 1, near + 1) if r > 0 and _hidden(cfg, r) == cfg.mlp_dim)
    return next(fits, None)


def dinov2(cfg: ModelConfig) -> dict[str, Any]:
    registers = {"num_register_tokens": cfg.registers} if cfg.registers else {}
    return {
        "layerscale_value": cfg.layer_scale_init,
        "mlp_ratio": mlp_ratio(cfg),
        "use_swiglu_ffn": cfg.gated,
        **qkv_bias(cfg),
        **registers,
    }


def dinov3(cfg: ModelConfig) -> dict[str, Any]:
    none = set(cfg.no_bias)
    return {
        "query_bias": "qkv" not in none,
        "key_bias": not none & {"k", "qkv"},
        "value_bias": "qkv" not in none,
        "proj_bias": "proj" not in none,
        "mlp_bias": "mlp" not in none,
        "layerscale_value": cfg.layer_scale_init,
        "num_register_tokens": cfg.registers,
        "rope_theta": cfg.rope_base,
        "use_gated_mlp": cfg.gated,
    }


def aimv2(cfg: ModelConfig) -> dict[str, Any]:
    none = cfg.no_bias
    return {"qkv_bias": "qkv" not in none, "mlp_bias": "mlp" not in none, "use_head": False}


def beit(cfg: ModelConfig) -> dict[str, Any]:
    return {
        "layer_scale_init_value": 0.1 if cfg.layer_scale == "both" else 0.0,
        "use_absolute_position_embeddings": cfg.pos_embed != "none",
        "use_mask_token": False,
        "use_mean_pooling": cfg.norm_after_pool,
        "use_relative_position_bias": cfg.relative_bias,
        "use_shared_relative_position_bias": False,
    }


def siglip(cfg: ModelConfig) -> dict[str, Any]:
    return {"vision_use_head": cfg.pool == "map"}
