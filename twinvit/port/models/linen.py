"""(linen_module, variables) of Flax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from twinvit.port.models.base import Mode, Pure, flattened, mode_arguments


def accepts(port: Any) -> bool:
    pair = isinstance(port, tuple) and len(port) == 2 and hasattr(port[0], "apply")
    return pair and callable(port[0]) and hasattr(port[0], "scope")


def pure(port: tuple[Any, Any], mode: Mode) -> Pure:
    """In train mode its collections but for "params" are its state."""
    module, variables = port
    leaves, names, structure = flattened(variables)
    collections = variables if isinstance(variables, Mapping) else ()
    mutable = [k for k in collections if k != "params"] if mode.train else []
    extra = mode_arguments(type(module).__call__, mode)

    def call(ls: Any, *xs: Any) -> Any:
        state = {"mutable": mutable} if mutable else {}
        return module.apply(jax.tree_util.tree_unflatten(structure, ls), *xs, **state, **extra)

    return Pure(call, leaves, names, "linen", stateful=bool(mutable))
