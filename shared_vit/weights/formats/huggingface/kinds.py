"""transformers' plain ViTs as rows: names, defaults, and which of our models each class can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared_vit.spec.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig
from shared_vit.weights.formats.holds import ANY, BOTH, Rule
from shared_vit.weights.formats.huggingface import configs, modules
from shared_vit.weights.formats.huggingface.modules import Names
from shared_vit.weights.formats.json_fields import HALF, Rgb

CLIP_MEAN: Rgb = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Rgb = (0.26862954, 0.26130258, 0.27577711)
SQUARE: Rule = (0,)
LEARNED: Rule = ("learned", "sincos2d")  # positions that are a tensor of the file
_QKV_BIAS = {"qkv": ("qkv_bias", True)}
ACTIVATIONS: Rule = ("gelu", "quick_gelu", "silu")


@dataclass(frozen=True)
class Images:
    """What the image processor of a kind does where no preprocessor_config.json says."""

    mean: Rgb
    std: Rgb
    resize: float  # `eval_resize`: 0 squashes
    interpolation: str
    about: str


_VIT_IMAGES = Images(
    *HALF, 0.0, "bilinear",
    "mean and std 0.5, the full image squashed to a square (ViTImageProcessor's defaults; there "
    "is no preprocessor_config.json)",
)  # fmt: skip
_HALF_BICUBIC = Images(
    *HALF, 0.0, "bicubic",
    "mean and std 0.5, the full image squashed to a square, bicubic (the image processor's "
    "defaults; there is no preprocessor_config.json)",
)  # fmt: skip
_CLIP_IMAGES = Images(
    CLIP_MEAN, CLIP_STD, 1.0, "bicubic",
    "CLIP's mean and std, the shorter side resized to the image's, bicubic (the image processor's "
    "defaults; there is no preprocessor_config.json)",
)  # fmt: skip
_DINOV3_IMAGES = Images(
    IMAGENET_MEAN, IMAGENET_STD, 0.0, "bilinear",
    "ImageNet's mean and std, the full image squashed to a square (DINOv3ViTImageProcessor's "
    "defaults; there is no preprocessor_config.json)",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One layout of transformers, and the model types of config.json that have it.

    Attributes:
        model_types: The first is written.
        bodies: Prefixes of the body's names in a file with a head; the first is written.
        body: The class without a head.
        classifier: The class with one; "" where transformers has none.
        layer: Names of a block, `{}` its number.
        modules: Canonical modules or tensors, within a block without its prefix: their names.
        holds: Which settings it has (`Format.holds`).
        eps, act, heads: Defaults of its configuration.
        said: Keys of config.json for a model, in addition to the common ones.
        biases: Biases that may not exist, in the words of ModelConfig.no_bias: the key of
            config.json that says whether they do, "" where none does, and its default.
    """

    model_types: tuple[str, ...]
    bodies: tuple[str, ...]
    body: str
    classifier: str
    layer: str
    modules: Names
    holds: Mapping[str, Rule]
    images: Images
    said: Callable[[ModelConfig], dict[str, Any]]
    eps: float = 1e-6
    eps_key: str = "layer_norm_eps"
    act: str = "gelu"
    heads: int = 12
    fields: Mapping[str, Any] = field(default_factory=dict)
    biases: Mapping[str, tuple[str, bool]] = field(default_factory=dict)


_VIT_HOLDS: dict[str, Rule] = {
    "num_classes": ANY,
    "image_width": ANY,
    "activation": ACTIVATIONS,
    "no_bias": ((), ("qkv",)),
    "pos_embed": LEARNED,
}
_DINOV2_HOLDS: dict[str, Rule] = {
    "num_classes": ANY,
    "image_width": SQUARE,  # its code resamples the positions of others as if of a square
    "activation": lambda c: c.activation == "silu" if c.gated else True,
    "no_bias": ((), ("qkv",)),
    "pos_embed": LEARNED,
    "pool": lambda c: c.pool == ("token+mean" if c.num_classes else "token"),
    "layer_scale": ("both",),
    "layer_scale_init": ANY,
    "gated": BOTH,
    "mlp_dim": lambda c: configs.mlp_ratio(c) is not None,
}


def _mean_or_map(cfg: ModelConfig) -> bool:
    return cfg.pool == "mean" or (cfg.pool == "map" and not cfg.num_classes)


