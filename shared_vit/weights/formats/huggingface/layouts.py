"""The tables of transformers' arrays: where each canonical tensor lies in a file of a kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection

import numpy as np

from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig
from shared_vit.weights.formats.base import split_name
from shared_vit.weights.formats.huggingface.kinds import CLIP, REGISTERS, Kind
from shared_vit.weights.formats.huggingface.modules import SHARED_TABLE
from shared_vit.weights.table import Piece, Table, plain

Own = Callable[[str], str]  # a name in one spelling -> the file's own


def targets(kind: Kind, name: str, cfg_gated: bool, projection: bool) -> list[str]:
    """The names, in one spelling, of the arrays that hold a canonical tensor; empty where the kind
    has none."""
    layer, module, leaf = split_name(name)
    full = f"{module}.{leaf}" if leaf else module
    prefix = kind.layer.format(layer) if layer else ""
    if cfg_gated and module.startswith("mlp."):
        module = module.replace("mlp.", "gated.", 1)
    if projection and module == "head":
        module = "projection"
    if full in kind.modules:
        found, leaf = kind.modules[full], ""
    elif module in kind.modules:
        found = kind.modules[module]
        leaf = "" if isinstance(found, str) and found.endswith(".weight") else leaf
    else:
        return []
    names = [found] if isinstance(found, str) else list(found)
    return [f"{prefix}{each}.{leaf}" if leaf else f"{prefix}{each}" for each in names]


def is_projection(kind: Kind, cfg: ModelConfig) -> bool:
    """Whether the head is CLIP's projection, which has no bias."""
    return kind is CLIP and cfg.pool == "token"


def zero(kind: Kind, cfg: ModelConfig) -> tuple[str, ...]:
    """Canonical tensors that the kind has no place for."""
    return ("head.bias",) if is_projection(kind, cfg) else ()


def table(
    kind: Kind,
    cfg: ModelConfig,
    own: Own,
    has: Collection[str] | None = None,
    flat: bool = False,
) -> Table:
    """The table of a model in a file of the kind.

    has: names of the file in one spelling; None of a file to be written. What of the model it has
    no place for is not in the table. flat: whether the patch weight is Siglip2's.
    """
    found: Table = {}
    for name, shape in canonical.shapes(cfg).items():
        if name in zero(kind, cfg):
            continue
        names = targets(kind, name, cfg.gated, is_projection(kind, cfg))
        if has is not None:
            names = as_in_file(name, names, has)
            if name.startswith("head.") and not any(each in has for each in names):
                continue  # the file has no head
        found[name] = [_owned(piece, own) for piece in _pieces(kind, cfg, name, names, shape, flat)]
    return found


def _owned(piece: Piece, own: Own) -> Piece:
    return dataclasses.replace(piece, name=own(piece.name))


def as_in_file(name: str, names: list[str], has: Collection[str]) -> list[str]:
    """The names of a tensor, or its alternative names, where a file has those."""
    if name in ("head.weight", "head.bias") and names:
        teacher = f"cls_{names[0]}"
        return [teacher] if teacher in has else names
    if name.endswith("relative_position_bias_table") and SHARED_TABLE in has:
        return [SHARED_TABLE]
    for old, new in (("weights_in", ("gate_proj", "up_proj")), ("weights_out", ("down_proj",))):
        parts = [names[0].replace(old, part) for part in new] if names else []
        if names and old in names[0] and parts[0] in has:
            return parts
    return names


def _pieces(
    kind: Kind,
    cfg: ModelConfig,
    name: str,
    names: list[str],
    shape: tuple[int, ...],
    flat: bool = False,
) -> list[Piece]:
    width = cfg.width
    if name.startswith("head") and cfg.distilled:
        names = [_of_teacher(name)]
    if name == "patch_embed.proj.weight" and flat:
        return [_conv_of_patches(names[0], cfg)]
    if name.endswith("attn.qkv.bias") and "k" in cfg.no_bias:
        return _without_key(names, width)
    if name == "cls_token" and kind is CLIP:
        return [_reshaped(names[0], (width,), shape)]
    if name == "pos_embed" and names[0].endswith(".weight"):
        return [_reshaped(names[0], shape[1:], shape)]
    if name == "pos_embed" and kind is REGISTERS:
        return [_without_registers(names[0], cfg)]
    if name.startswith(("attn_pool.q.", "attn_pool.kv.")):
        span = (0, width) if ".q." in name else (width, 3 * width)
        return [dataclasses.replace(plain(names[0], shape), of=span)]
    if len(names) == 1:
        return [plain(names[0], shape)]
    part = shape[0] // len(names)
    spans = [(i * part, (i + 1) * part) for i in range(len(names))]
    return [
        dataclasses.replace(plain(each, (part, *shape[1:])), rows=span)
        for each, span in zip(names, spans)
    ]


def _of_teacher(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    return f"{'distillation' if module == 'head_dist' else 'cls'}_classifier.{leaf}"


def _reshaped(name: str, theirs: tuple[int, ...], ours: tuple[int, ...]) -> Piece:
    return Piece(name, theirs, lambda a: a.reshape(ours), lambda a: a.reshape(theirs))


def _without_key(names: list[str], width: int) -> list[Piece]:
    """The biases of q and v; that of k, which does not exist, is of zeros."""
    q, _, v = names
    behind = Piece(
        v,
        (width,),
        lambda a: np.concatenate([np.zeros(width, a.dtype), a]),
        lambda a: a[width:],
        rows=(width, 3 * width),
    )
    return [dataclasses.replace(plain(q, (width,)), rows=(0, width)), behind]


def _without_registers(name: str, cfg: ModelConfig) -> Piece:
    """A row for the class token, none for registers. The model's have rows of zeros, or no prefix
    token has one."""
    width, registers, patches = cfg.width, cfg.registers, cfg.num_patches
    shape = (1, 1 + patches, width)
    if not cfg.prefix_positions:
        return Piece(
            name,
            shape,
            lambda a: a[:, 1:],
            lambda a: np.concatenate([np.zeros((1, 1, width), a.dtype), a], axis=1),
        )

    def to_canonical(a: np.ndarray) -> np.ndarray:
        rows = np.zeros((1, registers, width), a.dtype)
        return np.concatenate([a[:, :1], rows, a[:, 1:]], axis=1)

    return Piece(
        name,
        shape,
        to_canonical,
        lambda a: np.concatenate([a[:, :1], a[:, 1 + registers :]], axis=1),
    )


def _conv_of_patches(name: str, cfg: ModelConfig) -> Piece:
    """Siglip2's patch weight, [width, patch * patch * 3] in the order row, column, colour."""
    width, p = cfg.width, cfg.patch_size
    return Piece(
        name,
        (width, p * p * 3),
        lambda a: a.reshape(width, p, p, 3).transpose(0, 3, 1, 2),
        lambda a: a.transpose(0, 2, 3, 1).reshape(width, -1),
    )
