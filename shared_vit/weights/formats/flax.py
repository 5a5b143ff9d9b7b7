"""Google's `.npz` files: those of `google-research/vision_transformer`, and those of big_vision.

Both compute tanh GELU and LayerNorm with eps 1e-6, and train on images in [-1, 1].
"""

from collections.abc import Callable

import numpy as np

from shared_vit.errors import UserError
from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig
from shared_vit.weights import table as layout
from shared_vit.weights.formats import base as formats
from shared_vit.weights.formats.base import Format, Hints, Reading
from shared_vit.weights.lazy import Arrays, LazyArray
from shared_vit.weights.table import Piece

# Flax numbered a block's parts in one row (the published files), then each kind by itself ("Linen").
_PRE_LINEN = {
    "norm1": "LayerNorm_0",
    "attn": "MultiHeadDotProductAttention_1",
    "norm2": "LayerNorm_2",
    "mlp": "MlpBlock_3",
}
_LINEN = {
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


class Flax(Format):
    """What the two have in common; they differ in names and in where the position embedding is added."""

    suffixes = (".npz",)
    position: str  # name of the position embedding
    block: dict[str, str]  # names of a block's parts, as written
    foreign = {
        "MAPHead_0": "an attention-pooling (MAP) head",
        "conv_root": "a convolutional stem",
        "mlp_head": "a head with a hidden layer",
    }

    def strip(self, arrays: Arrays) -> Arrays:
        for prefix in ("params/img/", "params/", "opt/target/"):
            inner = {
                name.removeprefix(prefix): array
                for name, array in arrays.items()
                if name.startswith(prefix)
            }
            if inner:
                return inner
        return arrays

    def read(self, arrays: Arrays, hints: Hints) -> Reading:
        notes: tuple[list[str], list[str]] = ([], [])
        scanned = any(name.startswith("Transformer/encoderblock/") for name in arrays)
        parts = _PRE_LINEN if any("/MlpBlock_3/" in name for name in arrays) else _LINEN
        if scanned:
            stacked = arrays.get("Transformer/encoderblock/LayerNorm_0/bias")
            depth = int(stacked.shape[0]) if stacked is not None and len(stacked.shape) == 2 else 0
        else:
            depth = layout.count_layers(r"Transformer/encoderblock_(\d+)/", arrays)
        prefix = "Transformer/encoderblock/" if scanned else "Transformer/encoderblock_{}/"
        name_of = _namer(prefix, parts)
        flat = {
            n: _first_layer(a) if scanned and n.startswith(prefix) else a for n, a in arrays.items()
        }
        values = formats.sizes(flat, name_of, depth, 0, "norm", self, hints)
        query = name_of("blocks.0.attn.qkv.bias")[0]
        said = int(flat[query].shape[0]) if query in flat and len(flat[query].shape) == 2 else None
        class_token = "cls" in arrays
        size, positions = self.positions(arrays, values["patch_size"], class_token, hints, notes[0])
        cfg = formats.model(
            hints,
            **values,
            num_heads=formats.heads(values, said, hints, notes),
            image_size=size,
            class_token=class_token,
            pool="token" if class_token else "mean",
            pos_embed=positions,
            gelu="tanh",
            mean=formats.HALF[0],
            std=formats.HALF[1],
        )
        notes[0].append(f"tanh GELU, eps 1e-6, images in [-1, 1] (as {self.name}'s code has them)")
        table = _table(cfg, name_of, self.position_piece(cfg), scanned)
        if not formats.has_head(flat, name_of):
            table = {name: pieces for name, pieces in table.items() if not name.startswith("head.")}
        if positions == "sincos2d":
            del table["pos_embed"]
        return Reading(cfg, table, *notes)

    def positions(
        self, arrays: Arrays, patch: int, class_token: bool, hints: Hints, assumed: list[str]
    ) -> tuple[int, str]:
        """`(image size, kind of the position embedding)`."""
        raise NotImplementedError

    def position_piece(self, cfg: ModelConfig) -> Piece:
        raise NotImplementedError

    def table(self, cfg: ModelConfig) -> layout.Table:
        return _table(
            cfg,
            _namer("Transformer/encoderblock_{}/", self.block),
            self.position_piece(cfg),
            scanned=False,
        )

    def refuse(self, cfg: ModelConfig) -> None:
        if cfg.pool == "mean" and (cfg.class_token or cfg.norm_after_pool):
            raise UserError(
                f"{self.name}'s ViT takes the mean without a class token and after the last norm (gap); this model "
                f"{'has a class token' if cfg.class_token else 'takes it before the norm'}: timm can hold it"
            )

    def notes(self, cfg: ModelConfig, folder: bool = False) -> list[str]:
        out = []
        if cfg.gelu != "tanh":
            out.append(
                f"{self.name}'s code computes tanh GELU, this model erf: nn.gelu(x, approximate=False) in MlpBlock"
            )
        if cfg.norm_eps != 1e-6:
            out.append(
                f"{self.name}'s LayerNorm eps is 1e-6, this model's: nn.LayerNorm(epsilon={cfg.norm_eps:g})"
            )
        if (cfg.mean, cfg.std) != formats.HALF:
            out.append(
                f"{self.name}'s input pipeline gives images in [-1, 1]; this model wants mean {list(cfg.mean)} and std "
                f"{list(cfg.std)} of RGB in [0, 1]"
            )
        return out


class Google(Flax):
    name = "google"
    about = "a ViT of google-research/vision_transformer"
    position = "Transformer/posembed_input/pos_embedding"
    block = _PRE_LINEN

    def found(self, names: Arrays) -> bool:
        return any(name.endswith(self.position) for name in names)

    def positions(self, arrays, patch, class_token, hints, assumed):
        rows = arrays[self.position].shape[1] - class_token if self.position in arrays else 1
        return formats.image_size(rows, patch, self.position, hints), "learned"

    def position_piece(self, cfg: ModelConfig) -> Piece:
        return layout.plain(self.position, (1, cfg.num_tokens, cfg.width))

    def how_to_load(self, cfg: ModelConfig) -> str:
        classifier = "token" if cfg.class_token else "gap"
        return (
            f"vit_jax.models_vit.VisionTransformer(num_classes={cfg.num_classes}, patches=({cfg.patch_size}, "
            f"{cfg.patch_size}), hidden_size={cfg.width}, transformer=dict(mlp_dim={cfg.mlp_dim}, num_heads="
            f"{cfg.num_heads}, num_layers={cfg.depth}), representation_size={cfg.pre_logits or None}, "
            f"classifier={classifier!r}), by vit_jax.checkpoint.load_pretrained"
        )


class BigVision(Flax):
    name = "big_vision"
    about = "a ViT of big_vision"
    position = "pos_embedding"
    block = _LINEN

    def found(self, names: Arrays) -> bool:
        return any(name.endswith("embedding/kernel") for name in names) and any(
            name.endswith("Transformer/encoder_norm/scale") for name in names
        )

    def positions(self, arrays, patch, class_token, hints, assumed):
        if self.position in arrays:
            rows = arrays[self.position].shape[1] if len(arrays[self.position].shape) == 3 else 0
            return formats.image_size(rows, patch, self.position, hints), "learned"
        size = hints.image_size or 224 // patch * patch or patch
        assumed.append(f"sincos2d positions and {size} px images (there is no {self.position})")
        return size, "sincos2d"

    def position_piece(self, cfg: ModelConfig) -> Piece:
        return layout.without_class_row(self.position, cfg)

    def prepare(self, cfg: ModelConfig, arrays: Arrays) -> Arrays:
        """The class token has no position there: its row is added to the token, as the forward pass would.

        The sum is kept in the next wider type, so that nothing is rounded; a row of zeros changes nothing.
        """
        if not cfg.class_token:
            return arrays
        row = np.asarray(arrays["pos_embed"])[:, :1]
        if not row.any():
            return arrays
        wide = np.float32 if row.dtype.itemsize == 2 else np.float64
        return {
            **arrays,
            "cls_token": np.asarray(arrays["cls_token"]).astype(wide) + row.astype(wide),
        }

    def notes(self, cfg: ModelConfig, folder: bool = False) -> list[str]:
        out = super().notes(cfg, folder)
        if cfg.pos_embed == "sincos2d":
            out.append(
                "the fixed positions are written as learned ones (posemb='learn'), which big_vision would train"
            )
        return out

    def how_to_load(self, cfg: ModelConfig) -> str:
        pool = "tok" if cfg.class_token else "gap"
        return (
            f"big_vision.models.vit.Model(num_classes={cfg.num_classes}, patch_size=({cfg.patch_size}, {cfg.patch_size}), "
            f"width={cfg.width}, depth={cfg.depth}, mlp_dim={cfg.mlp_dim}, num_heads={cfg.num_heads}, posemb='learn', "
            f"pool_type={pool!r}, rep_size={cfg.pre_logits or False})"
        )


def _namer(prefix: str, parts: dict[str, str]) -> Callable[[str], str | list[str]]:
    def name_of(canonical_name: str) -> str | list[str]:
        layer, module, leaf = formats.split_name(canonical_name)
        if not layer:
            if module == "cls_token":
                return "cls"
            return f"{_OUTER[module]}/{_leaf(module, leaf)}"
        block = prefix.format(layer)
        part, _, product = module.partition(".")
        if product == "qkv":
            return [
                f"{block}{parts['attn']}/{n}/{_leaf(module, leaf)}"
                for n in ("query", "key", "value")
            ]
        inner = {"": "", "proj": "/out", "fc1": "/Dense_0", "fc2": "/Dense_1"}[product]
        return f"{block}{parts[part]}{inner}/{_leaf(module, leaf)}"

    return name_of


def _leaf(module: str, leaf: str) -> str:
    if leaf == "bias":
        return "bias"
    return "scale" if "norm" in module else "kernel"


def _table(cfg: ModelConfig, name_of: Callable, position: Piece, scanned: bool) -> layout.Table:
    table: layout.Table = {}
    for name, shape in canonical.shapes(cfg).items():
        layer = formats.split_name(name)[0]
        pieces = [position] if name == "pos_embed" else _pieces(cfg, name, shape, name_of(name))
        if scanned and layer:
            pieces = [
                Piece(p.name, p.shape, p.to_canonical, p.to_file, p.rows, int(layer))
                for p in pieces
            ]
        table[name] = pieces
    return table


def _pieces(
    cfg: ModelConfig, name: str, shape: tuple[int, ...], target: str | list[str]
) -> list[Piece]:
    d, h = cfg.width, cfg.num_heads
    if name.endswith("attn.qkv.weight"):
        return layout.thirds(target, lambda n: layout.split_heads(n, d, h), d)
    if name.endswith("attn.qkv.bias"):
        return layout.thirds(target, lambda n: layout.split_heads_bias(n, d, h), d)
    if name.endswith("attn.proj.weight"):
        return [layout.joined_heads(target, d, h)]
    if len(shape) == 4:
        return [layout.channels_last(target, shape)]
    return [layout.transposed(target, shape) if len(shape) == 2 else layout.plain(target, shape)]


def _first_layer(array: np.ndarray | LazyArray) -> LazyArray:
    """Shape and dtype of one layer of an array that stacks them."""
    return LazyArray(tuple(array.shape[1:]), array.dtype, lambda: np.asarray(array)[0])
