"""`ModelConfig`: everything that decides the function of a ViT, given its weights."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from shared_vit.errors import UserError, nearest
from shared_vit.spec.families import DEFAULT_MODEL as DEFAULT_MODEL
from shared_vit.spec.families import MODELS as MODELS
from shared_vit.spec.families import SIZES as SIZES
from shared_vit.spec.rules import check_rules
from shared_vit.spec.settings import kinds_of, restore, setting, written
from shared_vit.spec.sides import Sides, image_fields, shown

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Above these no ViT exists, and a damaged file would make the program run out of memory.
_LARGEST = {
    "image_size": 1 << 14,
    "image_width": 1 << 14,
    "patch_size": 1 << 12,
    "width": 1 << 16,
    "depth": 1000,
    "num_heads": 1 << 12,
    "mlp_dim": 1 << 18,
    "num_classes": 1 << 24,
    "registers": 1 << 12,
    "rope_grid": 1 << 12,
    "map_heads": 1 << 12,
    "map_mlp": 1 << 18,
}
_MAY_BE_ZERO = ("num_classes", "image_width", "registers", "rope_grid", "map_heads", "map_mlp")
# The biases that a model may lack: of the patches, of keys alone, of queries, keys and values, of
# attention's output, of the MLPs.
BIASES = ("patch", "k", "qkv", "proj", "mlp")


def _later(default: Any, help: str) -> Any:
    """A field that older versions do not know, and that is written where it is not the default."""
    return setting(default, help, group="model", historical=default)


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the function a ViT computes, given its weights.

    Sizes are in pixels (image, patch) and units (width, MLP, pre-logits). Raises UserError for an
    impossible combination. Fields that are younger than the first version state the value that was
    in force before them, so that every older file keeps its function.
    """

    image_size: int = 224  # height; of a square image its width too
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    num_classes: int = 1000  # 0: no head, the pooled features are the output
    class_token: bool = True
    # map: attention pooling by a learned query; token+mean: the class token and the mean, joined
    pool: Literal["token", "mean", "map", "token+mean"] = "token"
    pool_class_token: bool = False  # whether the mean or `map` takes the tokens before the patches'
    norm_after_pool: bool = False  # False: `norm` over all tokens, then pool; True: pool, `fc_norm`
    pos_embed: Literal["learned", "sincos2d", "none"] = "learned"
    gelu: Literal["erf", "tanh"] = "erf"
    norm_eps: float = 1e-6
    pre_logits: int = 0  # units of the tanh layer before the head; 0: none
    dropout: float = 0.0
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of RGB in [0, 1]
    std: tuple[float, float, float] = IMAGENET_STD
    eval_resize: float = setting(
        256 / 224,
        "shorter side over the centre crop in evaluation; 0: the full image, squashed to a square",
        group="model",
        historical=256 / 224,
    )
    interpolation: Literal["bilinear", "bicubic"] = setting(
        "bilinear", "filter of the resize in evaluation", group="model", historical="bilinear"
    )
    exif: Literal["ignore", "turn"] = setting(
        "ignore", "what becomes of the orientation in EXIF", group="model", historical="ignore"
    )
    image_width: int = setting(
        0, "width of images that are not square; 0: square", group="model", historical=0
    )
    drop_path: float = setting(  # used in training only, as dropout is
        0.0, "stochastic depth: rate of the last block's branches", group="model", historical=0.0
    )
    # What the families after the ViT of 2020 have.
    registers: int = _later(0, "tokens after the class token, which nothing reads (Darcet 2024)")
    distilled: bool = _later(
        False, "a second class token with a head of its own, whose logits are averaged (DeiT)"
    )
    prefix_positions: bool = _later(
        True, "whether the tokens before the patches' have rows in pos_embed"
    )
    embed_norm: Literal["none", "patches", "tokens"] = _later(
        "none", "a norm of the patches before their positions (AIMv2), or of all tokens (CLIP)"
    )
    rope: Literal["none", "axial", "axial_xy", "centred", "mixed"] = _later(
        "none", "rotary positions: shared_vit.spec.rope has the formulas"
    )
    rope_base: float = _later(0.0, "the longest wavelength of rotary positions over 2 pi")
    rope_offset: float = _later(0.0, "added to the row and the column in axial rotary positions")
    rope_grid: int = _later(
        0, "side of the grid that axial rotary positions are scaled to; 0: none"
    )
    relative_bias: bool = _later(False, "a table of biases by relative position in each block")
    norm: Literal["layer", "rms"] = _later("layer", "LayerNorm, or RMSNorm (Zhang et al. 2019)")
    qk_norm: bool = _later(False, "a norm of each head's queries and keys")
    inner_norm: Literal["none", "mlp", "both"] = _later(
        "none", "a norm before the last product of the MLP, or of attention and MLP"
    )
    post_norm: bool = _later(False, "whether norms come after attention and MLP, not before")
    final_norm: bool = _later(True, "whether there is a norm after the blocks")
    layer_scale: Literal["none", "attention", "both"] = _later(
        "none", "which branches are multiplied by a learned scale (Touvron et al. 2021, CaiT)"
    )
    layer_scale_init: float = _later(1e-5, "first value of the learned scale")
    activation: Literal["gelu", "quick_gelu", "silu"] = _later(
        "gelu", "of the MLPs; the form of gelu is that of the field `gelu`"
    )
    gated: bool = _later(False, "whether the MLPs multiply two halves (Shazeer 2020)")
    no_bias: tuple[str, ...] = _later((), f"biases that do not exist, of {', '.join(BIASES)}")
    map_heads: int = _later(0, "heads of attention pooling; 0: num_heads")
    map_mlp: int = _later(0, "width of attention pooling's MLP; 0: mlp_dim")

    WRITTEN_ALWAYS: ClassVar = frozenset(("drop_path", "eval_resize", "interpolation"))

    def __post_init__(self) -> None:
        for name, largest in _LARGEST.items():
            value, least = getattr(self, name), int(name not in _MAY_BE_ZERO)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(f"{name} must be an integer of at least {least}, not {value!r}")
            if value > largest:
                raise UserError(f"{name} must be at most {largest}, not {value}")
        if self.image_width == self.image_size:
            object.__setattr__(self, "image_width", 0)
        if self.image_width and any(side % self.patch_size for side in self.image_shape):
            raise UserError(
                f"patches of {self.patch_size} px do not divide an image of "
                f"{shown(self.image_shape)}: both sides must be multiples"
            )
        if self.image_size % self.patch_size:
            below = self.image_size // self.patch_size * self.patch_size
            sizes = (f"--image_size={s}" for s in (below, below + self.patch_size) if s)
            raise UserError(
                f"patches of {self.patch_size} px do not divide an image of {self.image_size} px: "
                f"choose {' or '.join(sizes)}"
            )
        for name, choices in _choices().items():
            if getattr(self, name) not in choices:
                raise UserError(f"{name} must be one of {choices}, not {getattr(self, name)!r}")
        if not isinstance(self.pre_logits, int) or not 0 <= self.pre_logits <= _LARGEST["width"]:
            raise UserError(
                f"pre_logits must be a number of units, or 0 for none, not {self.pre_logits!r}"
            )
        self._settle_biases()
        check_rules(self)
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be in [0, 1), not {self.dropout}")
        if not 0 <= self.drop_path < 1:
            raise UserError(f"drop_path must be in [0, 1), not {self.drop_path}")
        if not 0 < self.norm_eps < 1:
            raise UserError(f"norm_eps must be between 0 and 1, not {self.norm_eps}")
        if not (self.eval_resize == 0 or 1 <= self.eval_resize <= 8):
            raise UserError(f"eval_resize must be 0 or from 1 to 8, not {self.eval_resize}")
        for name in ("mean", "std"):
            values = tuple(float(v) for v in getattr(self, name))
            if len(values) != 3 or not all(math.isfinite(v) for v in values):
                raise UserError(f"{name} must be three numbers, for R, G and B, not {values}")
            if name == "std" and min(values) <= 0:
                raise UserError(f"std must be above 0, not {values}")
            object.__setattr__(self, name, values)

    def _settle_biases(self) -> None:
        """`no_bias` in one order, so that equal models are equal. Raises UserError for others."""
        unknown = [name for name in self.no_bias if name not in BIASES]
        if unknown or isinstance(self.no_bias, str):
            raise UserError(f"no_bias must be a tuple of {BIASES}, not {self.no_bias!r}")
        object.__setattr__(self, "no_bias", tuple(b for b in BIASES if b in self.no_bias))

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.image_size, self.image_width or self.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.image_shape
        return height // self.patch_size, width // self.patch_size

    @property
    def num_patches(self) -> int:
        return math.prod(self.grid)

    @property
    def num_prefix(self) -> int:
        """Tokens before those of the patches: class, distillation, registers, in this order."""
        return self.class_token + self.distilled + self.registers

    @property
    def num_tokens(self) -> int:
        return self.num_prefix + self.num_patches

    @property
    def position_rows(self) -> int:
        """Rows of `pos_embed`; 0 where there is none."""
        if self.pos_embed == "none":
            return 0
        return self.num_tokens if self.prefix_positions else self.num_patches

    @property
    def head_width(self) -> int:
        """Width of one head of attention."""
        return self.width // self.num_heads

    @property
    def pooled_width(self) -> int:
        """Width of the pooled features."""
        return self.width * (2 if self.pool == "token+mean" else 1)

    @property
    def pooling_heads(self) -> int:
        """Heads of attention pooling."""
        return self.map_heads or self.num_heads

    @property
    def pooling_mlp(self) -> int:
        """Width of attention pooling's MLP."""
        return self.map_mlp or self.mlp_dim

    @property
    def resized_shape(self) -> tuple[int, int]:
        """Evaluation: the height and width in pixels that the resized image covers, one of them
        exactly, before the centre is cropped; with `eval_resize` 0, the image's."""
        scale = self.eval_resize or 1
        # Of a square rounded to the nearest, as torchvision's recipes are. One number scales both
        # sides of another shape, and timm, which has such, rounds them down.
        whole = int if self.image_width else round
        height, width = (whole(side * scale) for side in self.image_shape)
        return height, width

    @property
    def short_side(self) -> int:
        """Evaluation: the shorter side in pixels after the resize and before the crop, where the
        image is square."""
        return self.resized_shape[0]

    @property
    def draws_masks(self) -> bool:
        """Whether a forward pass in training needs random masks."""
        return self.dropout > 0 or self.drop_path > 0

    def path_rate(self, block: int) -> float:
        """Rate of stochastic depth in a block: 0 in the first, `drop_path` in the last, linear
        between (Huang et al. 2016)."""
        return self.drop_path * block / max(1, self.depth - 1)

    @property
    def norm_name(self) -> str:
        """Canonical name of the last norm, where there is one."""
        return "fc_norm" if self.norm_after_pool else "norm"

    def to_json(self) -> str:
        return json.dumps(written(self), sort_keys=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "model_config") -> ModelConfig:
        """From the dictionary of `dataclasses.asdict` or its JSON, of this version or an older one.

        Raises UserError for an unknown field, or a missing one without a historical value.
        """
        return restore(cls, values, where)


