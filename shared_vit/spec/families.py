"""Named models as rows: a name is a family, a size and a patch, as in `vit_b16`.

A family is what its models have in common: fields of ModelConfig, and where it was published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# (width, depth, heads, MLP width): Dosovitskiy et al. 2021, table 1; Ti and S from Touvron et al.
# 2021; g from Zhai et al. 2022, table 2, as is gg (their G); so400m from Alabdulmohsin et al. 2023.
# `nano` and `mini` are this project's own, for digits and CIFAR-10 on small machines.
SIZES = {
    "nano": (64, 4, 4, 256),
    "mini": (192, 6, 3, 768),
    "ti": (192, 12, 3, 768),
    "s": (384, 12, 6, 1536),
    "m": (512, 12, 8, 2048),
    "b": (768, 12, 12, 3072),
    "l": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "h": (1280, 32, 16, 5120),
    "g": (1408, 40, 16, 6144),
    "gg": (1664, 48, 16, 8192),
}


@dataclass(frozen=True)
class Family:
    """Models of one function.

    models: their sizes and patches, as in `b16`. licence: of the published weights. fields: what
    they have that the models of 2020 have not. sizes: those that are the family's own. more: fields
    of models of one size. timm: what timm calls them, by size, with the patch in braces. hub: the
    smallest published weights, on the Hugging Face hub.
    """

    models: str
    about: str
    paper: str
    licence: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, tuple[int, int, int, int]] = field(default_factory=dict)
    more: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    timm: Mapping[str, str] = field(default_factory=dict)
    hub: str = ""


_HALF = (0.5, 0.5, 0.5)
_AS_CLIP = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
_LONG = dict(ti="tiny", s="small", m="medium", b="base", l="large", h="huge")
_GATED = dict(gated=True, activation="silu")


def _timm(sizes: str, pattern: str) -> dict[str, str]:
    """timm's names of these sizes; `SIZE` in the pattern stands for theirs."""
    return {size: pattern.replace("SIZE", _LONG.get(size, size)) for size in sizes.split()}


