"""Named models as rows: a name is a family, a size and a patch, as in `vit_b16`.

A family is what its models have in common: fields of ModelConfig, and where it was published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# (width, depth, heads, MLP width): Dosovitskiy et al. 2021, table 1; Ti and S from Touvron et al.
# 2021; g from Zhai et al. 2022, table 2, as is gg (their G). `nano` and `mini` are this project's
# own, for digits and CIFAR-10 on small machines.
SIZES = {
    "nano": (64, 4, 4, 256),
    "mini": (192, 6, 3, 768),
    "ti": (192, 12, 3, 768),
    "s": (384, 12, 6, 1536),
    "b": (768, 12, 12, 3072),
    "l": (1024, 24, 16, 4096),
    "h": (1280, 32, 16, 5120),
    "g": (1408, 40, 16, 6144),
    "gg": (1664, 48, 16, 8192),
}


@dataclass(frozen=True)
class Family:
    """Models of one function.

    models: their sizes and patches, as in `b16`. licence: of the published weights. fields: what
    they have that the models of 2020 have not.
    """

    models: str
    about: str
    paper: str
    licence: str
    fields: Mapping[str, Any] = field(default_factory=dict)


FAMILIES = {
    "vit": Family(
        models="nano2 mini4 ti4 ti16 s16 s32 b16 b32 l16 l32 h14 g14 gg14",
        about="Vision Transformer",
        paper="Dosovitskiy et al. 2021, arXiv:2010.11929",
        licence="Apache-2.0 (Google's weights)",
    ),
}
DEFAULT_MODEL = "vit_b16"


def _rows() -> dict[str, dict[str, Any]]:
    found = {}
    for family, about in FAMILIES.items():
        for model in about.models.split():
            size, patch = re.fullmatch(r"(.*?)(\d+)", model).groups()  # type: ignore[union-attr]
            sizes = zip(("width", "depth", "num_heads", "mlp_dim"), SIZES[size])
            found[f"{family}_{model}"] = dict(patch_size=int(patch), **dict(sizes), **about.fields)
    return found


# {name: its fields of ModelConfig}.
MODELS = _rows()


def family_of(name: str) -> Family:
    """The family of a named model."""
    return FAMILIES[name.rpartition("_")[0]]
