"""The canonical names and shapes of a ViT's arrays: timm's names for `vit_base_patch16_224`, torch's layouts."""

from collections.abc import Iterable, Mapping

import numpy as np

from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig


def shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """`{canonical name: shape}` of every array of the model, in the order of the forward pass."""
    d, m, p = cfg.width, cfg.mlp_dim, cfg.patch_size
    out: dict[str, tuple[int, ...]] = {}
    if cfg.class_token:
        out["cls_token"] = (1, 1, d)
    out["pos_embed"] = (1, cfg.num_tokens, d)
    out["patch_embed.proj.weight"] = (d, 3, p, p)
    out["patch_embed.proj.bias"] = (d,)
    for i in range(cfg.depth):
        block = {
            "norm1": (d,), "attn.qkv": (3 * d, d), "attn.proj": (d, d),
            "norm2": (d,), "mlp.fc1": (m, d), "mlp.fc2": (d, m),
        }  # fmt: skip
        for name, shape in block.items():
            out[f"blocks.{i}.{name}.weight"] = shape
            out[f"blocks.{i}.{name}.bias"] = shape[:1]
    out[f"{cfg.norm_name}.weight"] = out[f"{cfg.norm_name}.bias"] = (d,)
    if cfg.pre_logits:
        out["pre_logits.weight"] = (cfg.pre_logits, d)
        out["pre_logits.bias"] = (cfg.pre_logits,)
    out["head.weight"] = (cfg.num_classes, cfg.pre_logits or d)
    out["head.bias"] = (cfg.num_classes,)
    return out


def trained(cfg: ModelConfig, names: Iterable[str]) -> list[str]:
    """Those of `names` that the optimizer moves: all but fixed sin-cos positions."""
    return [n for n in names if n != "pos_embed" or cfg.pos_embed == "learned"]


def is_decayed(name: str) -> bool:
    """Whether weight decay applies: to the weights of products, not to biases, norms, `cls_token` and `pos_embed`."""
    return name.endswith(".weight") and "norm" not in name


def num_params(cfg: ModelConfig) -> int:
    """Number of parameters, fixed positions not counted."""
    table = shapes(cfg)
    return sum(int(np.prod(table[n])) for n in trained(cfg, table))


def check(cfg: ModelConfig, arrays: Mapping[str, np.ndarray], where: str = "these weights") -> None:
    """Raise UserError, naming the tensors, unless `arrays` has exactly the names and shapes that `cfg` needs."""
    expected = shapes(cfg)
    wrong = [f"{n} has shape {tuple(arrays[n].shape)}, expected {s}" for n, s in expected.items()
             if n in arrays and tuple(arrays[n].shape) != s]  # fmt: skip
    missing = [n for n in expected if n not in arrays]
    extra = [n for n in arrays if n not in expected]
    if not (wrong or missing or extra):
        return
    parts = [
        _some(label, items)
        for label, items in (("", wrong), ("missing: ", missing), ("unknown: ", extra))
        if items
    ]
    raise UserError(
        f"{where} do not fit the model (width {cfg.width}, depth {cfg.depth}, patch {cfg.patch_size}, image "
        f"{cfg.image_size} px, {cfg.num_classes} classes): {'; '.join(parts)}"
    )


def _some(label: str, items: list[str], most: int = 4) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return label + ", ".join(items[:most]) + more
