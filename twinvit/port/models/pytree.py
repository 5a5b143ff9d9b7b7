"""A callable pytree, and a plain function without parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from twinvit.port.models.base import Mode, Pure, called, flattened


def accepts(port: Any) -> bool:
    return callable(port)


def pure(port: Any, mode: Mode) -> Pure:
    leaves, names, structure = flattened(port)
    arrays = arrays_of(leaves)
    if not arrays and len(leaves) == 1:  # a plain function
        return Pure(lambda ls, *xs: called(port, mode, *xs), [], [], "function")

    def call(ls: Any, *xs: Any) -> Any:
        full = jax.tree_util.tree_unflatten(structure, filled(leaves, arrays, ls))
        return called(full, mode, *xs)

    def batched(ls: Any, *xs: Any) -> Any:
        return jax.vmap(lambda *x: call(ls, *x))(*xs)

    return Pure(
        call, [leaves[i] for i in arrays], [names[i] for i in arrays], "pytree", batched=batched
    )


def arrays_of(leaves: Sequence[Any]) -> list[int]:
    """Which leaves are arrays; others are functions, names and settings."""
    return [i for i, x in enumerate(leaves) if isinstance(x, jax.Array | np.ndarray)]


def filled(leaves: Sequence[Any], places: Sequence[int], values: Sequence[Any]) -> list[Any]:
    """The leaves with `values` at these places."""
    full = list(leaves)
    for i, x in zip(places, values):
        full[i] = x
    return full
