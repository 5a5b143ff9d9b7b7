"""An `nnx.Module` of Flax."""

from __future__ import annotations

import sys
from typing import Any

import jax

from twinvit.port.models.base import Mode, Pure, called, flattened


def accepts(port: Any) -> bool:
    nnx = sys.modules.get("flax.nnx")  # whoever has such a module has imported it
    return nnx is not None and isinstance(port, nnx.Module)


def pure(port: Any, mode: Mode) -> Pure:
    """In train mode its whole state is returned, too."""
    from flax import nnx

    graphdef, state = nnx.split(port)
    leaves, names, structure = flattened(nnx.to_pure_dict(state))

    def call(ls: Any, *xs: Any) -> Any:
        full = jax.tree.map(lambda x: x, state)
        nnx.replace_by_pure_dict(full, jax.tree_util.tree_unflatten(structure, ls))
        model = nnx.merge(graphdef, full)
        if mode.train:
            model.train()
        elif mode.evaluate:
            model.eval()
        out = called(model, mode, *xs)
        return (out, nnx.to_pure_dict(nnx.split(model)[1])) if mode.train else out

    return Pure(call, leaves, names, "nnx", stateful=mode.train)
