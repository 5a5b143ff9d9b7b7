"""timm's names of plain ViTs, as data that `benchmarks/timm_table.py` read off timm's models."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from shared_vit.spec.config import ModelConfig
from shared_vit.weights.formats.timm_names import Spelling, spelling_of, timm_table

# Fields that no name implies: sizes, which `create_model` takes as arguments, and what is not of
# the function.
SIZES = (
    "image_size", "image_width", "patch_size", "width", "depth", "num_heads", "mlp_dim",
    "num_classes",
)  # fmt: skip
_BESIDE = (
    "mean", "std", "eval_resize", "interpolation", "exif", "dropout", "drop_path",
    "layer_scale_init",
)  # fmt: skip


# Tensors whose shapes depend on the classes and on the image's size.
_BY_SIZE = ("head.", "head_dist.", "pos_embed", "embeds.pos_embed")


@dataclass(frozen=True)
class Architecture:
    """One name of `timm.create_model`.

    cfg: its model. spelling: of its tensors' names. mlp_factor: `mlp_ratio` times the width over
    the MLP's width. pretrained: how its first published weights were shown an image.
    """

    name: str
    cfg: ModelConfig
    spelling: Spelling
    mlp_factor: float
    pretrained: Mapping[str, Any]


@cache
def architectures() -> dict[str, Architecture]:
    """`{name: Architecture}`, those with published weights first."""
    text = resources.files(__package__).joinpath("timm_architectures.json").read_text()
    return {name: _architecture(name, row) for name, row in json.loads(text).items()}


def _architecture(name: str, row: dict[str, Any]) -> Architecture:
    spelling, factor = row.pop("spelling"), row.pop("mlp_factor")
    pretrained = row.pop("pretrained")
    row["no_bias"] = tuple(row.get("no_bias", ()))
    cfg = ModelConfig(**row)
    return Architecture(name, cfg, frozenset(spelling), factor, pretrained)


def named(text: str) -> Architecture | None:
    """The architecture of a name, with a tag behind it or without, or of a file with that name."""
    found = re.split(r"[./\\]", text)
    return next((architectures()[part] for part in found if part in architectures()), None)


def function_of(cfg: ModelConfig) -> tuple[Any, ...]:
    """Everything that decides a model's function but its sizes, as a value to compare."""
    return tuple(_function(cfg).values())


def differences(cfg: ModelConfig, other: ModelConfig) -> list[str]:
    """The fields by which two models, whatever their sizes, compute different functions."""
    mine, theirs = _function(cfg), _function(other)
    return [name for name, value in mine.items() if value != theirs.get(name)]


def _function(cfg: ModelConfig) -> dict[str, Any]:
    skipped = (*SIZES, *_BESIDE)
    plain = dataclasses.replace(cfg, pos_embed="learned") if cfg.pos_embed == "sincos2d" else cfg
    values = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
    values["map_mlp"] = _pooling_ratio(cfg)
    return {name: value for name, value in values.items() if name not in skipped}


def _pooling_ratio(cfg: ModelConfig) -> str | int:
    """How timm derives the width of attention pooling's MLP: four times the model's, or that of
    its blocks."""
    if cfg.pool != "map":
        return 0
    if cfg.pooling_mlp == 4 * cfg.width:
        return "four times"
    return "of the blocks" if cfg.pooling_mlp == cfg.mlp_dim else cfg.map_mlp


@cache
def _functions() -> dict[tuple[Any, ...], list[Architecture]]:
    found: dict[tuple[Any, ...], list[Architecture]] = {}
    for each in architectures().values():
        found.setdefault(function_of(each.cfg), []).append(each)
    return found


def nearest_to(cfg: ModelConfig) -> Architecture | None:
    """The architecture of the model's function with the most sizes in common; None without one."""
    those = _functions().get(function_of(cfg), [])

    def in_common(each: Architecture) -> int:
        return sum(getattr(each.cfg, name) == getattr(cfg, name) for name in SIZES)

    fitting = [each for each in those if _takes_sizes(each, cfg)]
    return max(fitting, key=in_common, default=None)


def _takes_sizes(each: Architecture, cfg: ModelConfig) -> bool:
    """Whether arguments can give the architecture the model's sizes."""
    if "naflex" in each.spelling and each.cfg.grid != cfg.grid:
        return False  # its positions have the grid of its name
    if each.cfg.rope == "centred" and cfg.gated and cfg.mlp_dim != each.cfg.mlp_dim:
        return cfg.mlp_dim % (64 if "7b" in each.name else 8) == 0  # timm rounds it up
    both = each.cfg.mlp_dim == each.cfg.pooling_mlp == 4 * each.cfg.width
    return cfg.pool != "map" or not both or cfg.mlp_dim == 4 * cfg.width


def arguments(each: Architecture, cfg: ModelConfig) -> dict[str, Any]:
    """Arguments of `create_model` that give the architecture the model's sizes."""
    of_timm = {
        "patch_size": "patch_size",
        "embed_dim": "width",
        "depth": "depth",
        "num_heads": "num_heads",
        "num_classes": "num_classes",
    }
    found: dict[str, Any] = {}
    if cfg.image_shape != each.cfg.image_shape and "naflex" not in each.spelling:
        height, width = cfg.image_shape
        found["img_size"] = height if height == width else [height, width]
    for key, name in of_timm.items():
        if getattr(cfg, name) != getattr(each.cfg, name):
            found[key] = getattr(cfg, name)
    if (cfg.width, cfg.mlp_dim) != (each.cfg.width, each.cfg.mlp_dim):
        found["mlp_ratio"] = (cfg.mlp_dim * each.mlp_factor + 0.5) / cfg.width  # is rounded down
    if "sapiens2" in each.name and cfg.depth != each.cfg.depth:
        found["num_kv_heads"] = [cfg.num_heads] * cfg.depth
    return found


def candidates(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Architecture]:
    """Architectures of a file without a name, by its tensors' names and shapes."""
    body = {name: shape for name, shape in shapes.items() if not name.startswith(_BY_SIZE)}
    spelling = spelling_of(body)
    for each in architectures().values():
        # DeiT-III's authors call the scales as timm's Eva does.
        if each.spelling ^ spelling <= {"gamma"} and _has_shapes(each, body, spelling):
            yield each


def _has_shapes(
    each: Architecture, body: Mapping[str, tuple[int, ...]], spelling: Spelling
) -> bool:
    expected = {
        piece.name: piece.shape
        for pieces in timm_table(each.cfg, spelling, head=False).values()
        for piece in pieces
        if not piece.name.startswith(_BY_SIZE)
    }
    return expected == dict(body)
