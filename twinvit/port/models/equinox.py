"""Equinox modules: alone, or with the state that `eqx.nn.make_with_state` made."""

from __future__ import annotations

import inspect
from typing import Any

import jax

from twinvit.port.models import pytree
from twinvit.port.models.base import Mode, Pure, called, flattened, is_of


def accepts(port: Any) -> bool:
    module = port[0] if _has_state(port) else port
    return callable(module) and is_of(module, "equinox")


def pure(port: Any, mode: Mode) -> Pure:
    """A module without state that takes no `key` decides about dropout itself and keeps its own
    mode."""
    import equinox

    module, state = port if _has_state(port) else (port, None)
    if mode.train or state is not None or not _draws_itself(module):
        module = equinox.nn.inference_mode(module, value=not mode.train)
    return pytree.pure(module, mode) if state is None else _with_state(module, state, mode)


def _with_state(module: Any, state: Any, mode: Mode) -> Pure:
    """`module(*inputs, state)` returns the output and a new state."""
    leaves, names, structure = flattened((module, state))
    arrays = pytree.arrays_of(leaves)

    def both(ls: Any, *xs: Any) -> Any:
        model, before = jax.tree_util.tree_unflatten(structure, pytree.filled(leaves, arrays, ls))
        return called(model, mode, *xs, before)

    def batched(ls: Any, *xs: Any) -> Any:
        model, before = jax.tree_util.tree_unflatten(structure, pytree.filled(leaves, arrays, ls))
        one = [None if i == len(xs) else 0 for i in range(len(xs) + 1)]
        run = jax.vmap(
            lambda *a: called(model, mode, *a), in_axes=one, out_axes=(0, None), axis_name="batch"
        )
        return run(*xs, before)

    def outputs(call: Any) -> Any:
        return call if mode.train else lambda ls, *xs: call(ls, *xs)[0]

    return Pure(
        outputs(both),
        [leaves[i] for i in arrays],
        [names[i] for i in arrays],
        "pytree",
        stateful=mode.train,
        batched=outputs(batched),
    )


def _has_state(port: Any) -> bool:
    pair = isinstance(port, tuple) and len(port) == 2
    return pair and type(port[1]).__name__ == "State" and is_of(port[1], "equinox")


def _draws_itself(module: Any) -> bool:
    """True for a module that takes no key: it decides about dropout itself."""
    try:
        return "key" not in inspect.signature(module).parameters
    except (TypeError, ValueError):
        return False
