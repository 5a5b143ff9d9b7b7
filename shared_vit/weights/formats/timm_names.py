"""How timm's classes spell the canonical tensors: names, and in how many tensors.

`VisionTransformer` has the canonical names; `Eva`, `Beit` and `NaFlexVit` have others for some
tensors. A spelling is a set of these words:

    gamma      blocks.0.gamma_1 for blocks.0.ls1.gamma
    qv_bias    attn.q_bias and attn.v_bias for attn.qkv.bias, whose keys have none
    split_qkv  attn.{q,k,v}_proj for attn.qkv
    split_fc1  mlp.fc1_g and mlp.fc1_x for the halves of a gated mlp.fc1
    naflex     embeds.* for the tokens, their positions by row and column, and the patches' product
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import numpy as np

from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig
from shared_vit.weights.table import Piece, Table, plain

Spelling = frozenset[str]

_SIGNS = {
    "naflex": "embeds.proj.weight",
    "split_qkv": "blocks.0.attn.q_proj.weight",
    "qv_bias": "blocks.0.attn.q_bias",
    "split_fc1": "blocks.0.mlp.fc1_g.weight",
    "gamma": "blocks.0.gamma_1",
}


def spelling_of(names: Iterable[str]) -> Spelling:
    """The spelling of a file with these names."""
    known = set(names)
    return frozenset(word for word, name in _SIGNS.items() if name in known)


def names_of(spelling: Spelling, name: str) -> tuple[str, ...]:
    """timm's names of a canonical tensor, in the order of its rows."""
    if "naflex" in spelling:
        name = re.sub(r"^(cls_token|reg_token|pos_embed)$", r"embeds.\1", name)
        name = re.sub(r"^patch_embed\.", "embeds.", name)
    if "gamma" in spelling:
        name = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)
    in_block, leaf = name.startswith("blocks."), name.rpartition(".")[2]
    if in_block and ".attn.qkv." in name:
        start = name.removesuffix(f"qkv.{leaf}")
        if "split_qkv" in spelling:
            return tuple(f"{start}{part}_proj.{leaf}" for part in "qkv")
        if "qv_bias" in spelling and leaf == "bias":
            return f"{start}q_bias", f"{start}v_bias"
    if in_block and ".mlp.fc1." in name and "split_fc1" in spelling:
        start = name.removesuffix(f"fc1.{leaf}")
        return f"{start}fc1_g.{leaf}", f"{start}fc1_x.{leaf}"
    return (name,)


def timm_table(cfg: ModelConfig, spelling: Spelling, head: bool = True) -> Table:
    """How a model of timm's lies in its file; without `head`, one that has none."""
    shapes = canonical.shapes(cfg).items()
    return {
        name: _pieces(cfg, spelling, name, shape)
        for name, shape in shapes
        if head or not name.startswith("head")
    }


def _pieces(cfg: ModelConfig, spelling: Spelling, name: str, shape: tuple[int, ...]) -> list[Piece]:
    names = names_of(spelling, name)
    if name.endswith(".attn.qkv.bias") and "k" in cfg.no_bias and len(names) > 1:
        return _without_keys(names[0], names[-1], cfg.width)
    if name == "pos_embed" and "naflex" in spelling:
        return [_by_row_and_column(names[0], cfg, shape)]
    if name == "patch_embed.proj.weight" and "naflex" in spelling:
        return [_patches_as_rows(names[0], cfg)]
    rows = shape[0] // len(names)
    if len(names) == 1:
        return [plain(names[0], shape)]
    return [
        Piece(each, (rows, *shape[1:]), rows=(i * rows, (i + 1) * rows))
        for i, each in enumerate(names)
    ]


def _without_keys(queries: str, values: str, width: int) -> list[Piece]:
    """Biases of queries and of values; between them are the keys' zeros."""
    return [
        Piece(
            queries,
            (width,),
            lambda a: np.concatenate([a, np.zeros_like(a)]),
            lambda a: a[:width],
            rows=(0, 2 * width),
        ),
        Piece(values, (width,), rows=(2 * width, 3 * width)),
    ]


def _by_row_and_column(name: str, cfg: ModelConfig, shape: tuple[int, ...]) -> Piece:
    grid = (1, *cfg.grid, cfg.width)
    return Piece(name, grid, lambda a: a.reshape(shape), lambda a: a.reshape(grid))


def _patches_as_rows(name: str, cfg: ModelConfig) -> Piece:
    """A product of patches flattened by row, column and colour."""
    side, width = cfg.patch_size, cfg.width
    return Piece(
        name,
        (width, side * side * 3),
        lambda a: a.reshape(width, side, side, 3).transpose(0, 3, 1, 2),
        lambda a: a.transpose(0, 2, 3, 1).reshape(width, -1),
    )


def patch_side(shape: tuple[int, ...]) -> int:
    """The side of a patch, from the shape of the patches' weight in either form; 0 for others."""
    if len(shape) == 4:
        return int(shape[-1])
    return math.isqrt(shape[1] // 3) if len(shape) == 2 else 0
