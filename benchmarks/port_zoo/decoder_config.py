"""The small decoder's sizes and formulas; a port gets a changed copy, a mistake each change."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DecoderConfig:
    vocab: int = 41
    width: int = 36
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 8
    mlp: int = 50
    depth: int = 2
    length: int = 11
    batch: int = 3

    # The formula. The reference has these values.
    norm_eps: float = 1e-6
    rope_base: float = 10000.0
    tied: bool = True
    loss: str = ""  # "mean": the next tokens' cross entropy, padding (id 0) left out
    rope_table: bool = False  # the reference's frequencies are a float32 buffer
    # What only a port changes.
    unit_offset: bool = False  # RMSNorm multiplies by 1 + weight
    rope_layout: str = "half"  # "interleaved"
    key_offset: int = 0  # added to the keys' positions
    attention_scale: str = "head_dim"  # "width", "none"
    mask_offset: int = 0  # 1: a token sees its successor
    mask_value: float = -np.inf
    softmax_axis: int = -1
    repeat: str = "repeat"  # "tile": heads share keys in the other order
    activation: str = "silu"
    gate_first: bool = True  # in the packed product
    qkv_bias: bool = True
    scaled_embedding: bool = False  # times sqrt(width)
    extra: frozenset[str] = frozenset()  # mistakes that have no name

    @staticmethod
    def draw(rng: np.random.Generator) -> "DecoderConfig":
        """Sizes in which no two dimensions agree by chance."""
        heads, kv_heads = [(6, 2), (4, 2), (6, 3)][rng.integers(3)]
        return DecoderConfig(
            vocab=int(rng.choice([41, 53])),
            width=int(rng.choice([34, 38])),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=int(rng.choice([8, 10])),
            mlp=int(rng.choice([50, 62])),
            length=int(rng.choice([11, 13])),
            batch=int(rng.choice([2, 3])),
        )
