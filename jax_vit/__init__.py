"""The Vision Transformer in JAX and Flax NNX, twin of `torch_vit`."""

import importlib
from typing import TYPE_CHECKING, Any

from shared_vit.weights import containers

if TYPE_CHECKING:  # what type checkers and the documentation read
    from jax_vit.bridge import create, from_arrays, load, save, to_arrays
    from jax_vit.model import VisionTransformer

__all__ = ["create", "from_arrays", "load", "save", "to_arrays", "VisionTransformer"]

_HOME = dict.fromkeys(__all__, "bridge") | {"VisionTransformer": "model"}


def __getattr__(name: str) -> Any:
    # Late, so that `--help` does not wait for the framework.
    if name in _HOME:
        return getattr(importlib.import_module(f"jax_vit.{_HOME[name]}"), name)
    raise AttributeError(f"module 'jax_vit' has no attribute {name!r}")


def orbax_container() -> containers.Container:
    """The reader of orbax's folders."""
    return importlib.import_module("jax_vit.orbax").CONTAINER


containers.register("orbax", orbax_container)
