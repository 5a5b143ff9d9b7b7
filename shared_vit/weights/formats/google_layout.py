"""What Google's two formats share: Flax's names and layouts, and how they are read.

Both compute tanh GELU and LayerNorm with eps 1e-6, and train on images in [-1, 1].
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig
from shared_vit.weights.formats.base import (
    Format,
    Hints,
    Notes,
    Reading,
    has_head,
    heads,
    model,
    sizes,
    split_name,
)
from shared_vit.weights.formats.holds import ANY, BOTH
from shared_vit.weights.formats.json_fields import HALF
from shared_vit.weights.lazy import Arrays, LazyArray
from shared_vit.weights.table import (
    Piece,
    Table,
    channels_last,
    count_layers,
    joined_heads,
    plain,
    split_heads,
    split_heads_bias,
    split_qkv,
    transposed,
)

# Flax numbered a block's parts in one row (the published files), then each kind by itself (Linen).
PRE_LINEN = {
    "norm1": "LayerNorm_0",
    "attn": "MultiHeadDotProductAttention_1",
    "norm2": "LayerNorm_2",
    "mlp": "MlpBlock_3",
}
LINEN = {
    "norm1": "LayerNorm_0",
    "attn": "MultiHeadDotProductAttention_0",
    "norm2": "LayerNorm_1",
    "mlp": "MlpBlock_0",
}
_OUTER = {
    "patch_embed.proj": "embedding",
    "norm": "Transformer/encoder_norm",
    "pre_logits": "pre_logits",
    "head": "head",
}
POOLING = "MAPHead_0"
_BLOCK, _STACK = "Transformer/encoderblock_{}/", "Transformer/encoderblock/"

NameOf = Callable[[str], Any]  # canonical name -> a name, or those of q, k and v


class GoogleLayout(Format):
    """Google's two formats differ in names and in where the position embedding is added."""

    suffixes = (".npz",)
    position: str  # name of the position embedding
    block: dict[str, str]  # names of a block's parts, as written
    eval_resize: float  # of the code's own evaluation
    holds = {
        "class_token": BOTH,
        # tok or gap
        "pool": lambda cfg: cfg.pool == "token" or (cfg.pool == "mean" and not cfg.class_token),
        "num_classes": ANY,
        "pre_logits": ANY,
    }
    foreign = {
        "conv_root": "a convolutional stem",
        "mlp_head": "a head with a hidden layer",
    }

    def positions(
        self, arrays: Arrays, patch: int, class_token: bool, hints: Hints, notes: Notes
    ) -> tuple[int, str]:
        """`(image size, kind of the position embedding)`."""
        raise NotImplementedError

    def position_piece(self, cfg: ModelConfig) -> Piece:
        raise NotImplementedError

    def strip(self, arrays: Arrays) -> Arrays:
        for prefix in ("params/img/", "params/", "opt/target/"):
            names = [name for name in arrays if name.startswith(prefix)]
            if names:
                return {name.removeprefix(prefix): arrays[name] for name in names}
        return arrays

    def read(self, arrays: Arrays, hints: Hints) -> Reading:
        notes = Notes()
        stacked = any(name.startswith(_STACK) for name in arrays)
        parts = PRE_LINEN if any("/MlpBlock_3/" in name for name in arrays) else LINEN
        name_of = _namer(_STACK if stacked else _BLOCK, parts)
        flat = _first_layers(arrays) if stacked else arrays
        values = sizes(flat, name_of, _depth(arrays, stacked), 0, self, hints)
        query = name_of("blocks.0.attn.qkv.bias")[0]
        said = int(flat[query].shape[0]) if query in flat and len(flat[query].shape) == 2 else None
        class_token = "cls" in arrays
        pool = "map" if f"{POOLING}/probe" in arrays else "token" if class_token else "mean"
        size, kind = self.positions(arrays, values["patch_size"], class_token, hints, notes)
        cfg = model(
            hints,
            **values,
            num_heads=heads(values, said, hints, notes),
            image_size=size,
            class_token=class_token,
            pool=pool,
            pos_embed=kind,
            gelu="tanh",
            mean=HALF[0],
            std=HALF[1],
            eval_resize=self.eval_resize,
            interpolation="bilinear",
        )
        shown = "resized to 256/224 and cropped" if self.eval_resize else "squashed to a square"
        notes.assumed.append(
            f"tanh GELU, eps 1e-6, images in [-1, 1], {shown} (as {self.name}'s code does)"
        )
        table = _table(cfg, name_of, self.position_piece(cfg), stacked)
        if not has_head(flat, name_of):
            table = {name: pieces for name, pieces in table.items() if not name.startswith("head.")}
        if kind == "sincos2d":
            del table["pos_embed"]
        return Reading(cfg, table, notes)

    def table(self, cfg: ModelConfig) -> Table:
        return _table(cfg, _namer(_BLOCK, self.block), self.position_piece(cfg), stacked=False)

    def notes(self, cfg: ModelConfig, folder: bool = False) -> list[str]:
        out = []
        if cfg.gelu != "tanh":
            out.append(
                f"{self.name}'s code computes tanh GELU, this model erf: "
                "nn.gelu(x, approximate=False) in MlpBlock"
            )
        if cfg.norm_eps != 1e-6:
            out.append(
                f"{self.name}'s LayerNorm eps is 1e-6, this model's: "
                f"nn.LayerNorm(epsilon={cfg.norm_eps:g})"
            )
        if (cfg.mean, cfg.std) != HALF:
            out.append(
                f"{self.name}'s input pipeline gives images in [-1, 1]; this model wants mean "
                f"{list(cfg.mean)} and std {list(cfg.std)} of RGB in [0, 1]"
            )
        return out


