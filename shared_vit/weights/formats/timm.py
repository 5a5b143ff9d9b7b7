"""timm's `VisionTransformer` (1.0): the canonical names themselves; function and sizes in `create_model`'s arguments."""

import re
from collections.abc import Mapping

import numpy as np

from shared_vit.errors import UserError
from shared_vit.spec.config import SIZES, ModelConfig
from shared_vit.weights import table as layout
from shared_vit.weights.formats import base as formats
from shared_vit.weights.formats.base import Format, Hints, Reading
from shared_vit.weights.lazy import Arrays

_SIZE_NAMES = {"ti": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge"}
_PLAIN = re.compile(r"vit_(tiny|small|base|large|huge|giant|gigantic)_patch\d+_\d+$")
_GELU = {None: "erf", "gelu": "erf", "gelu_tanh": "tanh"}
_STOCK = {
    f"vit_{long}_patch{p}_224": (p, SIZES[short])
    for short, long in _SIZE_NAMES.items()
    for p in {"ti": (16,), "s": (16, 32), "b": (8, 16, 32), "l": (14, 16, 32), "h": (14,)}[short]
}


class Timm(Format):
    name = "timm"
    about = "a ViT of timm"
    suffixes = (".safetensors", ".pth", "")
    foreign = {
        "reg_token": "register tokens",
        "register_tokens": "register tokens",
        "dist_token": "a distillation token",
        "head_dist": "a distillation head",
        "attn_pool": "an attention-pooling (MAP) head",
        "norm_pre": "a norm before the blocks",
        ".ls1.": "layer scale",
        ".ls2.": "layer scale",
        "gamma_1": "layer scale",
        ".q_norm": "norms of queries and keys",
        "rel_pos_bias": "relative positions",
        "relative_position": "relative positions",
        "patch_embed.backbone": "a convolutional stem",
        "w12": "SwiGLU",
        "fc1_g": "SwiGLU",
    }

    def found(self, names: Arrays) -> bool:
        return "blocks.0.attn.qkv.weight" in names

    def strip(self, arrays: Arrays) -> Arrays:
        arrays = formats.strip_prefixes(arrays, ("module.", "_orig_mod.", "model."))
        return {
            re.sub(r"^pre_logits\.fc\.", "pre_logits.", name): a for name, a in arrays.items()
        }  # timm before 0.6

    def read(self, arrays: Arrays, hints: Hints) -> Reading:
        config = hints.config or {}
        args = {**config, **formats.section(config, "model_args", hints.where)}
        notes: tuple[list[str], list[str]] = ([], [])
        after = "fc_norm.weight" in arrays
        depth = layout.count_layers(r"blocks\.(\d+)\.", arrays)
        values = formats.sizes(arrays, str, depth, -1, "fc_norm" if after else "norm", self, hints)
        class_token = "cls_token" in arrays
        pool = "mean" if after or not class_token or args.get("global_pool") == "avg" else "token"
        rows = _rows(arrays, hints)
        # `no_embed_class`: the class token has no position. Ours has one, of zeros.
        bare = class_token and layout.side_of(rows - 1) is None
        said = formats.number(args, "num_heads", int, None, hints.where)
        activation = args.get("act_layer")
        if not isinstance(activation, str | None) or activation not in _GELU:
            raise UserError(
                f"{hints.where}: its activation is {activation!r:.80}; known are GELU, erf and tanh"
            )
        architecture = str(config.get("architecture", ""))[:80]
        if (
            architecture
            and "act_layer" not in args
            and not _PLAIN.match(architecture.partition(".")[0])
        ):
            notes[1].append(
                f"timm's {architecture} may have defaults of its own; its GELU is taken as erf"
            )
        mean, std = formats.colours(
            formats.section(config, "pretrained_cfg", hints.where),
            "mean",
            "std",
            formats.HALF,
            hints.where,
        )
        cfg = formats.model(
            hints,
            **values,
            num_heads=formats.heads(values, said, hints, notes),
            image_size=formats.image_size(
                rows - (class_token and not bare), values["patch_size"], "pos_embed", hints
            ),
            class_token=class_token,
            pool=pool,
            pool_class_token=pool == "mean"
            and class_token
            and args.get("pool_include_prefix") is True,
            norm_after_pool=after,
            gelu=_GELU[activation],
            mean=mean,
            std=std,
        )
        if not config:
            notes[0].append("erf GELU, eps 1e-6, mean and std 0.5 (timm's defaults)")
        table = formats.torch_table(cfg, str, formats.has_head(arrays, str))
        if bare:
            table["pos_embed"] = [layout.without_class_row("pos_embed", cfg)]
        return Reading(cfg, table, *notes)

    def table(self, cfg: ModelConfig) -> layout.Table:
        return formats.torch_table(cfg, str)

    def refuse(self, cfg: ModelConfig) -> None:
        if cfg.pre_logits:
            raise UserError(
                "timm's ViT has no pre-logits layer: with --num_classes=N this layer and the head are left out and a head "
                "of zeros takes their place; torchvision, google and big_vision keep both"
            )

    def notes(self, cfg: ModelConfig, folder: bool = False) -> list[str]:
        function = ("act_layer", "global_pool", "fc_norm", "class_token", "pool_include_prefix")
        extra = {key: value for key, value in model_args(cfg).items() if key in function}
        out = []
        if extra and not folder:
            text = ", ".join(f"{k}={v!r}" for k, v in extra.items())
            out.append(
                f"timm computes another function unless told: timm.create_model(..., {text})"
            )
        if cfg.norm_eps != 1e-6:
            out.append(
                f"timm's LayerNorm eps is 1e-6, this model's {cfg.norm_eps:g}: timm.create_model(..., "
                f"norm_layer=functools.partial(timm.layers.LayerNorm, eps={cfg.norm_eps:g}))"
            )
        return out

    def extras(self, cfg: ModelConfig, dtype: np.dtype) -> dict[str, object]:
        size = [3, cfg.image_size, cfg.image_size]
        return {
            "config.json": {
                "architecture": architecture_of(cfg),
                "num_classes": cfg.num_classes,
                "num_features": cfg.width,
                "global_pool": model_args(cfg).get("global_pool", "token"),
                "model_args": model_args(cfg),
                "pretrained_cfg": {
                    "input_size": size,
                    "fixed_input_size": True,
                    "interpolation": "bicubic",
                    "crop_pct": 0.9,
                    "mean": list(cfg.mean),
                    "std": list(cfg.std),
                    "num_classes": cfg.num_classes,
                    "first_conv": "patch_embed.proj",
                    "classifier": "head",
                },
            }
        }

    def how_to_load(self, cfg: ModelConfig) -> str:
        args = "".join(f", {k}={v!r}" for k, v in model_args(cfg).items())
        if cfg.norm_eps != 1e-6:
            args += f", norm_layer=functools.partial(timm.layers.LayerNorm, eps={cfg.norm_eps:g})"
        return f'timm.create_model("{architecture_of(cfg)}"{args}).load_state_dict(weights, strict=True)'


def architecture_of(cfg: ModelConfig) -> str:
    """timm's name for these sizes, else that of B/16, all of whose sizes can be changed by arguments."""
    size = (cfg.patch_size, (cfg.width, cfg.depth, cfg.num_heads, cfg.mlp_dim))
    return next((name for name, stock in _STOCK.items() if stock == size), "vit_base_patch16_224")


def model_args(cfg: ModelConfig) -> dict[str, object]:
    """`create_model`'s arguments that make `architecture_of(cfg)` this model (all but LayerNorm's eps)."""
    patch, (width, depth, heads, mlp_dim) = _STOCK[architecture_of(cfg)]
    args: dict[str, object] = {}
    if cfg.image_size != 224:
        args["img_size"] = cfg.image_size
    for key, value, usual in (
        ("patch_size", cfg.patch_size, patch),
        ("embed_dim", cfg.width, width),
        ("depth", cfg.depth, depth),
        ("num_heads", cfg.num_heads, heads),
    ):
        if value != usual:
            args[key] = value
    if cfg.mlp_dim != 4 * cfg.width:
        ratio = cfg.mlp_dim / cfg.width
        args["mlp_ratio"] = (
            ratio if int(cfg.width * ratio) == cfg.mlp_dim else (cfg.mlp_dim + 0.5) / cfg.width
        )
    if cfg.num_classes != 1000:
        args["num_classes"] = cfg.num_classes
    if cfg.pool == "mean":
        args |= {"global_pool": "avg", "fc_norm": cfg.norm_after_pool}
    if not cfg.class_token:
        args["class_token"] = False
    if cfg.pool_class_token:
        args["pool_include_prefix"] = True
    if cfg.gelu == "tanh":
        args["act_layer"] = "gelu_tanh"
    return args


def _rows(arrays: Mapping, hints: Hints) -> int:
    if "pos_embed" not in arrays or len(arrays["pos_embed"].shape) != 3:
        found = arrays["pos_embed"].shape if "pos_embed" in arrays else "nothing"
        raise UserError(
            f"{hints.where} is not a ViT of timm: pos_embed [1, tokens, width] expected, found {found}"
        )
    return int(arrays["pos_embed"].shape[1])
