"""Mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019): the draw of a batch, on the host.

Row r is mixed with row r XOR 1 of the global batch. A pair never crosses a device, a process or a
part of a batch, so that mixing needs no communication and does not depend on their numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shared_vit.errors import UserError
from shared_vit.spec.recipe import Recipe
from shared_vit.spec.sides import Sides, sides

_GRID = 1 << 20


@dataclass(frozen=True)
class Mix:
    """What one batch does, the same for all its rows.

    The pixels of a row become `pixels` of its own + (1 - `pixels`) of its partner's outside the
    box, and its partner's inside; the loss is `lam` of that for its own label + (1 - `lam`) of that
    for its partner's. box: top, left, bottom and right, the last two exclusive; empty in mixup.
    """

    kind: Literal["none", "mixup", "cutmix"] = "none"
    lam: float = 1.0
    pixels: float = 1.0
    box: tuple[int, int, int, int] = (0, 0, 0, 0)


def mix_seed(seed: int) -> int:
    """The seed of mixing in a run: the word after those of the order and of augmentation."""
    return int(np.random.SeedSequence(seed).generate_state(3)[2])


def draw_mix(seed: int, step: int, size: Sides, mixup: float, cutmix: float) -> Mix:
    """The Mix of batch `step`, a pure function of its arguments.

    seed: `mix_seed`. size: side of the images in pixels, or height and width. mixup, cutmix: the
    parameter alpha of Beta(alpha, alpha), 0 for off; where both are on each batch takes one of
    them, as often as the other. The random numbers come from raw Philox words, which numpy promises
    not to change, and are multiples of 2^-20, so that the last bit of a logarithm cannot matter.
    """
    if not mixup and not cutmix:
        return Mix()
    uniform = _uniforms(np.random.Philox(np.random.SeedSequence([seed, step])))
    kind, row, column = (next(uniform) for _ in range(3))  # whatever is mixed
    if mixup and (not cutmix or kind < 0.5):
        lam = symmetric_beta(mixup, uniform) / _GRID
        return Mix("mixup", lam, pixels=lam)
    # Half sides int(side sqrt(1 - lam) / 2), in integers.
    rest, shape = _GRID - symmetric_beta(cutmix, uniform), sides(size)
    half = [math.isqrt(side * side * rest // (4 * _GRID)) for side in shape]
    centre = (int(row * shape[0]), int(column * shape[1]))
    top, left = (max(0, c - h) for c, h in zip(centre, half))
    bottom, right = (min(side, c + h) for side, c, h in zip(shape, centre, half))
    share = (bottom - top) * (right - left) / (shape[0] * shape[1])
    return Mix("cutmix", 1 - share, box=(top, left, bottom, right))


def symmetric_beta(alpha: float, uniform: Iterator[float]) -> int:
    """A draw from Beta(alpha, alpha), times 2^20 and rounded, by the method of Johnk (1964).

    x = u^(1/alpha) and y = v^(1/alpha) are accepted where x + y <= 1; the draw is x / (x + y). In
    logarithms, because both vanish for small alpha.
    """
    while True:
        x, y = (math.log(next(uniform)) / alpha for _ in range(2))
        low, high = min(x, y), max(x, y)
        ratio = math.exp(low - high)
        if high + math.log1p(ratio) <= 0:
            return round(_GRID * ((1 if x > y else ratio) / (1 + ratio)))


def mix_of(recipe: Recipe, step: int) -> Mix | None:
    """The Mix of batch `step` of a run; None where the recipe mixes nothing."""
    if not recipe.mixup and not recipe.cutmix:
        return None
    size = recipe.model.image_shape
    return draw_mix(mix_seed(recipe.seed), step, size, recipe.mixup, recipe.cutmix)


def check_mixing(batch_size: int, parts: int, mixup: float, cutmix: float) -> None:
    """Raise UserError unless every device and part of a batch has complete pairs of rows.

    parts: devices of all processes times `grad_accum`.
    """
    if (mixup or cutmix) and batch_size // parts % 2:
        raise UserError(
            f"--mixup and --cutmix mix pairs of rows: --batch_size={batch_size} over {parts} parts "
            f"(devices x --grad_accum) leaves {batch_size // parts} rows to each, an odd number; a "
            f"multiple of {2 * parts} is needed"
        )


def _uniforms(bits: np.random.Philox) -> Iterator[float]:
    """Uniform in (0, 1), 53 bits each."""
    while True:
        yield ((int(bits.random_raw()) >> 11) + 0.5) * 2.0**-53
