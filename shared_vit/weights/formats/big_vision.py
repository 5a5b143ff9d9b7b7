"""The `.npz` files of big_vision."""

import numpy as np

from shared_vit.spec.config import ModelConfig
from shared_vit.weights.formats.base import Hints, Notes, image_size, position_rows
from shared_vit.weights.formats.google_layout import LINEN, GoogleLayout
from shared_vit.weights.lazy import Arrays
from shared_vit.weights.table import Piece, without_prefix_rows


class BigVision(GoogleLayout):
    name = "big_vision"
    about = "a ViT of big_vision"
    position = "pos_embedding"
    block = LINEN
    eval_resize = 256 / 224
    holds = {
        **GoogleLayout.holds,
        # tok, gap or map, whose sizes are the blocks'
        "pool": lambda cfg: cfg.pool == "token" or not cfg.class_token,
        "map_heads": lambda cfg: cfg.pooling_heads == cfg.num_heads,
        "map_mlp": lambda cfg: cfg.pooling_mlp == cfg.mlp_dim,
    }

    def found(self, names: Arrays) -> bool:
        return any(name.endswith("embedding/kernel") for name in names) and any(
            name.endswith("Transformer/encoder_norm/scale") for name in names
        )

    def positions(
        self, arrays: Arrays, patch: int, class_token: bool, hints: Hints, notes: Notes
    ) -> tuple[int, str]:
        if self.position in arrays:
            rows = position_rows(arrays, self.position, self, hints)
            return image_size(rows, patch, self.position, hints), "learned"
        size = hints.image_size or 224 // patch * patch or patch
        notes.assumed.append(
            f"sincos2d positions and {size} px images (there is no {self.position})"
        )
        return size, "sincos2d"

    def position_piece(self, cfg: ModelConfig) -> Piece:
        return without_prefix_rows(self.position, cfg)

    def prepare(self, cfg: ModelConfig, arrays: Arrays) -> Arrays:
        """The class token's position added to the token, as in the forward pass: it has none there.

        The sum has the next wider type, so that nothing is rounded; a row of zeros changes
        nothing.
        """
        if not cfg.num_prefix:
            return arrays
        row = np.asarray(arrays["pos_embed"])[:, :1]
        if not row.any():
            return arrays
        wide = np.float32 if row.dtype.itemsize == 2 else np.float64
        token = np.asarray(arrays["cls_token"]).astype(wide) + row.astype(wide)
        return {**arrays, "cls_token": token}

    def notes(self, cfg: ModelConfig, folder: bool = False) -> list[str]:
        out = super().notes(cfg, folder)
        if cfg.pos_embed == "sincos2d":
            out.append(
                "the fixed positions are written as learned ones (posemb='learn'), which "
                "big_vision would train"
            )
        return out

    def how_to_load(self, cfg: ModelConfig) -> str:
        pool = {"token": "tok", "mean": "gap", "map": "map"}[cfg.pool]
        return (
            f"big_vision.models.vit.Model(num_classes={cfg.num_classes or None}, "
            f"patch_size=({cfg.patch_size}, {cfg.patch_size}), width={cfg.width}, "
            f"depth={cfg.depth}, mlp_dim={cfg.mlp_dim}, num_heads={cfg.num_heads}, "
            f"posemb='learn', pool_type={pool!r}, rep_size={cfg.pre_logits or False})"
        )

    def how_to_preprocess(self, cfg: ModelConfig) -> str:
        how, size = f'method="{cfg.interpolation}"', cfg.image_size
        if cfg.eval_resize == 0:
            return f"decode|resize({size}, {how})|value_range(-1, 1)"
        short = cfg.short_side
        return f"decode|resize_small({short}, {how})|central_crop({size})|value_range(-1, 1)"
