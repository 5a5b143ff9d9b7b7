"""(transformed, params) of Haiku: an `apply` that takes the parameters first."""

from __future__ import annotations

import inspect
from typing import Any

import jax

from twinvit.port.models.base import Mode, Pure, flattened


def accepts(port: Any) -> bool:
    return isinstance(port, tuple) and len(port) == 2 and hasattr(port[0], "apply")


def pure(port: tuple[Any, Any], mode: Mode) -> Pure:
    """`apply(params, rng, *inputs)` is called without a key, `apply(params, *inputs)` as it is."""
    transformed, params = port
    leaves, names, structure = flattened(params)
    rng = (None,) if "rng" in inspect.signature(transformed.apply).parameters else ()

    def call(ls: Any, *xs: Any) -> Any:
        return transformed.apply(jax.tree_util.tree_unflatten(structure, ls), *rng, *xs)

    return Pure(call, leaves, names, "haiku")
