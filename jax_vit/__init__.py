"""The Vision Transformer in JAX and Flax NNX, twin of `torch_vit`."""

import importlib
from typing import Any

_HOME = dict.fromkeys(("create", "from_arrays", "load", "save", "to_arrays"), "bridge") | {
    "VisionTransformer": "model"
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    # Late, so that `--help` does not wait for the framework.
    if name in _HOME:
        return getattr(importlib.import_module(f"jax_vit.{_HOME[name]}"), name)
    raise AttributeError(f"module 'jax_vit' has no attribute {name!r}")
