"""Names of arrays as transformers 4 and 5 have them, in one spelling: that of saved files, without
the body's prefix."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from shared_vit.errors import some
from shared_vit.weights.formats.huggingface.kinds import (
    AIMV2,
    BEIT,
    CLIP,
    DEIT,
    DINOV2,
    DINOV3,
    IJEPA,
    KINDS,
    REGISTERS,
    SIGLIP,
    VIT,
    Kind,
)
from shared_vit.weights.lazy import Arrays

_BODIES = sorted({body for kind in KINDS for body in kind.bodies if body} | {"model."})
_PREFIX = re.compile(
    rf"^(?:{'|'.join(map(re.escape, _BODIES))})"
    r"(?=embeddings\.|encoder\.|layers?\.\d|layernorm\.|norm\.|pooler\.|head\.|post_layernorm\.|"
    r"pre_layrnorm\.|rms_norm\.|shared_position_bias\.)"
)
# Version 5 renamed modules and saves the names of version 4; its state_dict has the new ones.
_VERSION_5 = (
    (re.compile(r"^layers\.(\d+)\.mlp\.fc1\."), r"encoder.layer.\1.intermediate.dense."),
    (re.compile(r"^layers\.(\d+)\.mlp\.fc2\."), r"encoder.layer.\1.output.dense."),
    (re.compile(r"^layers\.(\d+)\."), r"encoder.layer.\1."),
    (re.compile(r"^shared_position_bias\."), "encoder.relative_position_bias."),
    *(
        (
            re.compile(rf"^(encoder\.layer\.\d+)\.attention\.{new}\."),
            rf"\1.attention.{old}.",
        )
        for new, old in (
            ("q_proj", "attention.query"),
            ("k_proj", "attention.key"),
            ("v_proj", "attention.value"),
            ("o_proj", "output.dense"),
        )
    ),
    (
        re.compile(r"^(encoder\.layer\.\d+)\.relative_position_bias\."),
        r"\1.attention.attention.relative_position_bias.",
    ),
)
# What a file may hold in addition to a model of this project: a pattern of names in one spelling,
# and why.
_LEFT_OUT = (
    (r"pooler\.dense\.", "ViTModel's pooler, which ViTForImageClassification does not use"),
    (r"decoder\.", "the decoder of a masked autoencoder"),
    (r"text_model\.|text_projection\.|logit_(?:scale|bias)$", "the text tower"),
    (r"embeddings\.mask_token$", "the token of masked patches"),
    (r"lm_head\.", "the head that predicts the tokens of masked patches"),
    (r"head\.(?:cls_token|[kv]_proj\.|output_proj\.)", "AIMv2's attention pooling, which the twins "
     "do not have"),
    (r".*\.(?:position_ids|relative_position_index|inv_freq)$", "tables that are computed anew"),
)  # fmt: skip
_OF_AIMV2 = (r"visual_projection\.", "the projection of AIMv2's attention pooling")
# The same in addition to a classifier, by the kind of the file.
_BESIDE_CLASSIFIER = (
    (SIGLIP, r"head\.", "the attention pooling, which SiglipForImageClassification does not use"),
    (CLIP, r"post_layernorm\.", "the last norm, which CLIPForImageClassification does not use"),
    (CLIP, r"visual_projection\.", "the projection, which CLIPForImageClassification does not use"),
)


def spelled(names: Iterable[str]) -> dict[str, str]:
    """`{name in one spelling: the file's own}`."""
    return {_spelled(name): name for name in names}


def _spelled(name: str) -> str:
    for _ in range(2):  # `vision_model.vision_model.` of composed models
        name = _PREFIX.sub("", name)
    for pattern, old in _VERSION_5:
        name = pattern.sub(old, name)
    return name


def is_known(names: Mapping[str, object]) -> bool:
    """Whether names in one spelling are of a body of transformers."""
    first = ("embeddings.patch_embeddings.projection.", "embeddings.patch_embeddings.",
             "embeddings.patch_embedding.", "embeddings.patch_embed.")  # fmt: skip
    return any(f"{each}weight" in names for each in first)


def kind_of(names: Mapping[str, object]) -> Kind:
    """The kind of a file whose config.json is not known, by its names in one spelling."""
    if any(name.startswith("layer.") for name in names):
        return DINOV3
    if "embeddings.rms_norm.weight" in names:
        return AIMV2
    if "pre_layrnorm.weight" in names:
        return CLIP
    if "embeddings.patch_embedding.weight" in names:
        return SIGLIP
    if "encoder.layer.0.norm1.weight" in names:
        return REGISTERS if "embeddings.register_tokens" in names else DINOV2
    if "embeddings.distillation_token" in names:
        return DEIT
    if any("lambda_1" in n or "relative_position" in n or "pooler.layernorm" in n for n in names):
        return BEIT
    return VIT if "embeddings.cls_token" in names else IJEPA


def without_others(arrays: Arrays) -> tuple[Arrays, list[str]]:
    """The arrays of the model, by their own names, and what was left out, in words."""
    names = spelled(arrays)
    kind = kind_of(names) if is_known(names) else None
    patterns = list(_LEFT_OUT)
    if "classifier.weight" in names:
        patterns += [(pattern, why) for k, pattern, why in _BESIDE_CLASSIFIER if k is kind]
    if kind is AIMV2:
        patterns.append(_OF_AIMV2)
    told = []
    empty = names.get("embeddings.register_tokens")  # DINOv3's without registers: [1, 0, width]
    if empty is not None and tuple(arrays[empty].shape)[1:2] == (0,):
        arrays = {name: array for name, array in arrays.items() if name != empty}
    for pattern, why in patterns:
        hits = [own for name, own in names.items() if re.match(pattern, name)]
        if hits:
            arrays = {name: array for name, array in arrays.items() if name not in set(hits)}
            told.append(f"left out: {why}: {len(hits)} arrays ({some(hits, 1, ', ')})")
    return arrays, told
