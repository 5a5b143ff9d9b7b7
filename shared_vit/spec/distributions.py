"""The initializers of the weights, as values: each samples a float32 array of a given shape."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

# The standard deviation of a unit normal cut at two deviations, by which Flax's `lecun_normal`
# divides.
TRUNCATED_STD = 0.87962566103423978


class Distribution(Protocol):
    """How a tensor is initialized."""

    def draw(self, rng: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
        """A float32 array of `shape`."""
        ...


@dataclass(frozen=True)
class Constant:
    value: float

    def draw(self, rng: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
        return np.full(shape, self.value, np.float32)


@dataclass(frozen=True)
class Normal:
    std: float

    def draw(self, rng: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
        return rng.normal(0, self.std, shape).astype(np.float32)


@dataclass(frozen=True)
class XavierUniform:
    """U(-b, b), b = sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010).

    `matrices` is the number of matrices stacked along the first axis, each with its own fans.
    """

    matrices: int = 1

    def draw(self, rng: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
        one = (shape[0] // self.matrices, shape[1])
        bound = math.sqrt(6 / sum(one))
        parts = [rng.uniform(-bound, bound, one).astype(np.float32) for _ in range(self.matrices)]
        return np.concatenate(parts)


@dataclass(frozen=True)
class LecunNormal:
    """Normal cut at two deviations, of standard deviation sqrt(1 / fan_in) after the cut."""

    def draw(self, rng: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
        values = rng.standard_normal(shape)
        while (outside := np.abs(values) > 2).any():
            values[outside] = rng.standard_normal(int(outside.sum()))
        return (values * (math.sqrt(1 / math.prod(shape[1:])) / TRUNCATED_STD)).astype(np.float32)


@dataclass(frozen=True)
class SinCos2d:
    """Fixed positions (Chen et al. 2021, MoCo v3, as in big_vision) of a grid (rows, columns).

    sin x, cos x, sin y, cos y, each over width / 4 frequencies from 1 to 1/10000. Rows before the
    grid's, such as the class token's, are zero.
    """

    grid: tuple[int, int]

    def draw(self, rng: np.random.RandomState | None, shape: tuple[int, ...]) -> np.ndarray:
        _, tokens, width = shape
        y, x = np.mgrid[: self.grid[0], : self.grid[1]]
        omega = 1.0 / 10_000 ** (np.arange(width // 4) / max(width // 4 - 1, 1))
        xs, ys = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega
        table = np.concatenate([np.sin(xs), np.cos(xs), np.sin(ys), np.cos(ys)], axis=1)
        table = np.concatenate([np.zeros((tokens - len(table), width)), table])
        return table[None].astype(np.float32)


@dataclass(frozen=True)
class RotaryDirections:
    """Frequencies of mixed rotary positions (Heo et al. 2024, RoPE-ViT) [2, depth, heads, d / 2].

    Magnitudes base^(-4 k / d), twice, the second time a quarter turn further, in a random direction
    of each head: along the columns, then along the rows.
    """

    base: float

    def draw(self, rng: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
        _, depth, heads, half = shape
        size = self.base ** (-4.0 * np.arange(half // 2) / (2 * half))
        turn = rng.uniform(0, 2 * math.pi, (depth, heads, 1))
        x = np.concatenate([size * np.cos(turn), size * np.cos(math.pi / 2 + turn)], -1)
        y = np.concatenate([size * np.sin(turn), size * np.sin(math.pi / 2 + turn)], -1)
        return np.stack([x, y]).astype(np.float32)
