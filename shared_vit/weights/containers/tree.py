"""Nested maps of arrays, as Flax stores its parameters, to names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shared_vit.errors import UserError
from shared_vit.files import check_name
from shared_vit.weights.choice import Said, Which, chosen
from shared_vit.weights.containers import check_count
from shared_vit.weights.lazy import Arrays, LazyArray

_VALUE = re.compile(r"/(?:value|raw_value)$")  # of NNX's variables
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def flattened(
    tree: Mapping[Any, Any], which: Which | None, path: Path, said: Said
) -> dict[str, LazyArray]:
    """`{name: array}` of a tree, names joined by `/`; of a training state the parameters alone.

    Raises UserError where there are no arrays.
    """
    content = chosen(tree, lambda v: isinstance(v, np.ndarray), which, path, said, modules=True)
    found: dict[str, LazyArray] = {}
    _collect(content, "", found)
    check_count(path, len(found))
    if not found:
        raise UserError(f"{path} holds no arrays")
    for name in found:
        check_name(path, name)
    return found


def torch_names(arrays: Arrays) -> Arrays:
    """Arrays of a tree of Flax's modules under torch's names, in torch's layouts: `a/b/kernel`
    [in, out] or [H, W, in, out] becomes `a.b.weight`."""
    out: dict[str, LazyArray | np.ndarray] = {}
    for name, array in arrays.items():
        *modules, leaf = name.split("/")
        axes = None
        if leaf == "kernel" and len(array.shape) in (2, 4):
            axes = (1, 0) if len(array.shape) == 2 else (3, 2, 0, 1)
        out[".".join([*modules, _LEAVES.get(leaf, leaf)])] = _turned(array, axes)
    return out


def _turned(array: LazyArray | np.ndarray, axes: tuple[int, ...] | None) -> LazyArray | np.ndarray:
    if axes is None:
        return array
    shape = tuple(array.shape[axis] for axis in axes)
    return LazyArray(shape, array.dtype, lambda: np.asarray(array).transpose(axes))


def _collect(value: Any, name: str, found: dict[str, LazyArray]) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _collect(inner, f"{name}/{key}" if name else str(key), found)
    elif isinstance(value, np.ndarray) and value.ndim:
        found[_VALUE.sub("", name)] = _lazy(value)


def _lazy(value: np.ndarray) -> LazyArray:
    return LazyArray(value.shape, value.dtype, lambda: value)
