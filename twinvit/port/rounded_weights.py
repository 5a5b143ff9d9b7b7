"""Weights that one side holds in a narrower type: the other's are rounded alike, and it is said."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from twinvit.port import record_jax
from twinvit.port.pair import Pair, shortened

_TYPES = {
    torch.float64: np.dtype(np.float64),
    torch.float32: np.dtype(np.float32),
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(jnp.bfloat16),
}
_Arrays = Mapping[str, tuple[np.ndarray, np.dtype]]
"""Arrays in float64 by name, each with the type that it is held in."""


def round_alike(pair: Pair) -> None:
    """Round the weights of one side that are the other's in a narrower type, and note it.

    What is rounded: an array whose numbers, once rounded, are all among those that the other side
    holds in that type, though they are not before. Neither model that was given is changed.
    """
    model = pair.torch_model
    if not isinstance(model, torch.nn.Module):
        return
    tensors = {
        name: t
        for name, t in [*model.named_parameters(), *model.named_buffers()]
        if t.dtype in _TYPES
    }
    mine_types = {_TYPES[t.dtype] for t in tensors.values()}
    floats = {
        name: leaf
        for name, leaf in zip(pair.pure.names, pair.pure.leaves)
        if getattr(leaf, "dtype", None) in _TYPES.values()
    }
    if {np.dtype(x.dtype) for x in floats.values()} <= mine_types and len(mine_types) < 2:
        return
    mine: _Arrays = {
        n: (t.detach().cpu().double().numpy(), _TYPES[t.dtype]) for n, t in tensors.items()
    }
    theirs: _Arrays = {
        n: (np.asarray(x).astype(np.float64), np.dtype(x.dtype)) for n, x in floats.items()
    }
    _round_reference(pair, _rounded(mine, theirs))
    _round_port(pair, _rounded(theirs, mine))


def _round_reference(pair: Pair, rounded: Mapping[str, tuple[np.ndarray, np.dtype]]) -> None:
    if not rounded:
        return
    pair.torch_model = copy.deepcopy(pair.torch_model)
    tensors = dict(pair.torch_model.named_parameters()) | dict(pair.torch_model.named_buffers())
    for name, (value, _) in rounded.items():
        tensors[name].data.copy_(torch.from_numpy(value))
    pair.notes.append(_note("reference", "port", rounded))


def _round_port(pair: Pair, rounded: Mapping[str, tuple[np.ndarray, np.dtype]]) -> None:
    if not rounded:
        return
    for i, name in enumerate(pair.pure.names):
        if name in rounded:
            pair.leaves[i] = record_jax.widen(rounded[name][0])
    pair.notes.append(_note("port", "reference", rounded))


def _note(side: str, other: str, rounded: Mapping[str, tuple[np.ndarray, np.dtype]]) -> str:
    types = " and ".join(sorted({dtype.name for _, dtype in rounded.values()}))
    return (
        f"{len(rounded)} weights of the {side} were rounded to {types}, as the {other} holds them "
        f"(equal after rounding): {shortened(list(rounded))}"
    )


def _rounded(arrays: _Arrays, others: _Arrays) -> dict[str, tuple[np.ndarray, np.dtype]]:
    """The arrays that are among `others` only once they are rounded to the type of those."""
    found: dict[str, tuple[np.ndarray, np.dtype]] = {}
    exact = _Numbers(x for x, _ in others.values())
    for dtype in dict.fromkeys(d for _, d in others.values()):
        held = _Numbers(x for x, d in others.values() if d == dtype)
        for name, (value, own) in arrays.items():
            if name in found or dtype.itemsize >= own.itemsize or not value.size:
                continue
            with np.errstate(over="ignore"):
                narrow = value.astype(dtype).astype(np.float64)
            if np.array_equal(narrow, value, equal_nan=True) or exact.hold(value):
                continue
            if held.hold(narrow):
                found[name] = (narrow, dtype)
    return found


class _Numbers:
    """The numbers of arrays, each as often as it occurs, in whatever order and shape."""

    def __init__(self, arrays: Iterable[np.ndarray]) -> None:
        flat = [x.reshape(-1) for x in arrays]
        values: Any = np.concatenate(flat) if flat else np.zeros(0)
        self.values, self.counts = np.unique(values, return_counts=True)

    def hold(self, array: np.ndarray) -> bool:
        """Whether every number of the array is there, as often as in the array."""
        if not self.values.size:
            return False
        values, counts = np.unique(array, return_counts=True)
        at = np.searchsorted(self.values, values).clip(0, self.values.size - 1)
        return bool((self.values[at] == values).all() and (self.counts[at] >= counts).all())
