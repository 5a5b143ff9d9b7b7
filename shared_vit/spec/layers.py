"""Which blocks' outputs a caller asks for."""

from __future__ import annotations

from collections.abc import Sequence

from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig


def block_numbers(cfg: ModelConfig, layers: int | Sequence[int] | None) -> tuple[int, ...]:
    """Numbers of blocks from 0, in ascending order: of `layers`, negative ones from the end, or of
    the last `layers` where it is one number; None: of none.

    Raises UserError for a block that the model does not have, and for one that is named twice.
    """
    if layers is None:
        return ()
    if isinstance(layers, int):
        if not 0 < layers <= cfg.depth:
            raise UserError(f"layers={layers}: the last 1 to {cfg.depth} blocks can be asked for")
        return tuple(range(cfg.depth - layers, cfg.depth))
    wrong = [i for i in layers if not -cfg.depth <= i < cfg.depth]
    if wrong:
        raise UserError(f"layers has {wrong[0]}: this model's blocks are 0 to {cfg.depth - 1}")
    found = sorted({i % cfg.depth for i in layers})
    if len(found) != len(layers):
        raise UserError(f"layers={tuple(layers)} names a block twice")
    return tuple(found)
