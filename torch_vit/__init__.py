"""The Vision Transformer in PyTorch, twin of `jax_vit`."""

import importlib
from typing import TYPE_CHECKING, Any

from shared_vit.weights import containers

if TYPE_CHECKING:  # what type checkers and the documentation read
    from torch_vit.bridge import create, from_arrays, load, save, to_arrays
    from torch_vit.model import VisionTransformer

__all__ = ["create", "from_arrays", "load", "save", "to_arrays", "VisionTransformer"]

_HOME = dict.fromkeys(__all__, "bridge") | {"VisionTransformer": "model"}


def __getattr__(name: str) -> Any:
    # Late, so that `--help` does not wait for the framework.
    if name in _HOME:
        return getattr(importlib.import_module(f"torch_vit.{_HOME[name]}"), name)
    raise AttributeError(f"module 'torch_vit' has no attribute {name!r}")


def pth_container() -> containers.Container:
    """The reader and writer of `.pth` files."""
    return importlib.import_module("torch_vit.pth").CONTAINER


containers.register("pth", pth_container)
