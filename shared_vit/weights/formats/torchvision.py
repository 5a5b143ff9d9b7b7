"""torchvision's `VisionTransformer`: names of versions 1 and 2 of its checkpoints."""

import re

from shared_vit.spec.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig
from shared_vit.weights.formats.base import (
    Format,
    Hints,
    Notes,
    Reading,
    has_head,
    heads,
    image_size,
    model,
    position_rows,
    sizes,
    split_name,
    strip_prefixes,
    torch_table,
)
from shared_vit.weights.formats.holds import ANY
from shared_vit.weights.lazy import Arrays
from shared_vit.weights.table import Table, count_layers

_BLOCK = "encoder.layers.encoder_layer_{}."
_MODULES = {
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "patch_embed.proj": "conv_proj",
    "norm1": "ln_1",
    "attn.proj": "self_attention.out_proj",
    "norm2": "ln_2",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.3",
    "norm": "encoder.ln",
    "pre_logits": "heads.pre_logits",
    "head": "heads.head",
}


def _name(canonical_name: str) -> str:
    layer, module, leaf = split_name(canonical_name)
    if module == "attn.qkv":
        return f"{_BLOCK.format(layer)}self_attention.in_proj_{leaf}"
    target = _MODULES[module] + (f".{leaf}" if leaf else "")
    return _BLOCK.format(layer) + target if layer else target


class Torchvision(Format):
    name = "torchvision"
    about = "a ViT of torchvision"
    suffixes = (".pth", ".safetensors")
    holds = {"pre_logits": ANY}
    foreign = {"conv_proj.conv_bn_relu": "a convolutional stem"}

    def found(self, names: Arrays) -> bool:
        return "encoder.layers.encoder_layer_0.self_attention.in_proj_weight" in names

    def strip(self, arrays: Arrays) -> Arrays:
        arrays = strip_prefixes(arrays, ("module.", "_orig_mod."))
        return {
            re.sub(r"\.mlp\.linear_([12])\.", lambda m: f".mlp.{'03'[int(m[1]) - 1]}.", name): array
            for name, array in arrays.items()
        }

    def read(self, arrays: Arrays, hints: Hints) -> Reading:
        notes = Notes()
        depth = count_layers(r"encoder\.layers\.encoder_layer_(\d+)\.", arrays)
        values = sizes(arrays, _name, depth, -1, self, hints)
        name = "encoder.pos_embedding"
        rows = position_rows(arrays, name, self, hints) - 1
        cfg = model(
            hints,
            **values,
            num_heads=heads(values, None, hints, notes),
            image_size=image_size(rows, values["patch_size"], name, hints),
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            eval_resize=256 / 224,
            interpolation="bilinear",
        )
        notes.assumed.append(
            "erf GELU, eps 1e-6, ImageNet's mean and std, bilinear resize to 256/224 "
            "(torchvision's defaults)"
        )
        return Reading(cfg, torch_table(cfg, _name, has_head(arrays, _name)), notes)

    def table(self, cfg: ModelConfig) -> Table:
        return torch_table(cfg, _name)

    def notes(self, cfg: ModelConfig, folder: bool = False) -> list[str]:
        out = []
        if cfg.gelu == "tanh":
            out.append(
                "torchvision computes erf GELU, this model tanh; after building it: for m in "
                "model.modules(): if isinstance(m, torch.nn.GELU): m.approximate = 'tanh'"
            )
        if cfg.norm_eps != 1e-6:
            out.append(
                f"torchvision's LayerNorm eps is 1e-6, this model's {cfg.norm_eps:g}: "
                f"VisionTransformer(..., {_norm_layer(cfg)})"
            )
        return out

    def how_to_load(self, cfg: ModelConfig) -> str:
        text = ", ".join(f"{key}={value}" for key, value in model_args(cfg).items())
        if cfg.norm_eps != 1e-6:
            text += f", {_norm_layer(cfg)}"
        return f"torchvision.models.VisionTransformer({text}).load_state_dict(weights, strict=True)"

    def how_to_preprocess(self, cfg: ModelConfig) -> str:
        short, size = cfg.short_side, cfg.image_size
        side = short if cfg.eval_resize else (size, size)
        return (
            f"torchvision.transforms.Compose([Resize({side}, InterpolationMode."
            f"{cfg.interpolation.upper()}), CenterCrop({size}), ToTensor(), "
            f"Normalize({cfg.mean}, {cfg.std})])"
        )


def model_args(cfg: ModelConfig) -> dict[str, int]:
    """Arguments of `VisionTransformer` that make it this model, but for GELU and eps."""
    args = dict(
        image_size=cfg.image_size,
        patch_size=cfg.patch_size,
        num_layers=cfg.depth,
        num_heads=cfg.num_heads,
        hidden_dim=cfg.width,
        mlp_dim=cfg.mlp_dim,
        num_classes=cfg.num_classes,
    )
    if cfg.pre_logits:
        args["representation_size"] = cfg.pre_logits
    return args


def _norm_layer(cfg: ModelConfig) -> str:
    return f"norm_layer=functools.partial(torch.nn.LayerNorm, eps={cfg.norm_eps:g})"