@functools.cache
def _choices() -> dict[str, tuple[str, ...]]:
    return {name: kind.choices for name, kind in kinds_of(ModelConfig).items() if kind.choices}


def check_config(cfg: object) -> None:
    """Raise UserError unless `cfg` is a ModelConfig."""
    if not isinstance(cfg, ModelConfig):
        raise UserError(
            f"a model is made from a ModelConfig, not from {cfg!r}: "
            'shared_vit.model_config("vit_b16") gives that of a named model'
        )


def model_config(
    name: str, num_classes: int = 1000, image_size: Sides = 224, **overrides: Any
) -> ModelConfig:
    """The ModelConfig of a named model (`vit_b16`, ...; `vit` is `vit_b16`), any field overridden.

    `image_size` in pixels is one number for a square, else (height, width).

    Raises UserError for an unknown name (with the nearest one) or an impossible combination.
    """
    full = DEFAULT_MODEL if name == "vit" else name
    if full not in MODELS:
        known = ", ".join(MODELS)
        raise UserError(f"unknown model {name!r}{nearest(_as_ours(name), MODELS)} Models: {known}.")
    sizes = dict(num_classes=num_classes, **image_fields(image_size))
    return ModelConfig(**(MODELS[full] | sizes | overrides))


def name_of(cfg: ModelConfig) -> str:
    """The name of a model of these sizes, or a description of them where none has a name.

    Of several families with such a size it is that with the most fields in common.
    """
    names = [name for name, row in MODELS.items() if row.items() <= vars(cfg).items()]
    if names:
        return max(names, key=lambda name: len(MODELS[name]))
    return f"ViT of width {cfg.width}, depth {cfg.depth}, {cfg.num_heads} heads"


_LONG = {"tiny": "ti", "small": "s", "base": "b", "large": "l", "huge": "h", "giant": "g"}
_FOREIGN = re.compile(r"(tiny|small|base|large|huge|giant|gg|ti|[sblhg])[^a-z\d]*(\d+)?")


def _as_ours(name: str) -> str:
    """`ViT-B/16`, `google/vit-base-patch16-224` -> `vit_b16`: other projects' spellings, for a
    suggestion."""
    plain = str(name).lower().rpartition("vit")[2].lstrip("-_ /") if "/" in name else name.lower()
    plain = re.sub(r"^(vit|deit)[^a-z\d]*", "", plain.replace("patch", ""))
    found = _FOREIGN.match(plain)
    if not found:
        return str(name).lower()
    size = _LONG.get(found[1], found[1])
    return f"vit_{size}{found[2] or (14 if size in ('h', 'g', 'gg') else 16)}"
