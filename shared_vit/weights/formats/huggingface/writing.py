"""From a model to a folder of transformers: which class, config.json, and arguments for its
code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from shared_vit.spec.config import ModelConfig
from shared_vit.weights.formats.holds import not_held
from shared_vit.weights.formats.huggingface import layouts
from shared_vit.weights.formats.huggingface.kinds import (
    AIMV2,
    BEIT,
    CLIP,
    DEIT,
    DINOV2,
    DINOV3,
    KINDS,
    REGISTERS,
    SIGLIP,
    VIT,
    Kind,
)
from shared_vit.weights.lazy import Arrays, LazyArray
from shared_vit.weights.table import Table

_WRITTEN_ACTS = {"erf": "gelu", "tanh": "gelu_pytorch_tanh"}
_DROPS_PATHS = (DINOV2, REGISTERS, DINOV3, BEIT)  # whose configurations have drop_path_rate
_AROUND = ("image_width", "num_classes", "pool")
_WITHOUT_DROPOUT = (DINOV3, SIGLIP, CLIP, AIMV2)


def kind_for(cfg: ModelConfig) -> Kind | None:
    """The kind that a model is written as; None where transformers has no such model."""
    return next((kind for kind in KINDS if not not_held(cfg, kind.holds)), None)


def fewest_not_held(cfg: ModelConfig) -> list[str]:
    """The fields that the nearest kind cannot hold: the one that has the model's parts, if not its
    size, pooling or head."""
    fields = (not_held(cfg, kind.holds) for kind in KINDS)
    return min(fields, key=lambda names: sum(1 if n in _AROUND else 3 for n in names))


def kind_of_model(cfg: ModelConfig) -> Kind:
    """`kind_for` of a model that was checked, or whose names are wanted in any case."""
    return kind_for(cfg) or VIT


def class_of(kind: Kind, cfg: ModelConfig) -> str:
    """The name of the class in transformers."""
    if cfg.distilled:
        return f"{kind.classifier}WithTeacher"
    if not cfg.num_classes:
        return kind.body
    return "CLIPVisionModelWithProjection" if layouts.is_projection(kind, cfg) else kind.classifier


def has_prefix(kind: Kind, cfg: ModelConfig) -> bool:
    """Whether the names of the body begin with its prefix: where the class has a head."""
    return cfg.num_classes > 0


def own_name(kind: Kind, cfg: ModelConfig, name: str) -> str:
    """The name in a file to be written."""
    is_head = name.startswith(("classifier.", "cls_classifier.", "distillation_", "visual_"))
    return name if is_head or not cfg.num_classes else f"{kind.bodies[0]}{name}"


def written_table(cfg: ModelConfig) -> Table:
    """The table of a file to be written."""
    kind = kind_of_model(cfg)
    return layouts.table(kind, cfg, lambda name: own_name(kind, cfg, name))


def folded(cfg: ModelConfig, arrays: Arrays) -> Arrays:
    """Registers with their positions added, where the kind has no rows for them."""
    if kind_of_model(cfg) is not REGISTERS or not cfg.prefix_positions:
        return arrays
    tokens, rows = arrays["reg_token"], arrays["pos_embed"]

    def load() -> np.ndarray:
        mine = np.asarray(rows)[:, 1 : 1 + cfg.registers]
        return (np.asarray(tokens) + mine).astype(tokens.dtype)

    return {**arrays, "reg_token": LazyArray(tuple(tokens.shape), tokens.dtype, load)}


def beside(cfg: ModelConfig, dtype: np.dtype) -> dict[str, LazyArray]:
    """Arrays that the class has and the model does not use."""
    kind, width = kind_of_model(cfg), cfg.width
    found: dict[str, np.ndarray] = {}
    if kind in (DINOV2, REGISTERS):
        found["embeddings.mask_token"] = np.zeros((1, width), dtype)
    elif kind is DINOV3:
        found["embeddings.mask_token"] = np.zeros((1, 1, width), dtype)
        if not cfg.registers:
            found["embeddings.register_tokens"] = np.zeros((1, 0, width), dtype)
    elif kind is CLIP and not layouts.is_projection(kind, cfg):
        found["post_layernorm.weight"] = np.ones(width, dtype)
        found["post_layernorm.bias"] = np.zeros(width, dtype)
    return {own_name(kind, cfg, name): _constant(array) for name, array in found.items()}


def _constant(array: np.ndarray) -> LazyArray:
    return LazyArray(array.shape, array.dtype, lambda: array)


def config_args(cfg: ModelConfig) -> dict[str, Any]:
    """Arguments of the images' configuration that decide sizes and function."""
    kind = kind_of_model(cfg)
    size: int | list[int] = list(cfg.image_shape) if cfg.image_width else cfg.image_size
    act = _WRITTEN_ACTS[cfg.gelu] if cfg.activation == "gelu" else cfg.activation
    values = {
        "hidden_act": act,
        "hidden_dropout_prob": cfg.dropout,
        "hidden_size": cfg.width,
        "image_size": size,
        "intermediate_size": cfg.mlp_dim,
        kind.eps_key: cfg.norm_eps,
        "num_attention_heads": cfg.num_heads,
        "num_channels": 3,
        "num_hidden_layers": cfg.depth,
        "patch_size": cfg.patch_size,
        **kind.said(cfg),
    }
    if kind in (DINOV2, REGISTERS):
        del values["intermediate_size"]  # it follows from mlp_ratio
    if kind in _WITHOUT_DROPOUT:
        del values["hidden_dropout_prob"]
    if kind in _DROPS_PATHS:
        values["drop_path_rate"] = cfg.drop_path
    if kind is CLIP and layouts.is_projection(kind, cfg) and cfg.num_classes:
        values["projection_dim"] = cfg.num_classes
    return values