def _namer(prefix: str, parts: dict[str, str]) -> NameOf:
    def name_of(canonical_name: str) -> str | list[str]:
        layer, module, leaf = split_name(canonical_name)
        if not layer and module.startswith("attn_pool"):
            return _pooling_name(module.removeprefix("attn_pool").removeprefix("."), leaf)
        if not layer:
            return "cls" if module == "cls_token" else f"{_OUTER[module]}/{_leaf(module, leaf)}"
        block = prefix.format(layer)
        part, _, product = module.partition(".")
        if product == "qkv":
            attention = f"{block}{parts['attn']}"
            return [f"{attention}/{n}/{_leaf(module, leaf)}" for n in ("query", "key", "value")]
        inner = {"": "", "proj": "/out", "fc1": "/Dense_0", "fc2": "/Dense_1"}[product]
        return f"{block}{parts[part]}{inner}/{_leaf(module, leaf)}"

    return name_of


def _pooling_name(module: str, leaf: str) -> str | list[str]:
    """Of attention pooling's tensors; two for keys and values."""
    attention = f"{POOLING}/{LINEN['attn']}"
    places = {
        "q": f"{attention}/query",
        "proj": f"{attention}/out",
        "norm": f"{POOLING}/LayerNorm_0",
        "mlp.fc1": f"{POOLING}/MlpBlock_0/Dense_0",
        "mlp.fc2": f"{POOLING}/MlpBlock_0/Dense_1",
    }
    if leaf == "latent":
        return f"{POOLING}/probe"
    if module == "kv":
        return [f"{attention}/{n}/{_leaf(module, leaf)}" for n in ("key", "value")]
    return f"{places[module]}/{_leaf(module, leaf)}"


def _leaf(module: str, leaf: str) -> str:
    if leaf == "bias":
        return "bias"
    return "scale" if "norm" in module else "kernel"


def _depth(arrays: Arrays, stacked: bool) -> int:
    if not stacked:
        return count_layers(r"Transformer/encoderblock_(\d+)/", arrays)
    first = arrays.get(f"{_STACK}LayerNorm_0/bias")
    return int(first.shape[0]) if first is not None and len(first.shape) == 2 else 0


def _first_layers(arrays: Arrays) -> Arrays:
    """Shapes and dtypes of one layer where the file stacks them."""
    return {
        name: LazyArray(tuple(a.shape[1:]), a.dtype, _unread) if name.startswith(_STACK) else a
        for name, a in arrays.items()
    }


def _unread() -> np.ndarray:
    raise AssertionError("only the shape of one layer is needed")


def _table(cfg: ModelConfig, name_of: NameOf, position: Piece, stacked: bool) -> Table:
    table: Table = {}
    for name, shape in canonical.shapes(cfg).items():
        layer = split_name(name)[0]
        pieces = [position] if name == "pos_embed" else _pieces(cfg, name, shape, name_of(name))
        if stacked and layer:
            pieces = [dataclasses.replace(piece, layer=int(layer)) for piece in pieces]
        table[name] = pieces
    return table


def _pieces(cfg: ModelConfig, name: str, shape: tuple[int, ...], target: Any) -> list[Piece]:
    width, num_heads = cfg.width, cfg.num_heads
    if name.endswith("attn.qkv.weight"):
        return split_qkv(target, lambda n: split_heads(n, width, num_heads), width)
    if name.endswith("attn.qkv.bias"):
        return split_qkv(target, lambda n: split_heads_bias(n, width, num_heads), width)
    if name.startswith(("attn_pool.q.", "attn_pool.kv.")):
        names = [target] if isinstance(target, str) else target
        split = split_heads if name.endswith("weight") else split_heads_bias
        return split_qkv(names, lambda n: split(n, width, num_heads), width)
    if name.endswith(("attn.proj.weight", "attn_pool.proj.weight")):
        return [joined_heads(target, width, num_heads)]
    if len(shape) == 4:
        return [channels_last(target, shape)]
    return [transposed(target, shape) if len(shape) == 2 else plain(target, shape)]
