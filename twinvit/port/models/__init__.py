"""Ports as pure functions of their arrays: one adapter for each kind of model."""

from __future__ import annotations

from typing import Any

from twinvit.port.errors import PortError
from twinvit.port.models import equinox, function, haiku, keras, linen, nnx, pytree, recorded
from twinvit.port.models.base import Function, Mode, Pure

__all__ = ["Function", "Mode", "Pure", "pure"]

ADAPTERS = (recorded, function, linen, equinox, haiku, nnx, keras, pytree)
"""Modules with `accepts(port)` and `pure(port, mode)`; the first that accepts a port is used."""


def pure(port: Any, *, train: bool = False, evaluate: bool = False) -> Pure:
    """A port as a pure function of its leaves. Raises PortError for what it cannot call.

    A module is run in the mode that it is in, unless `train` or `evaluate` request one.
    """
    for adapter in ADAPTERS:
        if adapter.accepts(port):
            return adapter.pure(port, Mode(train, evaluate))
    raise PortError(
        f"the port is a {type(port).__name__}, which cannot be "
        "called; give an nnx.Module, (linen_module, variables), (equinox_module, state), a Keras "
        "model, a callable pytree or port.Function(fn, params)"
    )
