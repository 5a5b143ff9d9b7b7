"""Families of published checkpoints, known by their keys or names, and how they show an image."""

from __future__ import annotations

import dataclasses

from shared_vit.spec.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig
from shared_vit.weights.choice import Said
from shared_vit.weights.formats.base import Notes
from shared_vit.weights.lazy import Arrays

_MAE = ("decoder_", "mask_token")
_NAMES = {"dino": "DINO", "mae": "MAE", "deit": "DeiT and MAE"}


def without_decoder(arrays: Arrays, said: Said) -> Arrays:
    """The encoder of a masked autoencoder; other arrays come back as they are."""
    decoder = [name for name in arrays if name.startswith(_MAE)]
    if not decoder or "decoder_embed.weight" not in arrays and "mask_token" not in arrays:
        return arrays
    said.family = "mae"
    said.notices.append(
        f"left out: the decoder of a masked autoencoder, {len(decoder)} arrays ({decoder[0]}, ...)"
    )
    return {name: array for name, array in arrays.items() if not name.startswith(_MAE)}


def with_family(cfg: ModelConfig, notes: Notes, format: str, family: str | None) -> ModelConfig:
    """The model with the preparation of images of its family's code, in place of timm's defaults.

    These programs use timm's names and ImageNet's mean and std. Changes what `notes` takes for
    granted.
    """
    if family is None or format != "timm":
        return cfg
    notes.assumed[:] = [text for text in notes.assumed if "timm's defaults" not in text]
    notes.assumed.append(
        "erf GELU, eps 1e-6, ImageNet's mean and std, bicubic resize to 256/224 (the code of "
        f"{_NAMES[family]}, known by its keys)"
    )
    return dataclasses.replace(
        cfg,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        eval_resize=256 / 224,
        interpolation="bicubic",
    )
