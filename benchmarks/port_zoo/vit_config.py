"""The small ViT's sizes and formulas; a port gets a changed copy, a mistake each change."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ViTConfig:
    grid: tuple[int, int] = (3, 5)
    patch: int = 4
    channels: int = 3
    heads: int = 3
    head_dim: int = 10
    mlp: int = 44
    depth: int = 3
    classes: int = 11
    batch: int = 2

    # The formula. The reference has these values, or "gelu_tanh" and "gelu_quick" in activation.
    activation: str = "gelu"
    norm_eps: float = 1e-6
    # What only a port changes.
    norm_axis: int = -1
    attention_scale: str = "head_dim"  # "width", "none"
    softmax_axis: int = -1  # -2: over queries
    qkv: str = "packed"  # "by_head": (head, 3, dim); "kqv"; "dim_first": (3, dim, head)
    mlp_bias: int = 1  # times that the first MLP bias is added
    patch_order: str = "rows"  # "columns"
    class_token: str = "first"  # "last"
    dropout: float = 0.0
    transposed: bool = False  # the attention's output weight
    last_norm: bool = True
    ddof: int = 0  # of the norms' variance
    swapped: bool = False  # the two norms of each block
    extra: frozenset[str] = frozenset()  # mistakes that have no name

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def image(self) -> tuple[int, int]:
        return self.grid[0] * self.patch, self.grid[1] * self.patch

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1] + 1

    @staticmethod
    def draw(rng: np.random.Generator) -> "ViTConfig":
        """Sizes in which no two dimensions agree by chance."""
        heads = int(rng.choice([3, 5]))
        return ViTConfig(
            grid=[(3, 5), (2, 6), (4, 3)][rng.integers(3)],
            patch=int(rng.choice([4, 6])),
            heads=heads,
            head_dim=int(rng.choice([7, 8, 10])),
            mlp=int(rng.choice([44, 53, 61])),
            classes=int(rng.choice([9, 11])),
            batch=int(rng.choice([2, 3])),
        )
