"""Families of published checkpoints, known by their keys or names, and how they show an image."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from shared_vit.spec.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig
from shared_vit.weights.choice import Said
from shared_vit.weights.formats.base import Notes
from shared_vit.weights.lazy import Arrays

_MAE = ("decoder_", "mask_token")
NAMES = {
    "dino": "DINO",
    "mae": "MAE",
    "deit": "DeiT and MAE",
    "mocov3": "MoCo v3",
    "ijepa": "I-JEPA",
}
_BILINEAR = ("mocov3", "ijepa")
_CHUNK = re.compile(r"(^|\.)blocks\.\d+\.(\d+)\.")
# Words in names of what belongs to a model, unlike counters and what a logger stores.
_OF_A_FUNCTION = re.compile("scale|temp|tau|gamma|logit|weight|bias|pos|emb|token|cls")


def without_chunks(arrays: Arrays) -> Arrays:
    """DINOv2's names of blocks that it stored in groups: `blocks.0.11.norm1` is
    `blocks.11.norm1`."""
    if not any(_CHUNK.search(name) for name in arrays):
        return arrays
    return {_CHUNK.sub(r"\1blocks.\2.", name): array for name, array in arrays.items()}


def without_pretraining(arrays: Arrays, said: Said) -> Arrays:
    """Without the decoder of a masked autoencoder, and the token that stands for what is masked;
    other arrays come back as they are."""
    gone = [name for name in arrays if name.startswith(_MAE)]
    if "decoder_embed.weight" in arrays:
        said.family = "mae"
        said.notices.append(
            f"left out: the decoder of a masked autoencoder, {len(gone)} arrays ({gone[0]}, ...)"
        )
    elif "mask_token" in arrays:
        said.notices.append("left out: the token of masked patches, of pretraining (mask_token)")
    else:
        return arrays
    return {name: array for name, array in arrays.items() if name not in gone}


def without_counters(arrays: Arrays) -> tuple[Arrays, Arrays]:
    """`(arrays, counters)`: what a training script registered at the model itself, integers and
    scalars."""
    counters = {
        name: array
        for name, array in arrays.items()
        if "." not in name and "/" not in name
        and not _OF_A_FUNCTION.search(name)
        and (array.dtype.kind in "biu" or not array.shape)
    }  # fmt: skip
    return {name: a for name, a in arrays.items() if name not in counters}, counters


def tell_family(others: Arrays, said: Said) -> None:
    """Add to `said` the family that the arrays next to the model indicate."""
    parts = {part for name in others for part in name.split(".")}
    if parts & {"base_encoder", "momentum_encoder"}:
        said.family = said.family or "mocov3"
    elif "dino_head" in parts:
        said.family = said.family or "dino"


def with_family(cfg: ModelConfig, notes: Notes, format: str, family: str | None) -> ModelConfig:
    """The model with the preparation of images of its family's code, instead of timm's defaults.

    These programs use timm's names and ImageNet's mean and std. Changes what `notes` takes for
    granted.
    """
    if family is None or format != "timm":
        return cfg
    filter_: Literal["bilinear", "bicubic"] = "bilinear" if family in _BILINEAR else "bicubic"
    notes.assumed[:] = [text for text in notes.assumed if "timm's defaults" not in text]
    notes.assumed.append(
        f"erf GELU, eps 1e-6, ImageNet's mean and std, {filter_} resize to 256/224 (the code of "
        f"{NAMES[family]}, known by its keys)"
    )
    return dataclasses.replace(
        cfg,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        eval_resize=256 / 224,
        interpolation=filter_,
    )
