"""Which blocks' outputs a caller requests."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig


def block_numbers(cfg: ModelConfig, layers: int | Sequence[int] | None) -> tuple[int, ...]:
    """Indices of blocks from 0, in ascending order: of `layers`, negative ones from the end, or of
    the last `layers` where it is one number; None: of none.

    Raises UserError for a block that the model does not have, for one that is named twice, and for
    anything but integers.
    """
    if layers is None:
        return ()
    numbers = _numbers(layers)
    if isinstance(numbers, int):
        if not 0 < numbers <= cfg.depth:
            one = f"; layers=({numbers},) is one block" if numbers <= 0 else ""
            raise UserError(
                f"layers={numbers}: the last 1 to {cfg.depth} blocks can be requested{one}"
            )
        return tuple(range(cfg.depth - numbers, cfg.depth))
    wrong = [i for i in numbers if not -cfg.depth <= i < cfg.depth]
    if wrong:
        raise UserError(f"layers has {wrong[0]}: this model's blocks are 0 to {cfg.depth - 1}")
    found = sorted({i % cfg.depth for i in numbers})
    if len(found) != len(numbers):
        raise UserError(f"layers={numbers} names a block twice")
    return tuple(found)


def _numbers(layers: int | Sequence[int]) -> int | tuple[int, ...]:
    """One number, or several, as Python's. Raises UserError for anything else."""
    try:
        if isinstance(layers, bool | str):
            raise TypeError
        if isinstance(layers, Iterable):
            return tuple(map(operator.index, layers))
        return operator.index(layers)
    except TypeError:
        raise UserError(f"layers is a number of blocks, or their indices, not {layers!r}") from None
