"""The function of a file of timm's that is no ViT of 2020: from its tensors' names and shapes, and
from what the name of its architecture implies."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from shared_vit.errors import UserError, some
from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig
from shared_vit.weights.formats.base import Hints, Notes
from shared_vit.weights.formats.json_fields import number
from shared_vit.weights.formats.timm_architectures import (
    Architecture,
    architectures,
    candidates,
    function_of,
)
from shared_vit.weights.formats.timm_names import names_of, patch_side, spelling_of
from shared_vit.weights.lazy import Arrays
from shared_vit.weights.table import count_layers, side_of

# What a name decides and no tensor shows.
_BY_NAME = (
    "gelu", "norm_eps", "activation", "rope", "rope_base", "rope_offset", "rope_grid", "post_norm",
    "pool", "pool_class_token", "map_heads", "layer_scale_init", "prefix_positions",
)  # fmt: skip
_ACTIVATIONS = {
    "gelu": ("gelu", "erf"),
    "gelu_tanh": ("gelu", "tanh"),
    "quick_gelu": ("quick_gelu", "erf"),
    "silu": ("silu", "erf"),
    "swish": ("silu", "erf"),
}
# Arguments of `create_model` whose effect the tensors or the sizes show, or that have none here.
_SHOWN = frozenset(
    (
        "img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio",
        "num_classes", "global_pool", "class_token", "fc_norm", "final_norm", "reg_tokens",
        "num_reg_tokens", "no_embed_class", "pos_embed", "use_abs_pos_emb", "init_values",
        "qkv_bias",
        "qkv_fused", "qk_norm", "pre_norm", "use_pre_transformer_norm", "use_post_transformer_norm",
        "use_fc_norm", "act_layer", "pool_include_prefix", "proj_bias", "swiglu_mlp",
        "scale_attn_inner", "scale_norm", "num_kv_heads", "dynamic_img_size", "dynamic_img_pad",
        "strict_img_size", "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate",
        "attn_drop_rate", "drop_path_rate", "weight_init", "features_only", "head_init_scale",
        "rope_temperature", "ref_feat_shape", "rope_grid_offset",
    )
)  # fmt: skip
_POOLS = {"avg": "mean", "token": "token", "map": "map"}


class Names:
    """The tensors of a file under canonical names, whatever timm's class calls them."""

    def __init__(self, arrays: Arrays):
        self.spelling = spelling_of(arrays)
        self.shapes = {name: tuple(map(int, a.shape)) for name, a in arrays.items()}

    def __contains__(self, name: str) -> bool:
        return self.shape(name) is not None

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of the first of the tensors that make it."""
        return self.shapes.get(names_of(self.spelling, name)[0])


def architecture_of_file(
    arrays: Arrays, said: Architecture | None, hints: Hints, notes: Notes, models: str
) -> Architecture:
    """The architecture that JSON or the file's name say, else the one that has its tensors; where
    the caller said the format, of those whose names are as the pattern `models`.

    Raises UserError where several have them, with different functions, or none.
    """
    if said is not None:
        return said
    shapes = {name: tuple(map(int, array.shape)) for name, array in arrays.items()}
    found = list(candidates(shapes))
    if hints.format_said:
        found = [each for each in found if re.fullmatch(models, each.name)]
    if not found:
        raise UserError(
            f"{hints.where} has other tensors than the first ViTs ({_strange(arrays)}), and those "
            f"of none of timm's {len(architectures())} plain ViTs that are known: put timm's "
            "config.json next to it, which names its architecture"
        )
    if len({function_of(each.cfg) for each in found}) > 1:
        raise UserError(
            f"{hints.where} may be {some([each.name for each in found], 4, ' or ')}, which "
            "compute different functions of the same tensors: give the file the name of the right "
            "one, or put timm's config.json next to it"
        )
    notes.notices.append(
        f"its architecture is known by its tensors: {found[0].name}; another one's function would "
        "need timm's config.json next to the file"
    )
    return found[0]


# What the tensors show of a function, so that a file's name can be held to it.
_SEEN = (
    "class_token", "distilled", "registers", "pos_embed", "norm", "qk_norm", "inner_norm",
    "layer_scale", "embed_norm", "relative_bias", "gated",
)  # fmt: skip


def _check_the_name(
    found: Mapping[str, Any], architecture: Architecture, config_says: bool, hints: Hints
) -> None:
    """Raise UserError where a file's name is of other tensors than the file's; config.json may
    change all but whether the MLPs are gated, on which their activation depends."""
    seen = ("gated",) if config_says else _SEEN
    wrong = [name for name in seen if found[name] != getattr(architecture.cfg, name)]
    if wrong:
        shown = ", ".join(f"{name}={found[name]!r}" for name in wrong)
        raise UserError(
            f"{hints.where} is no {architecture.name}, as it is called: its tensors are of a model "
            f"with {shown}"
        )


def _strange(arrays: Arrays) -> str:
    """Tensors that ViT-B/16 has not, for a message."""
    usual = canonical.shapes(ModelConfig(depth=1))
    plain = {re.sub(r"^blocks\.\d+\.", "blocks.0.", name): name for name in reversed(list(arrays))}
    return some([name for known, name in plain.items() if known not in usual], 3, ", ")


def read_family(
    arrays: Arrays,
    architecture: Architecture,
    args: Mapping[str, Any],
    pretrained: Mapping[str, Any],
    hints: Hints,
) -> dict[str, Any]:
    """The fields of ModelConfig but for the preparation of images. Raises UserError."""
    config_says = bool(hints.config)
    names = Names(arrays)
    found = {name: getattr(architecture.cfg, name) for name in _BY_NAME}
    found |= _rotary_arguments(args, found, hints)
    found |= _tokens(names) | _norms(names) | _sizes(names, architecture, args, hints)
    found["no_bias"] = _missing_biases(names)
    found["relative_bias"] = "blocks.0.attn.relative_position_bias_table" in names
    _check_the_name(found, architecture, config_says, hints)
    _said_by_arguments(architecture, found, names, args, hints)
    found |= _image(names, found, architecture, args, pretrained, hints)
    return found


def unknown_arguments(model_args: Mapping[str, Any]) -> list[str]:
    """Those whose effect on the function is not known here."""
    return sorted(str(key) for key in model_args if key not in _SHOWN)


def _rotary_arguments(
    args: Mapping[str, Any], found: Mapping[str, Any], hints: Hints
) -> dict[str, Any]:
    """What of rotary positions `create_model` was given instead of the name's own."""
    told: dict[str, Any] = {}
    for key, name in (("rope_temperature", "rope_base"), ("rope_grid_offset", "rope_offset")):
        if key in args and found["rope"] != "none":
            told[name] = number(args, key, float, found[name], hints.where)
    grid = args.get("ref_feat_shape")
    if grid is not None and found["rope"].startswith("axial"):
        pair = _pair(grid)
        if pair is None or pair[0] != pair[1]:
            raise UserError(f"{hints.where}: its ref_feat_shape is {grid!r:.80}: expected a square")
        told["rope_grid"] = pair[0]
    return told


