"""The `.npz` files of `google-research/vision_transformer`."""

from shared_vit.spec.config import ModelConfig
from shared_vit.weights.formats.base import Hints, Notes, image_size, position_rows
from shared_vit.weights.formats.google_layout import PRE_LINEN, GoogleLayout
from shared_vit.weights.lazy import Arrays
from shared_vit.weights.table import Piece, plain


class Google(GoogleLayout):
    name = "google"
    about = "a ViT of google-research/vision_transformer"
    position = "Transformer/posembed_input/pos_embedding"
    block = PRE_LINEN
    eval_resize = 0.0
    foreign = {**GoogleLayout.foreign, "MAPHead_0": "an attention-pooling (MAP) head"}

    def found(self, names: Arrays) -> bool:
        return any(name.endswith(self.position) for name in names)

    def positions(
        self, arrays: Arrays, patch: int, class_token: bool, hints: Hints, notes: Notes
    ) -> tuple[int, str]:
        rows = position_rows(arrays, self.position, self, hints) - class_token
        return image_size(rows, patch, self.position, hints), "learned"

    def position_piece(self, cfg: ModelConfig) -> Piece:
        return plain(self.position, (1, cfg.num_tokens, cfg.width))

    def notes(self, cfg: ModelConfig, folder: bool = False) -> list[str]:
        out = super().notes(cfg, folder)
        if cfg.eval_resize or cfg.interpolation != "bilinear":
            out.append(
                "google's input pipeline squashes the full image to a square (bilinear); this "
                f"model wants: {self.how_to_preprocess(cfg)}"
            )
        return out

    def how_to_load(self, cfg: ModelConfig) -> str:
        classifier = "token" if cfg.class_token else "gap"
        return (
            f"vit_jax.models_vit.VisionTransformer(num_classes={cfg.num_classes or None}, "
            f"patches=({cfg.patch_size}, {cfg.patch_size}), hidden_size={cfg.width}, "
            f"transformer=dict(mlp_dim={cfg.mlp_dim}, num_heads={cfg.num_heads}, "
            f"num_layers={cfg.depth}), representation_size={cfg.pre_logits or None}, "
            f"classifier={classifier!r}), by vit_jax.checkpoint.load_pretrained"
        )

    def how_to_preprocess(self, cfg: ModelConfig) -> str:
        how = f"method={cfg.interpolation!r}, antialias=True"
        size = cfg.image_size
        if cfg.eval_resize == 0:
            return f"tf.image.resize(image, ({size}, {size}), {how})"
        return (
            f"tf.image.resize(image, sides with the shorter one {cfg.short_side}, {how}), then "
            f"the central {size} x {size} pixels"
        )
