"""Hugging Face's `ViTForImageClassification`: a folder with `config.json`, or a bare file; names of transformers 4 and 5."""

import numpy as np

from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig
from shared_vit.weights import table as layout
from shared_vit.weights.formats import base as formats
from shared_vit.weights.formats.base import Format, Hints, Reading
from shared_vit.weights.lazy import Arrays

_OUTER = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    "pre_logits": "vit.pooler.dense",
    "head": "classifier",
}
# Version 5 renamed the modules and saves the names of version 4; a state_dict of its own has the new ones.
_STYLES = {
    4: (
        "vit.encoder.layer.{}.",
        {
            "norm1": "layernorm_before",
            "attn.qkv": [
                "attention.attention.query",
                "attention.attention.key",
                "attention.attention.value",
            ],
            "attn.proj": "attention.output.dense",
            "norm2": "layernorm_after",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        },
    ),
    5: (
        "vit.layers.{}.",
        {
            "norm1": "layernorm_before",
            "attn.qkv": ["attention.q_proj", "attention.k_proj", "attention.v_proj"],
            "attn.proj": "attention.o_proj",
            "norm2": "layernorm_after",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
        },
    ),
}
_GELU = {
    "gelu": "erf", "gelu_python": "erf",
    "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_python_tanh": "tanh", "gelu_fast": "tanh",
}  # fmt: skip


def _namer(style: int):
    prefix, modules = _STYLES[style]

    def name_of(canonical_name: str) -> str | list[str]:
        layer, module, leaf = formats.split_name(canonical_name)
        if not layer:
            return _OUTER[module] + (f".{leaf}" if leaf else "")
        target = modules[module]
        if isinstance(target, list):
            return [f"{prefix.format(layer)}{t}.{leaf}" for t in target]
        return f"{prefix.format(layer)}{target}.{leaf}"

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
        return any(
            name.removeprefix("vit.") == "embeddings.patch_embeddings.projection.weight"
            for name in names
        )

    def strip(self, arrays: Arrays) -> Arrays:
        arrays = formats.strip_prefixes(arrays, ("module.", "_orig_mod."))
        if any(name.startswith("vit.") for name in arrays):
            return arrays
        return {f"vit.{name}": array for name, array in arrays.items()}  # a ViTModel by itself

    def read(self, arrays: Arrays, hints: Hints) -> Reading:
        notes: tuple[list[str], list[str]] = ([], [])
        where, config = hints.where, hints.config or {}
        style = 5 if any(name.startswith("vit.layers.") for name in arrays) else 4
        name_of = _namer(style)
        pattern = _STYLES[style][0].format("(\\d+)").replace(".", r"\.")
        values = formats.sizes(
            arrays, name_of, layout.count_layers(pattern, arrays), -1, "norm", self, hints
        )
        act = config.get("hidden_act", "gelu")
        if not isinstance(act, str) or act not in _GELU:
            raise UserError(
                f"{where}: its config.json says hidden_act = {act!r:.80}; known are GELU, erf and tanh"
            )
        if config.get("qkv_bias") is False:
            raise UserError(
                f"{where}: its queries, keys and values have no biases (qkv_bias), the twins' have"
            )
        name = "vit.embeddings.position_embeddings"
        rows = arrays[name].shape[1] - 1 if name in arrays and len(arrays[name].shape) == 3 else 1
        mean, std = formats.colours(
            hints.processor or {}, "image_mean", "image_std", formats.HALF, where
        )
        cfg = formats.model(
            hints,
            **values,
            num_heads=formats.heads(
                values,
                formats.number(config, "num_attention_heads", int, None, where),
                hints,
                notes,
            ),
            image_size=formats.number(config, "image_size", int, None, where)
            or formats.image_size(rows, values["patch_size"], name, hints),
            gelu=_GELU[act],
            norm_eps=formats.number(config, "layer_norm_eps", float, 1e-12, where),
            dropout=formats.number(config, "hidden_dropout_prob", float, 0.0, where),
            mean=mean,
            std=std,
        )
        if hints.config is None:
            notes[0].append("erf GELU, eps 1e-12 (transformers' defaults; there is no config.json)")
        if hints.processor is None:
            notes[0].append("mean and std 0.5")
        return Reading(
            cfg, formats.torch_table(cfg, name_of, formats.has_head(arrays, name_of)), *notes
        )

    def table(self, cfg: ModelConfig) -> layout.Table:
        return formats.torch_table(cfg, _namer(4))

    def refuse(self, cfg: ModelConfig) -> None:
        if cfg.pool != "token":
            raise UserError(
                "Hugging Face's ViTForImageClassification pools by the class token only; this model takes a mean: timm "
                "can hold it"
            )
        if cfg.pre_logits:
            raise UserError(
                "Hugging Face's ViTForImageClassification has no pre-logits layer: with --num_classes=N this layer and "
                "the head are left out and a head of zeros takes their place; torchvision, google and big_vision keep both"
            )

    def extras(self, cfg: ModelConfig, dtype: np.dtype) -> dict[str, object]:
        labels = {str(i): f"LABEL_{i}" for i in range(cfg.num_classes)}
        return {
            "config.json": self.config(cfg) | {
                "architectures": ["ViTForImageClassification"],
                "attention_probs_dropout_prob": 0.0,
                "encoder_stride": cfg.patch_size,
                "id2label": labels,
                "initializer_range": 0.02,
                "label2id": {label: int(i) for i, label in labels.items()},
                "model_type": "vit",
                "torch_dtype": dtype.name,
            },
            "preprocessor_config.json": {
                "do_normalize": True,
                "do_rescale": True,
                "do_resize": True,
                "image_mean": list(cfg.mean),
                "image_processor_type": "ViTImageProcessor",
                "image_std": list(cfg.std),
                "resample": 2,
                "rescale_factor": 1 / 255,
                "size": {"height": cfg.image_size, "width": cfg.image_size},
            },
        }  # fmt: skip

    def notes(self, cfg: ModelConfig, folder: bool = False) -> list[str]:
        usual = {"hidden_act": "gelu", "layer_norm_eps": 1e-12}
        own = {
            key: value for key, value in self.config(cfg).items() if usual.get(key, value) != value
        }
        if folder or not own:
            return []
        text = ", ".join(f"{key}={value!r}" for key, value in own.items())
        return [
            f"transformers computes another function unless told: ViTConfig(..., {text}); a folder would say so"
        ]

    def config(self, cfg: ModelConfig) -> dict[str, object]:
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

    def how_to_load(self, cfg: ModelConfig) -> str:
        text = ", ".join(
            f"{key}={value!r}"
            for key, value in (self.config(cfg) | {"num_labels": cfg.num_classes}).items()
        )
        return f"transformers.ViTForImageClassification(transformers.ViTConfig({text}))"
