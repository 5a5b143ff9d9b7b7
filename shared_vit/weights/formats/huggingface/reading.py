"""From a file of transformers to the model that it is: which kind, which parts, which function."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig
from shared_vit.weights.formats.base import Format, Hints, Notes, Reading, heads, model, sizes
from shared_vit.weights.formats.huggingface import layouts
from shared_vit.weights.formats.huggingface.images import read_images, vision_config
from shared_vit.weights.formats.huggingface.kinds import (
    AIMV2,
    BEIT,
    CLIP,
    DEIT,
    DINOV2,
    DINOV3,
    EPS,
    IJEPA,
    MODEL_TYPES,
    REGISTERS,
    SIGLIP,
    SQUARE,
)
from shared_vit.weights.formats.huggingface.names import kind_of, spelled
from shared_vit.weights.formats.json_fields import number
from shared_vit.weights.lazy import Arrays, LazyArray
from shared_vit.weights.table import count_layers, side_of

# transformers' names of activations: `activation`, `gelu`.
ACTIVATIONS = {
    "gelu": ("gelu", "erf"),
    "gelu_python": ("gelu", "erf"),
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "gelu_python_tanh": ("gelu", "tanh"),
    "gelu_fast": ("gelu", "tanh"),
    "gelu_accurate": ("gelu", "tanh"),
    "quick_gelu": ("quick_gelu", "erf"),
    "silu": ("silu", "erf"),
    "swish": ("silu", "erf"),
}
_GATES = ("mlp.weights_in", "mlp.gate_proj", "ffn.gate_proj")


# Canonical tensors of the first block and the patches by which a kind of bias is known to exist.
_BIASES = {
    "patch": "patch_embed.proj.bias",
    "proj": "blocks.0.attn.proj.bias",
    "mlp": "blocks.0.mlp.fc2.bias",
}


class File:
    """The arrays of a file under names in one spelling, and the notices about them."""

    def __init__(self, arrays: Arrays, hints: Hints):
        self.arrays, self.hints = arrays, hints
        self.names = spelled(arrays)
        whole = hints.config or {}
        self.config = vision_config(whole)
        said = self.config.get("model_type", whole.get("model_type"))
        self.model_type = said if isinstance(said, str) else ""
        self.kind = MODEL_TYPES.get(self.model_type) or kind_of(self.names)
        block = self.kind.layer.format(0)
        self.gated = any(f"{block}{gate}.weight" in self.names for gate in _GATES)
        self.classifier = any(f"{n}.weight" in self.names for n in ("classifier", "cls_classifier"))
        self.distilled = "distillation_classifier.weight" in self.names
        self.projection = self.kind is CLIP and not self.classifier
        prefixes = (p for p in self.kind.bodies if any(name.startswith(p) for name in arrays))
        self.body = next(prefixes, "")

    def targets(self, canonical_name: str) -> list[str]:
        """The names, in one spelling, of the arrays of a canonical tensor."""
        found = layouts.targets(self.kind, canonical_name, self.gated, self.projection)
        return layouts.as_in_file(canonical_name, found, self.names)

    def has(self, canonical_name: str) -> bool:
        """Whether the file has all arrays of a canonical tensor."""
        targets = self.targets(canonical_name)
        return bool(targets) and all(each in self.names for each in targets)

    def own(self, name: str) -> str:
        """The file's own name; of an array that it lacks, that which it would have."""
        if name in self.names:
            return self.names[name]
        return name if "classifier" in name or name.startswith("visual_") else f"{self.body}{name}"

    def name_of(self, canonical_name: str) -> str:
        """The own name of the array of a tensor that is in one piece; "" where there is no place
        for it."""
        if self.projection and canonical_name == "head.bias":
            return ""
        targets = self.targets(canonical_name)
        return self.own(targets[0]) if targets else ""

    def shape(self, canonical_name: str) -> tuple[int, ...]:
        """The shape of an array that is there."""
        return tuple(map(int, self.arrays[self.name_of(canonical_name)].shape))

    @property
    def is_flat(self) -> bool:
        """Whether the patch weight is Siglip2's, of flat patches."""
        weight = "patch_embed.proj.weight"
        return self.kind is SIGLIP and self.has(weight) and len(self.shape(weight)) == 2

    def number(self, key: str, kind: Any, default: Any) -> Any:
        return number(self.config, key, kind, default, self.hints.where)


