"""Scaled dot-product attention step by step, so that each step can be compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Rows:
    """Whether each attention of a recording zeroed rows that are completely masked, in order; one
    that did in an earlier recording does again, also where no row is."""

    def __init__(self, before: Sequence[bool] = ()) -> None:
        self.before = before
        self.now: list[bool] = []

    def zeroed(self, any_row: bool) -> bool:
        k = len(self.now)
        self.now.append(any_row or (k < len(self.before) and self.before[k]))
        return self.now[k]


ROWS: ContextVar[Rows | None] = ContextVar("ROWS", default=None)


def _zeroed(masked: torch.Tensor) -> bool:
    any_row = bool(masked.all(-1).any().numpy())  # not read by the model
    rows = ROWS.get()
    return any_row if rows is None else rows.zeroed(any_row)


class Attention(TorchFunctionMode):
    """Computes scaled dot-product attention step by step, so that each step can be compared."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._nn.scaled_dot_product_attention:
            return attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`scaled_dot_product_attention` as separate operations; a fully masked row gives zeros, as
    there."""
    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
        value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
    scores = (query @ key.transpose(-2, -1)) * (
        1 / math.sqrt(query.size(-1)) if scale is None else scale
    )
    masked = None
    if is_causal:
        masked = (
            torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
            .tril()
            .logical_not()
        )
        scores = scores.masked_fill(masked, -math.inf)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            masked = attn_mask.logical_not()
            scores = scores.masked_fill(masked, -math.inf)
        else:
            scores = scores + attn_mask
    weights = scores.softmax(-1)
    if masked is not None and _zeroed(masked):
        weights = weights.masked_fill(masked.all(-1, keepdim=True), 0.0)
    if dropout_p:
        weights = torch.dropout(weights, dropout_p, True)
    return weights @ value
