"""`Function(fn, params)`."""

from __future__ import annotations

from typing import Any

import jax

from twinvit.port.models.base import Function, Mode, Pure, called, flattened


def accepts(port: Any) -> bool:
    return isinstance(port, Function)


def pure(port: Function, mode: Mode) -> Pure:
    leaves, names, structure = flattened(port.params)

    def call(ls: Any, *xs: Any) -> Any:
        return called(port.fn, mode, jax.tree_util.tree_unflatten(structure, ls), *xs)

    return Pure(call, leaves, names, "function")