FAMILIES = {
    "vit": Family(
        models="nano2 mini4 ti4 ti16 s16 s32 b16 b32 l16 l32 h14 g14 gg14",
        about="Vision Transformer",
        paper="Dosovitskiy et al. 2021, arXiv:2010.11929",
        licence="Apache-2.0 (Google's weights)",
        hub="timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
        timm=_timm("ti s b l h", "vit_SIZE_patch{}_224") | dict(
            g="vit_giant_patch{}_224", gg="vit_gigantic_patch{}_224"
        ),
    ),
    "deit3": Family(
        models="s16 m16 b16 l16 h14",
        about="DeiT-III: layer scale, no position for the class token",
        paper="Touvron et al. 2022, arXiv:2204.07118",
        licence="Apache-2.0",
        hub="timm/deit3_small_patch16_224.fb_in22k_ft_in1k",
        fields=dict(layer_scale="both", layer_scale_init=1e-6, prefix_positions=False),
        timm=_timm("s m b l h", "deit3_SIZE_patch{}_224"),
    ),
    "dinov2": Family(
        models="s14 b14 l14 g14",
        about="DINOv2: layer scale",
        paper="Oquab et al. 2024, arXiv:2304.07193",
        licence="Apache-2.0",
        hub="timm/vit_small_patch14_dinov2.lvd142m",
        fields=dict(layer_scale="both"),
        sizes=dict(g=(1536, 40, 24, 4096)),
        more=dict(g=_GATED),
        timm=_timm("s b l", "vit_SIZE_patch{}_dinov2") | dict(g="vit_giant_patch{}_dinov2"),
    ),
    "dinov2r": Family(
        models="s14 b14 l14 g14",
        about="DINOv2 with four registers",
        paper="Darcet et al. 2024, arXiv:2309.16588",
        licence="Apache-2.0",
        hub="timm/vit_small_patch14_reg4_dinov2.lvd142m",
        fields=dict(layer_scale="both", registers=4, prefix_positions=False),
        sizes=dict(g=(1536, 40, 24, 4096)),
        more=dict(g=_GATED),
        timm=_timm("s b l", "vit_SIZE_patch{}_reg4_dinov2")
        | dict(g="vit_giant_patch{}_reg4_dinov2"),
    ),
    "dinov3": Family(
        models="s16 splus16 b16 l16 hplus16 7b16",
        about="DINOv3: rotary positions, four registers, layer scale",
        paper="Simeoni et al. 2025, arXiv:2508.10104",
        licence="DINOv3 License (Meta; access is requested on the hub)",
        hub="timm/vit_small_patch16_dinov3.lvd1689m",
        fields=dict(
            registers=4, pos_embed="none", rope="centred", rope_base=100.0, layer_scale="both",
            norm_eps=1e-5, no_bias=("qkv",), pool="mean", interpolation="bicubic",
        ),
        sizes={
            "splus": (384, 12, 6, 1536),
            "hplus": (1280, 32, 20, 5120),
            "7b": (4096, 40, 32, 8192),
        },
        more={"splus": _GATED, "hplus": _GATED, "7b": _GATED},
        timm=_timm("s b l 7b", "vit_SIZE_patch{}_dinov3")
        | dict(splus="vit_small_plus_patch{}_dinov3", hplus="vit_huge_plus_patch{}_dinov3"),
    ),
    "siglip": Family(
        models="b16 l16 so400m14 so400m16",
        about="SigLIP: attention pooling, no class token (SigLIP 2 of one size, too)",
        paper="Zhai et al. 2023, arXiv:2303.15343; Tschannen et al. 2025, arXiv:2502.14786",
        licence="Apache-2.0",
        hub="timm/vit_base_patch16_siglip_224.v2_webli",
        # Its authors' code has GELU's tanh form, timm's names of the larger models, too.
        fields=dict(class_token=False, pool="map", gelu="tanh", mean=_HALF, std=_HALF),
        timm=_timm("b", "vit_SIZE_patch32_siglip_256") | dict(
            l="vit_large_patch{}_siglip_512", so400m="vit_so400m_patch16_siglip_256"
        ),
    ),
    "clip": Family(
        models="b32 b16 l14 h14",
        about="CLIP's image tower, with GELU: open_clip's, LAION's, OpenCLIP's",
        paper="Radford et al. 2021, arXiv:2103.00020; Cherti et al. 2023, arXiv:2212.07143",
        licence="MIT (open_clip's weights)",
        hub="timm/vit_base_patch32_clip_224.laion2b",
        fields=dict(embed_norm="tokens", no_bias=("patch",), norm_eps=1e-5, **_AS_CLIP),
        timm=_timm("b l h", "vit_SIZE_patch{}_clip_224"),
    ),
    "clipq": Family(
        models="b32 b16 l14 h14",
        about="CLIP's image tower, with QuickGELU: OpenAI's, DFN's, MetaCLIP's",
        paper="Radford et al. 2021, arXiv:2103.00020",
        licence="MIT (OpenAI's weights)",
        hub="timm/vit_base_patch32_clip_quickgelu_224.openai",
        fields=dict(
            embed_norm="tokens", no_bias=("patch",), norm_eps=1e-5, activation="quick_gelu",
            **_AS_CLIP,
        ),
        timm=_timm("b l h", "vit_SIZE_patch{}_clip_quickgelu_224"),
    ),
    "eva02": Family(
        models="ti14 s14 b14 l14",
        about="EVA-02: rotary positions and gated MLPs",
        paper="Fang et al. 2023, arXiv:2303.11331",
        licence="MIT",
        hub="timm/eva02_tiny_patch14_224.mim_in22k",
        fields=dict(
            rope="axial", rope_base=10000.0, rope_grid=16, no_bias=("k",), pool="mean",
            norm_after_pool=True, **_GATED, **_AS_CLIP,
        ),
        sizes=dict(
            ti=(192, 12, 3, 512), s=(384, 12, 6, 1024), b=(768, 12, 12, 2048),
            l=(1024, 24, 16, 2730),
        ),
        more=dict(b=dict(inner_norm="mlp"), l=dict(inner_norm="mlp")),
        timm=_timm("ti s b l", "eva02_SIZE_patch{}_224"),
    ),
    "beit": Family(
        models="b16 l16",
        about="BEiT and BEiT v2: relative positions",
        paper="Bao et al. 2022, arXiv:2106.08254; Peng et al. 2022, arXiv:2208.06366",
        licence="MIT",
        hub="timm/beit_base_patch16_224.in22k_ft_in22k_in1k",
        fields=dict(
            pos_embed="none", relative_bias=True, layer_scale="both", no_bias=("k",), pool="mean",
            norm_after_pool=True,
        ),
        timm=_timm("b l", "beit_SIZE_patch{}_224"),
    ),
    "aimv2": Family(
        models="l14 h14",
        about="AIMv2: RMSNorm and gated MLPs without biases",
        paper="Fini et al. 2024, arXiv:2411.14402",
        licence="Apple Machine Learning Research Model License",
        hub="timm/aimv2_large_patch14_224.apple_pt",
        fields=dict(
            class_token=False, pool="mean", embed_norm="patches", norm="rms", norm_eps=1e-5,
            no_bias=("qkv", "proj", "mlp"), **_GATED, **_AS_CLIP,
        ),
        sizes=dict(l=(1024, 24, 8, 2816), h=(1536, 24, 12, 4096)),
        timm=_timm("l h", "aimv2_SIZE_patch{}_224"),
    ),
    "rope": Family(
        models="s16 b16 l16",
        about="RoPE-ViT: axial rotary positions instead of learned ones",
        paper="Heo et al. 2024, arXiv:2403.13298",
        licence="Apache-2.0",
        hub="timm/vit_small_patch16_rope_224.naver_in1k",
        fields=dict(pos_embed="none", rope="axial_xy", rope_base=100.0, layer_scale="both"),
        timm=_timm("s b l", "vit_SIZE_patch{}_rope_224"),
    ),
}  # fmt: skip
DEFAULT_MODEL = "vit_b16"


def _size_and_patch(model: str) -> tuple[str, int]:
    """`so400m14` -> ("so400m", 14)."""
    found = re.fullmatch(r"(.*?)(\d+)", model)
    assert found is not None
    return found[1], int(found[2])


def _rows() -> dict[str, dict[str, Any]]:
    found = {}
    for family, about in FAMILIES.items():
        for model in about.models.split():
            size, patch = _size_and_patch(model)
            values = about.sizes.get(size) or SIZES[size]
            sizes = dict(zip(("width", "depth", "num_heads", "mlp_dim"), values))
            fields = dict(about.fields) | dict(about.more.get(size, {}))
            found[f"{family}_{model}"] = dict(patch_size=patch, **sizes, **fields)
    return found


# {name: its fields of ModelConfig}.
MODELS = _rows()


def family_of(name: str) -> Family:
    """The family of a named model."""
    return FAMILIES[name.rpartition("_")[0]]


def timm_name(name: str) -> str | None:
    """timm's name of a named model; None where it has none of that size."""
    family, _, model = name.rpartition("_")
    size, patch = _size_and_patch(model)
    pattern = FAMILIES[family].timm.get(size)
    return None if pattern is None else pattern.replace("{}", str(patch))