VIT = Kind(
    ("vit", "vit_msn", "vit_mae"), ("vit.",), "ViTModel", "ViTForImageClassification",
    "encoder.layer.{}.", modules.VIT, _VIT_HOLDS, _VIT_IMAGES, configs.qkv_bias, eps=1e-12,
    biases=_QKV_BIAS,
)  # fmt: skip
DEIT = Kind(
    ("deit",), ("deit.",), "DeiTModel", "DeiTForImageClassification",
    "encoder.layer.{}.", modules.DEIT,
    _VIT_HOLDS | {
        "distilled": BOTH,
        "registers": lambda c: c.registers == (0 if c.distilled else 1),
        "num_classes": lambda c: c.num_classes > 0 or not c.distilled,
    },
    _HALF_BICUBIC, configs.qkv_bias, eps=1e-12, biases=_QKV_BIAS,
)  # fmt: skip
DINOV2 = Kind(
    ("dinov2",), ("dinov2.",), "Dinov2Model", "Dinov2ForImageClassification",
    "encoder.layer.{}.", modules.DINOV2, _DINOV2_HOLDS, _CLIP_IMAGES, configs.dinov2,
    biases=_QKV_BIAS,
)  # fmt: skip
REGISTERS = Kind(
    ("dinov2_with_registers",), ("dinov2_with_registers.",), "Dinov2WithRegistersModel",
    "Dinov2WithRegistersForImageClassification", "encoder.layer.{}.", modules.DINOV2,
    _DINOV2_HOLDS | {"registers": lambda c: c.registers > 0, "prefix_positions": BOTH},
    _CLIP_IMAGES, configs.dinov2, biases=_QKV_BIAS,
)  # fmt: skip
DINOV3 = Kind(
    ("dinov3_vit",), ("",), "DINOv3ViTModel", "", "layer.{}.", modules.DINOV3,
    {
        "num_classes": lambda c: c.num_classes == 0,
        "image_width": ANY,
        "activation": ACTIVATIONS,
        "no_bias": lambda c: "patch" not in c.no_bias,
        "pos_embed": ("none",),
        "rope": ("centred",),
        "rope_base": ANY,
        "registers": ANY,
        "layer_scale": ("both",),
        "layer_scale_init": ANY,
        "gated": BOTH,
    },
    _DINOV3_IMAGES, configs.dinov3, eps=1e-5, heads=6, fields={"rope": "centred"},
    biases={
        "k": ("key_bias", False),
        "qkv": ("query_bias", True),
        "proj": ("proj_bias", True),
        "mlp": ("mlp_bias", True),
    },
)  # fmt: skip
SIGLIP = Kind(
    ("siglip_vision_model", "siglip", "siglip2_vision_model", "siglip2"), ("vision_model.",),
    "SiglipVisionModel", "SiglipForImageClassification", "encoder.layers.{}.", modules.SIGLIP,
    {
        "num_classes": ANY,
        "image_width": SQUARE,
        "activation": ACTIVATIONS,
        "pos_embed": LEARNED,
        "class_token": (False,),
        "pool": _mean_or_map,
        "map_heads": lambda c: c.map_heads in (0, c.num_heads),
        "map_mlp": lambda c: c.map_mlp in (0, c.mlp_dim),
        "gelu": lambda c: c.pool == "map" or c.gelu == "tanh",  # of others I-JEPA is the nearer
    },
    _HALF_BICUBIC, configs.siglip, act="gelu_pytorch_tanh",
)  # fmt: skip
CLIP = Kind(
    ("clip_vision_model", "clip"), ("vision_model.",), "CLIPVisionModel",
    "CLIPForImageClassification", "encoder.layers.{}.", modules.CLIP,
    {
        "num_classes": ANY,
        "image_width": SQUARE,
        "activation": ACTIVATIONS,
        "pos_embed": LEARNED,
        "embed_norm": ("tokens",),
        "no_bias": (("patch",),),
        "pool": lambda c: c.pool == "token" or (c.pool == "mean" and c.num_classes > 0),
        "final_norm": lambda c: c.final_norm == (c.pool == "token"),
    },
    _CLIP_IMAGES, configs.nothing, eps=1e-5, act="quick_gelu", biases={"patch": ("", False)},
)  # fmt: skip
IJEPA = Kind(
    ("ijepa",), ("ijepa.",), "IJepaModel", "IJepaForImageClassification",
    "encoder.layer.{}.", modules.VIT,
    _VIT_HOLDS | {"class_token": (False,), "pool": ("mean",)},
    _VIT_IMAGES, configs.qkv_bias, eps=1e-12,
    biases=_QKV_BIAS,
)  # fmt: skip
AIMV2 = Kind(
    ("aimv2_vision_model", "aimv2"), ("",), "Aimv2VisionModel", "", "encoder.layers.{}.",
    modules.AIMV2,
    {
        "num_classes": lambda c: c.num_classes == 0,
        "image_width": SQUARE,
        "activation": ACTIVATIONS,
        "pos_embed": LEARNED,
        "class_token": (False,),
        "pool": ("mean",),
        "embed_norm": ("patches",),
        "norm": ("rms",),
        "gated": (True,),
        # `qkv_bias` is of all four products.
        "no_bias": lambda c: "patch" not in c.no_bias
        and "k" not in c.no_bias and ("qkv" in c.no_bias) == ("proj" in c.no_bias),
    },
    _CLIP_IMAGES, configs.aimv2, eps=1e-5, eps_key="rms_norm_eps", act="silu", heads=8,
    fields={"norm": "rms"}, biases={
        "qkv": ("qkv_bias", False),
        "proj": ("qkv_bias", False),
        "mlp": ("mlp_bias", False),
    },
)  # fmt: skip
BEIT = Kind(
    ("beit", "data2vec-vision"), ("beit.", "data2vec_vision."), "BeitModel",
    "BeitForImageClassification", "encoder.layer.{}.", modules.BEIT,
    {
        "num_classes": ANY,
        # Its code resamples positions of other grids as if of a square, and reads tables of
        # relative ones along the other axis.
        "image_width": SQUARE,
        "activation": ACTIVATIONS,
        "pos_embed": ANY,
        "no_bias": (("k",),),
        "relative_bias": BOTH,
        "layer_scale": ("none", "both"),
        "layer_scale_init": ANY,
        "pool": lambda c: c.pool == ("mean" if c.norm_after_pool else "token"),
        "norm_after_pool": BOTH,
    },
    _HALF_BICUBIC, configs.beit, eps=1e-12, biases={"k": ("", False)},
)  # fmt: skip

# In the order in which a model to be written is tried.
KINDS = (VIT, DEIT, DINOV2, REGISTERS, DINOV3, SIGLIP, CLIP, IJEPA, AIMV2, BEIT)
MODEL_TYPES = {name: kind for kind in KINDS for name in kind.model_types}
# Defaults of configurations that differ from their kind's.
EPS = {"vit_msn": 1e-6}
