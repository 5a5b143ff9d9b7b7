"""`ModelConfig`: everything that decides the function of a ViT, given its weights."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from shared_vit.errors import UserError, nearest

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# (width, depth, heads, MLP width): Dosovitskiy et al. 2021, table 1; Ti and S from Touvron et al. 2021. `nano` and
# `mini` are this project's own, for digits and CIFAR-10 on small machines.
SIZES = {
    "nano": (64, 4, 4, 256),
    "mini": (192, 6, 3, 768),
    "ti": (192, 12, 3, 768),
    "s": (384, 12, 6, 1536),
    "b": (768, 12, 12, 3072),
    "l": (1024, 24, 16, 4096),
    "h": (1280, 32, 16, 5120),
}
MODELS = [
    f"vit_{n}"
    for n in ("nano2", "mini4", "ti4", "ti16", "s16", "s32", "b16", "b32", "l16", "l32", "h14")
]


@dataclass(frozen=True)
class ModelConfig:
    """All that decides the function a ViT computes, given its weights.

    Sizes are in pixels (image, patch) and units (width, MLP, pre-logits). Raises UserError for an impossible combination.
    """

    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    num_classes: int = 1000
    class_token: bool = True
    pool: Literal["token", "mean"] = "token"
    pool_class_token: bool = False  # whether the mean counts the class token
    norm_after_pool: bool = (
        False  # False: `norm` over all tokens, then pool; True: pool, then `fc_norm`
    )
    pos_embed: Literal["learned", "sincos2d"] = "learned"
    gelu: Literal["erf", "tanh"] = "erf"
    norm_eps: float = 1e-6
    pre_logits: int = 0  # units of the tanh layer before the head; 0: none
    dropout: float = 0.0
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of RGB in [0, 1]
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self):
        for name in (
            "image_size",
            "patch_size",
            "width",
            "depth",
            "num_heads",
            "mlp_dim",
            "num_classes",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"{name} must be a whole number of at least 1, not {value!r}")
        if self.image_size % self.patch_size:
            below = self.image_size // self.patch_size * self.patch_size
            sizes = " or ".join(f"--image_size={s}" for s in (below, below + self.patch_size) if s)
            raise UserError(
                f"patches of {self.patch_size} px do not divide an image of {self.image_size} px: choose {sizes}"
            )
        if self.width % self.num_heads:
            raise UserError(f"{self.num_heads} heads do not divide the width {self.width}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f"{name} must be one of {choices}, not {getattr(self, name)!r}")
        if not isinstance(self.pre_logits, int) or self.pre_logits < 0:
            raise UserError(
                f"pre_logits must be a number of units, or 0 for none, not {self.pre_logits!r}"
            )
        if self.pool == "token" and not self.class_token:
            raise UserError("pool='token' needs class_token=True; without one, use pool='mean'")
        if self.pool == "token" and self.norm_after_pool:
            raise UserError(
                "norm_after_pool belongs to pool='mean'; for pool='token' both orders are the same function"
            )
        if self.pool_class_token and not (self.class_token and self.pool == "mean"):
            raise UserError("pool_class_token needs class_token=True and pool='mean'")
        if self.pos_embed == "sincos2d" and self.width % 4:
            raise UserError(f"sincos2d positions need a width divisible by 4, not {self.width}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be in [0, 1), not {self.dropout}")
        if not self.norm_eps > 0:
            raise UserError(f"norm_eps must be above 0, not {self.norm_eps}")
        for name in ("mean", "std"):
            values = tuple(float(v) for v in getattr(self, name))
            if len(values) != 3 or (name == "std" and min(values) <= 0):
                raise UserError(
                    f"{name} must be three numbers, one for each of R, G and B, not {values}"
                )
            object.__setattr__(self, name, values)

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_tokens(self) -> int:
        """Patches plus the class token, where there is one."""
        return self.num_patches + self.class_token

    @property
    def norm_name(self) -> str:
        """Canonical name of the last LayerNorm."""
        return "fc_norm" if self.norm_after_pool else "norm"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """From `dataclasses.asdict`'s dictionary (or its JSON); an unknown or missing field is a UserError."""
        fields = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) != fields:
            given = set(values) if isinstance(values, dict) else set()
            raise UserError(
                f"this is not a ModelConfig of this version: unknown fields {sorted(given - fields)}, "
                f"missing fields {sorted(fields - given)}"
            )
        for f in dataclasses.fields(cls):
            kind, value = type(f.default), values[f.name]
            if kind is float and type(value) is int:
                value = float(value)
            if kind is tuple and isinstance(value, list):
                value = tuple(value)
            if type(value) is not kind:
                raise UserError(
                    f"ModelConfig field {f.name}: expected {kind.__name__}, found {value!r}"
                )
        return cls(**values)


_CHOICES = {
    "pool": ("token", "mean"),
    "pos_embed": ("learned", "sincos2d"),
    "gelu": ("erf", "tanh"),
}


def model_config(
    name: str, num_classes: int = 1000, image_size: int = 224, **overrides
) -> ModelConfig:
    """The ModelConfig of a named model (`vit_b16`, ...; `vit` is `vit_b16`), with any field overridden.

    Raises UserError for an unknown name (with the nearest one) or an impossible combination.
    """
    full = "vit_b16" if name == "vit" else name
    match = re.fullmatch(r"vit_([a-z]+)(\d+)", full)
    if full not in MODELS or not match:
        raise UserError(
            f"unknown model {name!r}{nearest(name, MODELS)} Models: {', '.join(MODELS)}."
        )
    width, depth, heads, mlp_dim = SIZES[match[1]]
    values = dict(
        patch_size=int(match[2]), width=width, depth=depth, num_heads=heads, mlp_dim=mlp_dim
    )
    return ModelConfig(
        **(values | dict(num_classes=num_classes, image_size=image_size) | overrides)
    )