def _tokens(names: Names) -> dict[str, Any]:
    registers = names.shape("reg_token")
    return dict(
        class_token="cls_token" in names,
        distilled="dist_token" in names,
        registers=registers[1] if registers is not None and len(registers) == 3 else 0,
        pos_embed="learned" if "pos_embed" in names else "none",
    )


def _norms(names: Names) -> dict[str, Any]:
    block, after = "blocks.0.", "fc_norm.weight" in names
    inner = block + "attn.norm.weight" in names, block + "mlp.norm.weight" in names
    first, second = block + "ls1.gamma" in names, block + "ls2.gamma" in names
    patches, tokens = "patch_embed.norm.weight" in names, "norm_pre.weight" in names
    return dict(
        norm="layer" if block + "norm1.bias" in names else "rms",
        qk_norm=block + "attn.q_norm.weight" in names,
        inner_norm="both" if all(inner) else "mlp" if inner[1] else "none",
        layer_scale="both" if second else "attention" if first else "none",
        embed_norm="patches" if patches else "tokens" if tokens else "none",
        norm_after_pool=after,
        final_norm=after or "norm.weight" in names,
    )


def _missing_biases(names: Names) -> tuple[str, ...]:
    block = "blocks.0."
    found = [] if "patch_embed.proj.bias" in names else ["patch"]
    if block + "attn.qkv.bias" not in names:
        found.append("qkv")
    elif "qv_bias" in names.spelling or block + "attn.k_proj.bias" not in _split(names):
        found.append("k")
    found += [] if block + "attn.proj.bias" in names else ["proj"]
    return (*found, *([] if block + "mlp.fc1.bias" in names else ["mlp"]))


