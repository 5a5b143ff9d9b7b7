"""The small residual net's sizes and formulas; a port gets a changed copy, one mistake each."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ConvConfig:
    image: tuple[int, int] = (28, 40)  # even and odd sizes both meet a stride of 2
    channels: int = 3
    stem: int = 10
    widths: tuple[int, ...] = (14, 22)
    groups: int = 2
    hidden: int = 17
    classes: int = 9
    batch: int = 3

    # The formula. The reference has these values.
    norm_eps: float = 1e-5
    slope: str = "leaky"  # "leaky_default" in a port
    activation: str = "relu"
    # What only a port changes.
    same_padding: bool = False  # of the stem's convolution: SAME, not 1 on every side
    stride_first: bool = False  # the block's stride in its first convolution, not its second
    dilation: int = 2  # of the first block
    max_pool: str = "symmetric"  # "same"
    count_padding: bool = True  # in the average pool
    flatten: str = "channels_first"  # "channels_last"
    head_bias: int = 1  # times that the last bias is added
    kernels_transposed: bool = False  # height and width exchanged in 3 x 3 kernels
    group_order: str = "by_group"  # of the grouped convolutions' outputs
    bgr: bool = False  # the stem's input channels reversed
    swapped: bool = False  # the first two batch norms' scales of each block
    train: bool = False
    momentum: float = 0.1
    unbiased: bool = True  # variance of the running update
    extra: frozenset[str] = frozenset()  # mistakes that have no name

    @property
    def flat(self) -> int:
        """Features after the average pool, from the strides alone."""
        rows, columns = self.image
        for _ in range(4):
            rows, columns = (rows + 1) // 2, (columns + 1) // 2
        return self.widths[-1] * rows * columns

    @staticmethod
    def draw(rng: np.random.Generator) -> "ConvConfig":
        """Sizes in which no two dimensions agree by chance."""
        return ConvConfig(
            image=[(28, 40), (32, 44), (36, 28)][rng.integers(3)],
            stem=int(rng.choice([10, 12])),
            widths=[(14, 22), (18, 26), (16, 20)][rng.integers(3)],
            hidden=int(rng.choice([17, 19, 23])),
            classes=int(rng.choice([9, 11, 13])),
            batch=int(rng.choice([2, 3])),
        )


def kernel(cfg: ConvConfig, state: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A kernel (out, in, height, width), with the channel orders that the config asks for."""
    found = state[f"{name}.weight"]
    if cfg.bgr and name == "conv1":
        found = found[:, ::-1]
    if cfg.group_order == "by_channel" and name.endswith(".conv2"):
        found = found.reshape(cfg.groups, -1, *found.shape[1:]).swapaxes(0, 1)
        found = found.reshape(-1, *found.shape[2:])
    return found
