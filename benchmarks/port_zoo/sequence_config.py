"""The small text-line net's sizes and formulas; a port gets a changed copy, one mistake each."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SequenceConfig:
    image: tuple[int, int] = (6, 10)
    middle: tuple[int, int] = (
        9,
        16,
    )  # after the resizes; the transposed convolution gives twice the image
    channels: int = 3
    features: int = 12
    up: int = 8
    lstm: int = 11
    gru: int = 13
    classes: int = 5
    batch: int = 2

    # The formula. The reference has these values.
    groups: int = 3
    norm_eps: float = 1e-5
    activation: str = "gelu_tanh"
    # What only a port changes.
    flip: bool = True  # the transposed convolution's kernel, as PyTorch does
    same_padding: bool = False  # of the transposed convolution
    linear: str = "half_pixel"  # "antialias" (JAX's default), "align_corners"
    cubic: str = "torch"  # "jax": A = -0.5, other edges
    lstm_order: str = "ifgo"  # "ifog"
    gru_order: str = "rzn"  # "zrn"
    reset: str = "after"  # of the GRU: before or after the recurrent product
    forget_bias: float = 0.0  # added to the LSTM's forget gate
    second_bias: bool = True  # of the LSTM
    head_transposed: bool = False
    extra: frozenset[str] = frozenset()  # mistakes that have no name

    @staticmethod
    def draw(rng: np.random.Generator) -> "SequenceConfig":
        """Sizes in which no two dimensions agree by chance."""
        return SequenceConfig(
            image=[(6, 10), (5, 9), (7, 10)][rng.integers(3)],
            middle=[(9, 16), (8, 15)][rng.integers(2)],
            up=int(rng.choice([8, 10])),
            lstm=int(rng.choice([11, 14])),
            gru=int(rng.choice([13, 17])),
            classes=int(rng.choice([5, 6])),
            batch=int(rng.choice([2, 3])),
        )