def _split(names: Names) -> Mapping[str, object]:
    """The file's names, where keys are apart; else a stand-in that has their bias."""
    if "split_qkv" in names.spelling:
        return names.shapes
    return {"blocks.0.attn.k_proj.bias": ()}


def _sizes(
    names: Names, architecture: Architecture, args: Mapping[str, Any], hints: Hints
) -> dict[str, Any]:
    width = _length(names, "blocks.0.norm1.weight", hints)
    fc2 = names.shape("blocks.0.mlp.fc2.weight") or ()
    fc1 = names.shape("blocks.0.mlp.fc1.weight") or (0,)
    mlp_dim = max(1, math.prod(fc2) // width)
    usual = architecture.cfg
    head = names.shape("head.weight") or names.shape("head.bias")
    said = number(args, "num_classes", int, hints.num_classes or 0, hints.where)
    found = dict(
        width=width,
        depth=count_layers(r"blocks\.(\d+)\.", names.shapes),
        mlp_dim=mlp_dim,
        gated="split_fc1" in names.spelling or fc1[0] == 2 * mlp_dim,
        num_classes=head[0] if head else hints.num_classes or 0,
        patch_size=patch_side(names.shape("patch_embed.proj.weight") or ()),
        num_heads=heads_of(width, usual, args, hints),
    )
    if head is None and said and hints.num_classes is None:
        found["num_classes"] = 0
    if "attn_pool.latent" in names:
        hidden = (names.shape("attn_pool.mlp.fc1.weight") or (0,))[0]
        found["map_mlp"] = 0 if hidden == mlp_dim else hidden
    return found


def _length(names: Names, name: str, hints: Hints) -> int:
    shape = names.shape(name)
    if not shape:
        raise UserError(f"{hints.where} is not a ViT of timm: missing: {name}")
    return shape[0]


def heads_of(width: int, usual: ModelConfig, args: Mapping[str, Any], hints: Hints) -> int:
    """Those of the arguments, else those of the name, which another width does not change."""
    said = number(args, "num_heads", int, None, hints.where)
    if said is None and (hints.config or width == usual.width):
        said = usual.num_heads
    if said is not None and hints.num_heads not in (None, said):
        raise UserError(
            f"{hints.where} says that it has {said} heads; --num_heads={hints.num_heads} "
            "contradicts it"
        )
    return said or hints.num_heads or max(1, width // usual.head_width)


def check_pooling(args: Mapping[str, Any], arrays: Arrays, hints: Hints) -> None:
    """Raise UserError for a pooling that the twins do not have."""
    pool = args.get("global_pool")
    if pool not in (None, *_POOLS):
        raise UserError(
            f"{hints.where}: its global_pool is {pool!r:.40}; known are {', '.join(_POOLS)}"
        )
    if pool == "token" and "fc_norm.weight" in arrays:
        raise UserError(
            f"{hints.where}: it has a norm after the pooling (fc_norm) of its class token; the "
            "twins have that for the mean alone"
        )


def _said_by_arguments(
    architecture: Architecture,
    found: dict[str, Any],
    names: Names,
    args: Mapping[str, Any],
    hints: Hints,
) -> None:
    """What `create_model` was given instead of the name's own."""
    act, pool, usual = args.get("act_layer"), args.get("global_pool"), architecture.cfg
    if act is not None:
        if not isinstance(act, str) or act not in _ACTIVATIONS:
            raise UserError(
                f"{hints.where}: its activation is {act!r:.80}; known are {', '.join(_ACTIVATIONS)}"
            )
        found["activation"], found["gelu"] = _ACTIVATIONS[act]
    if "attn_pool.latent" in names:
        found["pool"] = "map"
        if usual.pool != "map" and (architecture.spelling or usual.rope != "none"):
            raise UserError(
                f"{hints.where}: {architecture.name} has no attention pooling of its own, and of "
                "which tokens timm's Eva would take it is not known here"
            )
    elif pool in _POOLS and pool != "map":
        found["pool"] = _POOLS[pool]
    if found["norm_after_pool"]:
        found["pool"] = "mean"
    if found["pool"] != usual.pool or args.get("pool_include_prefix") is not None:
        found["pool_class_token"] = args.get("pool_include_prefix") is True
    prefix = found["class_token"] or found["registers"]
    if found["pool"] == "token" or not prefix:
        found["pool_class_token"] = False
    if found["pool"] != "map":
        found["map_heads"] = 0


def _image(
    names: Names,
    found: dict[str, Any],
    architecture: Architecture,
    args: Mapping[str, Any],
    pretrained: Mapping[str, Any],
    hints: Hints,
) -> dict[str, Any]:
    """Height and width, and which tokens have positions: as the rows of the positions allow it."""
    patch, prefix = found["patch_size"], found["class_token"] + found["distilled"]
    if not patch:
        raise UserError(f"{hints.where} is not a ViT of timm: missing: patch_embed.proj.weight")
    prefix += found["registers"]
    rows = _position_rows(names)
    table = names.shape("pos_embed")
    if table is not None and len(table) == 4:  # by row and column
        return _image_fields((table[1] * patch, table[2] * patch), not prefix)
    sizes = [_pair(args.get("img_size")), _pair(pretrained.get("input_size"))]
    sizes.append(architecture.cfg.image_shape)
    for size in [size for size in sizes if size is not None]:
        height, width = (side // patch * patch for side in size)
        patches = (height // patch) * (width // patch)
        if rows is None or rows in (patches, patches + prefix):
            every = rows is None or rows == patches + prefix
            return _image_fields((height, width), every)
    assert rows is not None
    every = found["prefix_positions"]
    side = side_of(rows - prefix * every) or side_of(rows - prefix * (not every))
    if side is None:
        raise UserError(
            f"{hints.where}: its positions have {rows} rows, expected a square number, with "
            f"{prefix} for the tokens before the patches' or without: say the image's size in "
            "config.json (img_size)"
        )
    return _image_fields((side * patch, side * patch), rows == side * side + prefix)


def _image_fields(size: tuple[int, int], every: bool) -> dict[str, Any]:
    height, width = size
    return dict(
        image_size=height, image_width=0 if width == height else width, prefix_positions=every
    )


def _position_rows(names: Names) -> int | None:
    """Rows of the learned positions; None where there are none."""
    shape = names.shape("pos_embed")
    if shape is None:
        return None
    return math.prod(shape[1:-1])


def _pair(said: Any) -> tuple[int, int] | None:
    """Height and width as JSON says them: a number, two, or channels and two."""
    if type(said) is int:
        said = [said, said]
    pair = said[-2:] if isinstance(said, list | tuple) else []
    if len(pair) == 2 and all(type(side) is int and side > 0 for side in pair):
        return int(pair[0]), int(pair[1])
    return None
