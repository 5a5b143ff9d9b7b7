"""Hugging Face's `ViTForImageClassification`: a folder with `config.json`, or a bare file.

Names of transformers 4 and 5.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig
from shared_vit.weights.formats import resize
from shared_vit.weights.formats.base import (
    Format,
    Hints,
    Notes,
    Reading,
    has_head,
    heads,
    image_size,
    model,
    position_rows,
    sizes,
    split_name,
    strip_prefixes,
    torch_table,
)
from shared_vit.weights.formats.json_fields import HALF, colours, number
from shared_vit.weights.lazy import Arrays
from shared_vit.weights.table import Table, count_layers

_OUTER = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    "pre_logits": "vit.pooler.dense",
    "head": "classifier",
}
# Version 5 renamed the modules and saves the names of version 4; its state_dict has the new ones.
_PREFIXES = {4: "vit.encoder.layer.{}.", 5: "vit.layers.{}."}
_MODULES: dict[int, dict[str, str | list[str]]] = {
    4: {
        "norm1": "layernorm_before",
        "attn.qkv": [f"attention.attention.{part}" for part in ("query", "key", "value")],
        "attn.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
    5: {
        "norm1": "layernorm_before",
        "attn.qkv": [f"attention.{part}_proj" for part in "qkv"],
        "attn.proj": "attention.o_proj",
        "norm2": "layernorm_after",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    },
}
_GELU = {
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "gelu_python_tanh": "tanh",
    "gelu_fast": "tanh",
}


def _namer(version: int) -> Callable[[str], str | list[str]]:
    def name_of(canonical_name: str) -> str | list[str]:
        layer, module, leaf = split_name(canonical_name)
        if not layer:
            return _OUTER[module] + (f".{leaf}" if leaf else "")
        prefix, target = _PREFIXES[version].format(layer), _MODULES[version][module]
        if isinstance(target, list):
            return [f"{prefix}{t}.{leaf}" for t in target]
        return f"{prefix}{target}.{leaf}"

    return name_of


class HuggingFace(Format):
    name = "huggingface"
    about = "a ViTForImageClassification of Hugging Face"
    suffixes = ("", ".safetensors")
    ignored = {"vit.pooler.": "ViTModel's pooler, which ViTForImageClassification does not use"}
    foreign = {
        "distillation_token": "a distillation token",
        "mask_token": "a mask token",
        "decoder.": "a decoder for masked images",
        "register_tokens": "register tokens",
        "layer_scale": "layer scale",
        "lambda_1": "layer scale",
        "relative_position": "relative positions",
    }

    def found(self, names: Arrays) -> bool:
        first = "embeddings.patch_embeddings.projection.weight"
        return any(name.removeprefix("vit.") == first for name in names)

    def strip(self, arrays: Arrays) -> Arrays:
        arrays = strip_prefixes(arrays, ("module.", "_orig_mod."))
        if any(name.startswith("vit.") for name in arrays):
            return arrays
        return {f"vit.{name}": array for name, array in arrays.items()}  # a ViTModel by itself

    def read(self, arrays: Arrays, hints: Hints) -> Reading:
        notes = Notes()
        where, config = hints.where, hints.config or {}
        version = 5 if any(name.startswith("vit.layers.") for name in arrays) else 4
        name_of = _namer(version)
        pattern = _PREFIXES[version].format("(\\d+)").replace(".", r"\.")
        depth = count_layers(pattern, arrays)
        values = sizes(arrays, name_of, depth, -1, self, hints)
        act = config.get("hidden_act", "gelu")
        if not isinstance(act, str) or act not in _GELU:
            raise UserError(
                f"{where}: its config.json says hidden_act = {act!r:.80}; known are GELU, erf and "
                "tanh"
            )
        if config.get("qkv_bias") is False:
            raise UserError(
                f"{where}: its queries, keys and values have no biases (qkv_bias), the twins' have"
            )
        name = "vit.embeddings.position_embeddings"
        processor = hints.processor or {}
        mean, std = colours(processor, "image_mean", "image_std", HALF, where)
        said = number(config, "num_attention_heads", int, None, where)
        size = number(config, "image_size", int, None, where)
        if not size:
            rows = position_rows(arrays, name, self, hints) - 1
            size = image_size(rows, values["patch_size"], name, hints)
        eval_resize, interpolation = resize.from_transformers(processor, size, hints, notes)
        cfg = model(
            hints,
            **values,
            num_heads=heads(values, said, hints, notes),
            image_size=size,
            gelu=_GELU[act],
            norm_eps=number(config, "layer_norm_eps", float, 1e-12, where),
            dropout=number(config, "hidden_dropout_prob", float, 0.0, where),
            mean=mean,
            std=std,
            eval_resize=eval_resize,
            interpolation=interpolation,
            exif="turn" if (hints.processor or {}).get("exif_transpose") is True else "ignore",
        )
        if hints.config is None:
            notes.assumed.append(
                "erf GELU, eps 1e-12 (transformers' defaults; there is no config.json)"
            )
        if hints.processor is None:
            notes.assumed.append(
                "mean and std 0.5, the whole image squashed to a square (ViTImageProcessor's "
                "defaults; there is no preprocessor_config.json)"
            )
        return Reading(cfg, torch_table(cfg, name_of, has_head(arrays, name_of)), notes)

    def table(self, cfg: ModelConfig) -> Table:
        return torch_table(cfg, _namer(4))

    def extras(
        self, cfg: ModelConfig, dtype: np.dtype, class_names: tuple[str, ...] | None = None
    ) -> dict[str, object]:
        names = class_names or [f"LABEL_{i}" for i in range(cfg.num_classes)]
        labels = {str(i): name for i, name in enumerate(names)}
        return {
            "config.json": config_args(cfg)
            | {
                "architectures": ["ViTForImageClassification"],
                "attention_probs_dropout_prob": 0.0,
                "encoder_stride": cfg.patch_size,
                "id2label": labels,
                "initializer_range": 0.02,
                "label2id": {label: int(i) for i, label in labels.items()},
                "model_type": "vit",
                "torch_dtype": dtype.name,
            },
            "preprocessor_config.json": processor_args(cfg),
        }

    def labels(self, config: Mapping[str, Any]) -> object:
        return config.get("id2label")

    def notes(self, cfg: ModelConfig, folder: bool = False) -> list[str]:
        usual = {"hidden_act": "gelu", "layer_norm_eps": 1e-12}
        own = {
            key: value for key, value in config_args(cfg).items() if usual.get(key, value) != value
        }
        if folder or not own:
            return []
        text = ", ".join(f"{key}={value!r}" for key, value in own.items())
        return [
            f"transformers computes another function unless told: ViTConfig(..., {text}); a folder "
            "would say so"
        ]

    def how_to_load(self, cfg: ModelConfig) -> str:
        args = config_args(cfg) | {"num_labels": cfg.num_classes}
        text = ", ".join(f"{key}={value!r}" for key, value in args.items())
        return f"transformers.ViTForImageClassification(transformers.ViTConfig({text}))"

    def how_to_preprocess(self, cfg: ModelConfig) -> str:
        values = processor_args(cfg)
        kind = values.pop("image_processor_type")
        args = ", ".join(f"{key}={value!r}" for key, value in values.items())
        return f"transformers.{kind}({args})"


def config_args(cfg: ModelConfig) -> dict[str, Any]:
    """ViTConfig's arguments that decide sizes and function."""
    return {
        "hidden_act": "gelu_pytorch_tanh" if cfg.gelu == "tanh" else "gelu",
        "hidden_dropout_prob": cfg.dropout,
        "hidden_size": cfg.width,
        "image_size": cfg.image_size,
        "intermediate_size": cfg.mlp_dim,
        "layer_norm_eps": cfg.norm_eps,
        "num_attention_heads": cfg.num_heads,
        "num_channels": 3,
        "num_hidden_layers": cfg.depth,
        "patch_size": cfg.patch_size,
        "qkv_bias": True,
    }


def processor_args(cfg: ModelConfig) -> dict[str, Any]:
    """preprocessor_config.json, with the name of its class.

    The ViTImageProcessor of transformers 4 only squashes; Bit's does the resize and crop of a
    ViT that was trained on crops, in versions 4 and 5. Its offset of the crop is rounded down
    where ours is rounded to the nearest, so that an odd margin may shift the crop by a pixel.
    """
    size = cfg.image_size
    values: dict[str, Any] = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(cfg.mean),
        "image_std": list(cfg.std),
        "resample": resize.PILLOW[cfg.interpolation],
        "rescale_factor": 1 / 255,
        **({"exif_transpose": True} if cfg.exif == "turn" else {}),  # a word of this project's own
    }
    if cfg.eval_resize == 0:
        square = {"height": size, "width": size}
        return values | {"image_processor_type": "ViTImageProcessor", "size": square}
    return values | {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": cfg.short_side},
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
    }