def read_file(arrays: Arrays, hints: Hints, fmt: Format) -> Reading:
    """The model of a file of transformers. Raises UserError where no model of this project computes
    it."""
    notes = Notes()
    file = File(arrays, hints)
    kind = file.kind
    depth = count_layers(kind.layer.format("(\\d+)").replace(".", r"\."), file.names)
    values: dict[str, Any] = dict(sizes(_as_conv(file), file.name_of, depth, -1, fmt, hints))
    values |= _parts(file)
    height, width = _image(file, values, fmt, notes)
    default_heads = kind.heads if hints.config is not None else None
    said = file.number("num_attention_heads", int, default_heads)
    cfg = model(
        hints,
        **values,
        **_numbers(file),
        **read_images(kind.images, height, hints, notes),
        num_heads=heads(values, said, hints, notes),
        image_size=height,
        image_width=0 if width == height else width,
    )
    _check(file, cfg)
    _tell(file, notes)
    return Reading(cfg, layouts.table(kind, cfg, file.own, file.names, file.is_flat), notes)


def _as_conv(file: File) -> Arrays:
    """The arrays, with Siglip2's patch weight [width, patch * patch * 3] as a convolution's."""
    name = file.name_of("patch_embed.proj.weight")
    weight = file.arrays.get(name)
    if weight is None or not file.is_flat:
        return file.arrays
    side = math.isqrt(max(0, int(weight.shape[1]) // 3))
    shape = (int(weight.shape[0]), 3, side, side)
    empty = LazyArray(shape, weight.dtype, lambda: np.zeros(shape, weight.dtype))
    return {**file.arrays, name: empty}


def _parts(file: File) -> dict[str, Any]:
    """Fields of the parts that the arrays show, and of what the kind's code computes."""
    kind = file.kind
    after = file.has("fc_norm.weight")
    scaled = file.has("blocks.0.ls1.gamma")
    found: dict[str, Any] = dict(
        kind.fields,
        class_token=kind not in (SIGLIP, IJEPA, AIMV2),
        distilled=file.distilled,
        registers=_registers(file),
        pos_embed="none" if kind in (DINOV3, BEIT) and not file.has("pos_embed") else "learned",
        relative_bias=file.has("blocks.0.attn.relative_position_bias_table"),
        layer_scale="both" if scaled else "none",
        gated=file.gated,
        no_bias=_no_bias(file),
        norm_after_pool=after,
        final_norm=after or file.has("norm.weight") or kind is not BEIT,
        pool=_pool(file, after),
    )
    if kind is CLIP:
        found |= {"embed_norm": "tokens", "final_norm": not file.classifier}
    elif kind is AIMV2:
        found["embed_norm"] = "patches"
    elif kind is REGISTERS and file.has("pos_embed"):
        # A class token without a position: of a model in which no token before the patches' has.
        rows = np.asarray(file.arrays[file.name_of("pos_embed")])
        found["prefix_positions"] = rows.ndim != 3 or bool(rows[:, :1].any())
    return found


def _registers(file: File) -> int:
    if file.distilled or not file.has("reg_token"):
        return 0
    shape = file.shape("reg_token")
    return shape[1] if len(shape) == 3 else 0


def _no_bias(file: File) -> tuple[str, ...]:
    """The biases that do not exist: as config.json says, else as the file lacks them."""
    known = file.kind.biases
    if file.hints.config is not None:
        lacks = [name for name, (key, usual) in known.items() if not file.config.get(key, usual)]
    else:
        q, k = (file.targets("blocks.0.attn.qkv.bias")[i] in file.names for i in (0, 1))
        lacks = [name for name, tensor in _BIASES.items() if not file.has(tensor)]
        lacks += [] if k else ["k"] if q else ["qkv"]
    return tuple(n for n in lacks if n in known and not (n == "k" and "qkv" in lacks))


def _pool(file: File, after: bool) -> str:
    kind = file.kind
    if kind in (DINOV2, REGISTERS):
        return "token+mean" if file.classifier else "token"
    if kind is SIGLIP:
        has_head = file.hints.config is not None and file.config.get("vision_use_head", True)
        pooled = has_head or file.has("attn_pool.latent")
        return "map" if pooled and not file.classifier else "mean"
    if kind is CLIP:
        return "mean" if file.classifier else "token"
    if kind is BEIT:
        by_token = file.config.get("use_mean_pooling") is False and not after
        return "token" if by_token else "mean"
    return "mean" if kind in (IJEPA, AIMV2) else "token"


def _numbers(file: File) -> dict[str, Any]:
    """Fields that config.json decides: activation, eps, dropout rates, rotary base, first scale."""
    kind, where = file.kind, file.hints.where
    act = file.config.get("hidden_act", kind.act)
    if not isinstance(act, str) or act not in ACTIVATIONS:
        raise UserError(
            f"{where}: its config.json says hidden_act = {act!r:.80}; known are "
            f"{', '.join(ACTIVATIONS)}"
        )
    if kind in (DINOV2, REGISTERS) and file.gated:
        act = "silu"  # whatever config.json says
    activation, gelu = ACTIVATIONS[act]
    eps = EPS.get(file.model_type, kind.eps)
    found = {
        "activation": activation,
        "gelu": gelu,
        "norm_eps": file.number(kind.eps_key, float, eps),
        "dropout": file.number("hidden_dropout_prob", float, 0.0),
        "drop_path": file.number("drop_path_rate", float, 0.0),
    }
    if kind is DINOV3:
        found["rope_base"] = file.number("rope_theta", float, 100.0)
    if file.has("blocks.0.ls1.gamma"):
        default = ModelConfig.layer_scale_init
        for key in ("layerscale_value", "layer_scale_init_value"):
            found["layer_scale_init"] = default = file.number(key, float, default)
    return found


def _image(file: File, values: Mapping[str, Any], fmt: Format, notes: Notes) -> tuple[int, int]:
    """Height and width in pixels: config.json's, else a square of as many patches as there are
    rows of positions."""
    said, patch = file.config.get("image_size"), values["patch_size"]
    if isinstance(said, list | tuple) and len(said) == 2 and all(type(s) is int for s in said):
        return said[0], said[1]
    size = file.number("image_size", int, None)
    if size:
        return size, size
    if values["pos_embed"] == "none" and not values["relative_bias"]:
        size = file.hints.image_size or 224 // patch * patch
        notes.assumed.append(f"images of {size} px")
        return size, size
    if values["pos_embed"] == "none":
        name = file.name_of("blocks.0.attn.relative_position_bias_table")
        count = (*file.shape("blocks.0.attn.relative_position_bias_table"), 0)[0]
        side = math.isqrt(max(0, count - 3))
        rows = ((side + 1) // 2) ** 2
    else:
        name, rows = file.name_of("pos_embed"), _position_rows(file, values, fmt)
    side_in_patches = side_of(rows)
    if side_in_patches is None:
        raise UserError(
            f"{file.hints.where}: {name} has {rows} rows for patches, expected a square number: "
            "images of another shape are known by config.json alone"
        )
    return side_in_patches * patch, side_in_patches * patch


def _position_rows(file: File, values: Mapping[str, Any], fmt: Format) -> int:
    """The rows of the position embedding that belong to patches."""
    name, where = file.name_of("pos_embed"), file.hints.where
    if name not in file.arrays:
        raise UserError(f"{where} is not {fmt.about}: missing: {name}")
    shape = tuple(file.arrays[name].shape)
    expected = "[tokens, width]" if name.endswith(".weight") else "[1, tokens, width]"
    if len(shape) != expected.count(",") + 1:
        raise UserError(
            f"{where} is not {fmt.about}: {name} has shape {shape}, expected {expected}"
        )
    tokens = values["class_token"] + values["distilled"]
    return int(shape[-2]) - tokens - (values["registers"] if file.kind is DEIT else 0)


def _check(file: File, cfg: ModelConfig) -> None:
    """Raise UserError for a model that transformers computes otherwise than by its arrays."""
    where, kind = file.hints.where, file.kind
    if file.config.get("is_native") is True and kind is AIMV2:
        raise UserError(
            f"{where}: its config.json says is_native, positions that are computed for any size of "
            "image; expected an AIMv2 of one size, with position_embedding"
        )
    if cfg.image_width and kind.holds["image_width"] is SQUARE:
        raise UserError(
            f"{where}: images of {cfg.image_size} x {cfg.image_width} px; of images that are not "
            f"square transformers' {kind.model_types[0]} resamples or reads the positions as of "
            "others, expected a square image_size"
        )


def _tell(file: File, notes: Notes) -> None:
    """What was taken for granted, and what transformers would do that the twins do not."""
    kind = file.kind
    if file.hints.config is None:
        act, eps = kind.act, EPS.get(file.model_type, kind.eps)
        shown = "erf GELU" if act == "gelu" else act
        notes.assumed.insert(
            0, f"{shown}, eps {eps:g} (transformers' defaults; there is no config.json)"
        )
    if file.model_type == "vit_mae":
        notes.assumed.append("every patch is seen (ViTMAEModel leaves out 3 of 4 at random)")
    if file.is_flat:
        notes.notices.append(
            "Siglip2 takes patches of images of any shape; the square ones of its table of "
            "positions are taken"
        )
