"""The location of an operation in the user's code: the same rule for both frameworks.

A model's line is the innermost one that is neither this package's, nor the framework's, nor a
library's of layers and helpers: what a user can change. A model that is put together from layers
alone has no line of its own; its operations are named by their layer.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterable

_HERE = os.path.dirname(os.path.abspath(__file__))
_LIBRARIES = (
    "torch", "jax", "jaxlib", "flax", "equinox", "haiku", "keras", "optax", "einops", "jaxtyping",
    "beartype", "functools", "contextlib",
)  # fmt: skip
# Published models themselves: the rest of transformers is what they share.
_MODELS = (("transformers", "models"),)

Frame = tuple[str, int, str]
"""A file, a line and a function's name."""


def user_place(frames: Iterable[Frame]) -> str:
    """The first of these frames, innermost first, that is the user's, "model.py:12"; "" if none.

    This package's frames around the model's call end the search: beyond is the caller.
    """
    for name, line, function in frames:
        if name.startswith(_HERE):
            if function not in _BETWEEN:
                return ""
        elif not is_library(name):
            return f"{short_path(name)}:{line}"
    return ""


_BETWEEN = frozenset(
    (
        "__torch_dispatch__",
        "__torch_function__",
        "attention",
        "convert",
        "function_applied",
        "function_told",
    )
)
"""This package's functions that a framework calls while the model runs."""


@functools.cache
def is_library(path: str) -> bool:
    """True for a file of a library of layers or helpers, and for code without a file."""
    if path.startswith("<"):
        return True
    return any(
        path.startswith(root) and not any(path.startswith(models) for models in kept)
        for root, kept in _roots()
    )


@functools.cache
def _roots() -> list[tuple[str, tuple[str, ...]]]:
    """The libraries' folders or files, each with folders in it that hold models."""
    kept: dict[str, list[str]] = {}
    for name, folder in _MODELS:
        kept.setdefault(name, []).append(folder)
    found = []
    for name in (*_LIBRARIES, *kept):
        root = _root(name)
        if root:
            folders = tuple(os.path.join(root, f) + os.sep for f in kept.get(name, ()))
            found.append((root, folders))
    return found


def _root(name: str) -> str:
    """A package's folder or a module's file, found without importing it; "" where there is none."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return ""
    if spec is None:
        return ""
    if spec.submodule_search_locations:
        return os.path.join(os.path.abspath(next(iter(spec.submodule_search_locations))), "")
    return spec.origin or ""


def short_path(path: str) -> str:
    """A file's path without what is the same for all files."""
    for mark in ("/site-packages/", "/dist-packages/"):
        if mark in path:
            return path.split(mark)[-1]
    cwd = os.getcwd() + os.sep
    return path[len(cwd) :] if path.startswith(cwd) else path