def is_nested(kind: Kind, cfg: ModelConfig) -> bool:
    """Whether the class is of a model with two towers, whose config.json has a vision_config."""
    return kind in (SIGLIP, CLIP) and class_of(kind, cfg).endswith("ForImageClassification")


def model_type(kind: Kind, cfg: ModelConfig) -> str:
    """What config.json says."""
    first = kind.model_types[0]
    return first.removesuffix("_vision_model") if is_nested(kind, cfg) else first


def config_json(
    cfg: ModelConfig, dtype: np.dtype, class_names: tuple[str, ...] | None
) -> dict[str, Any]:
    """The content of config.json."""
    kind = kind_of_model(cfg)
    args = config_args(cfg)
    found: dict[str, Any] = {
        "architectures": [class_of(kind, cfg)],
        "model_type": model_type(kind, cfg),
        "torch_dtype": dtype.name,
    }
    if kind is VIT:
        found |= {"encoder_stride": cfg.patch_size}
    if kind not in (SIGLIP, CLIP, AIMV2, DINOV3):
        found |= {"attention_probs_dropout_prob": 0.0}
    if is_nested(kind, cfg):
        found |= {"vision_config": args | {"model_type": kind.model_types[0]}}
    else:
        found |= args | {"initializer_range": 0.02}
    if cfg.num_classes and not layouts.is_projection(kind, cfg):
        names = class_names or [f"LABEL_{i}" for i in range(cfg.num_classes)]
        labels = {str(i): name for i, name in enumerate(names)}
        found |= {"id2label": labels, "label2id": {name: int(i) for i, name in labels.items()}}
    return found


def usual(kind: Kind) -> Mapping[str, Any]:
    """What the kind's code computes by default."""
    return {"hidden_act": kind.act, kind.eps_key: kind.eps}


def how_to_load(cfg: ModelConfig) -> str:
    """The code that builds the model."""
    kind = kind_of_model(cfg)
    labels = cfg.num_classes and not layouts.is_projection(kind, cfg)
    args = config_args(cfg)
    outer = {"num_labels": cfg.num_classes} if labels else {}
    name, config = class_of(kind, cfg), f"{config_class(kind)}"
    if is_nested(kind, cfg):
        inner = _words({"vision_config": args} | outer)
        return f"transformers.{name}(transformers.{config.replace('Vision', '')}({inner}))"
    return f"transformers.{name}(transformers.{config}({_words(args | outer)}))"


def _words(args: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in args.items())


def config_class(kind: Kind) -> str:
    """The class of the images' configuration."""
    return f"{kind.body.removesuffix('Model')}Config"


__all__ = ["DEIT", "config_args", "config_json", "kind_for"]
