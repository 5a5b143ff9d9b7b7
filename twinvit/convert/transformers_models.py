"""transformers' plain ViTs, built for their own folders or files, by the twins' names."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shared_vit.spec.config import ModelConfig
from shared_vit.weights.formats.huggingface import layouts, writing
from shared_vit.weights.formats.huggingface.images import resizes_in_floats, vision_config
from shared_vit.weights.formats.huggingface.kinds import BEIT, CLIP, MODEL_TYPES, VIT, Kind
from shared_vit.weights.formats.huggingface.names import without_others

_FLAX = "flax_model.msgpack"
# Classes of model types that are another's layout: what is replaced in the names of its classes.
_STEMS = {
    "vit_mae": ("ViT", "ViTMAE"),
    "vit_msn": ("ViT", "ViTMSN"),
    "data2vec-vision": ("Beit", "Data2VecVision"),
    "siglip2": ("Siglip", "Siglip2"),
    "siglip2_vision_model": ("Siglip", "Siglip2"),
}
_WITH_POOLER = ("ViTModel", "DeiTModel")  # of a dense layer, which is not used


class Transformers(nn.Module):
    """A model of transformers whose output for images [B, 3, H, W] is the twins': logits or
    features. `blocks` are its blocks, `norm` its last norm; `of_token` says whether it is run of
    the class token alone."""

    def __init__(self, model: nn.Module, kind: Kind, cfg: ModelConfig):
        super().__init__()
        self.model, self.kind, self.cfg = model, kind, cfg
        modules = {
            name: module
            for name, module in model.named_modules()
            if not name.startswith(("text_model.", "decoder."))
        }
        lists = (m for m in modules.values() if isinstance(m, nn.ModuleList))
        self.blocks = next(list(m) for m in lists if len(m) == cfg.depth)
        self.norm = _norm(modules, kind, cfg) if cfg.final_norm else None
        self.of_token = kind is CLIP

    def forward(self, images: Tensor) -> Tensor:
        return _output(self.model(**self._inputs(images)), self.kind, self.cfg)

    def _inputs(self, images: Tensor) -> dict[str, Tensor]:
        name = type(self.model).__name__
        if name.startswith("ViTMAE"):
            order = torch.arange(self.cfg.num_patches, dtype=images.dtype)
            return {"pixel_values": images, "noise": order.repeat(len(images), 1)}
        if name.startswith("Siglip2"):
            return _patches(images, self.cfg)
        return {"pixel_values": images}


def load(path: Path, cfg: ModelConfig, state: Callable[[], dict[str, Tensor]]) -> Transformers:
    """The class for the file with its weights; `state` reads a file that transformers does not.

    Raises RuntimeError where arrays are missing or unknown, but for those that are left out.
    """
    import transformers

    is_folder = (path / "config.json").is_file()
    said = json.loads((path / "config.json").read_text()) if is_folder else {}
    kind, name = _class(said, cfg)
    options: dict[str, Any] = {"output_loading_info": True}
    if name in _WITH_POOLER or (kind is BEIT and not cfg.num_classes and _no_pooler(cfg)):
        options["add_pooling_layer"] = False
    cls = getattr(transformers, name)
    if name == "ViTMAEModel":
        options["mask_ratio"] = 0.0
    if is_folder and not (path / _FLAX).is_file():
        model, report = cls.from_pretrained(path, **options)
    else:  # version 5 reads no files of Flax
        config = cls.config_class.from_pretrained(path) if is_folder else _config(kind, cfg)
        model, report = cls.from_pretrained(None, config=config, state_dict=state(), **options)
    unknown = {name: np.zeros(1) for name in report.pop("unexpected_keys", ())}
    # What is left out of a file that is read is not missed, either.
    known = {n: np.broadcast_to(0.0, tuple(t.shape)) for n, t in model.state_dict().items()}
    used = without_others(unknown | known)[0]
    missing = set(report.pop("missing_keys", ())) & set(used)
    faults = {key: names for key, names in report.items() if names}
    if faults or missing or set(unknown) & set(used):
        raise RuntimeError(
            f"transformers did not load all of {path}: missing {sorted(missing)}, unknown "
            f"{sorted(set(unknown) & set(used))}, {faults}"
        )
    return Transformers(model, kind, cfg)


def in_whole_levels(path: Path, run: Callable[[Any], np.ndarray], image: Any) -> np.ndarray:
    """`run(image)`, rounded to whole levels of 255 where the folder's processor resizes in floats:
    the half level between is known, and no other mean or std."""
    values = run(image)
    file = path / "preprocessor_config.json"
    processor = json.loads(file.read_text()) if file.is_file() else {}
    if not resizes_in_floats(processor):
        return values
    mean, std = (np.asarray(processor[key])[:, None, None] for key in ("image_mean", "image_std"))
    return (np.round((values * std + mean) * 255) / 255 - mean) / std


def _class(said: Mapping[str, Any], cfg: ModelConfig) -> tuple[Kind, str]:
    """The kind and the name of the class, by config.json where there is one."""
    outer = vision_config(said).get("model_type", said.get("model_type"))
    kind = MODEL_TYPES.get(str(outer)) or writing.kind_for(cfg) or VIT
    name = writing.class_of(kind, cfg)
    old, new = _STEMS.get(str(outer), ("", ""))
    return kind, name.replace(old, new, 1)


def _config(kind: Kind, cfg: ModelConfig) -> Any:
    """The configuration for a file without one."""
    import transformers

    args = writing.config_args(cfg)
    labels = {"num_labels": cfg.num_classes} if cfg.num_classes else {}
    if layouts.is_projection(kind, cfg):
        labels = {}
    name = writing.config_class(kind)
    if writing.is_nested(kind, cfg):
        outer = getattr(transformers, name.replace("Vision", ""))
        return outer(vision_config=args, **labels)
    return getattr(transformers, name)(**args, **labels)


def _no_pooler(cfg: ModelConfig) -> bool:
    return cfg.pool == "mean" and not cfg.norm_after_pool


def _norm(modules: Mapping[str, nn.Module], kind: Kind, cfg: ModelConfig) -> nn.Module | None:
    target = kind.modules.get(cfg.norm_name)
    names = [n for n in modules if n == target or n.endswith(f".{target}")]
    return modules[min(names, key=len)] if names else None


def _output(out: Any, kind: Kind, cfg: ModelConfig) -> Tensor:
    """What of a class's outputs is the twins'."""
    if cfg.num_classes:
        return out.image_embeds if layouts.is_projection(kind, cfg) else out.logits
    tokens, pooled = out.last_hidden_state, out.pooler_output if "pooler_output" in out else None
    if kind is CLIP or cfg.pool == "map" or (kind is BEIT and pooled is not None):
        return pooled
    return tokens[:, 0] if cfg.pool == "token" else tokens[:, cfg.num_prefix :].mean(dim=1)


def _patches(images: Tensor, cfg: ModelConfig) -> dict[str, Tensor]:
    """Images as Siglip2 takes them: patches [B, patches, patch * patch * 3] by row, column, colour,
    which of them are there, and the grid."""
    (rows, columns), p, b = cfg.grid, cfg.patch_size, len(images)
    x = images.reshape(b, 3, rows, p, columns, p).permute(0, 2, 4, 3, 5, 1)
    return {
        "pixel_values": x.reshape(b, rows * columns, p * p * 3),
        "pixel_attention_mask": torch.ones(b, rows * columns, dtype=torch.int64),
        "spatial_shapes": torch.tensor([[rows, columns]] * b),
    }
