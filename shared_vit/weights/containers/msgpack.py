"""Flax's msgpack files (`flax.serialization`): nested maps of arrays, read without Flax."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from shared_vit.errors import UserError
from shared_vit.files import read_limited, reason
from shared_vit.weights.choice import Said, Which
from shared_vit.weights.containers.tree import flattened
from shared_vit.weights.lazy import LazyArray

_MOST = 1 << 36  # bytes
_NDARRAY, _SCALAR = 1, 3  # Flax's codes of its msgpack extension types
_CHUNKED = "__msgpack_chunked_array__"


def is_msgpack(head: bytes) -> bool:
    """Whether a file begins as a map of msgpack does."""
    return bool(head) and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF))


def open_msgpack(path: Path, which: Which | None, said: Said) -> dict[str, LazyArray]:
    """`{name: array}` of a file, names joined by `/`; of a training state its parameters.

    The file is read as a whole. Raises UserError for one that is damaged or holds no arrays.
    """
    try:
        import msgpack
    except ImportError as error:
        raise UserError(f"{path} is of msgpack, which reads it: pip install msgpack") from error
    data = read_limited(path, _MOST)
    try:
        tree = msgpack.unpackb(
            data, ext_hook=lambda code, part: _array(msgpack, code, part), strict_map_key=False
        )
    except Exception as error:  # its errors have several bases
        raise UserError(f"{path} is no intact file of Flax's: {reason(error)}") from error
    if not isinstance(tree, Mapping):
        raise UserError(f"{path} is a {type(tree).__name__} of msgpack, and no map of arrays")
    return flattened(_joined(tree), which, path, said)


def _array(msgpack: Any, code: int, data: bytes) -> Any:
    if code not in (_NDARRAY, _SCALAR):
        return None
    shape, name, content = msgpack.unpackb(data)
    name = name.decode() if isinstance(name, bytes) else name
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"an array of {shape} {name} in {len(content)} bytes")
    return np.frombuffer(content, dtype).reshape(shape)


def _joined(tree: Mapping[Any, Any]) -> dict[Any, Any]:
    """The tree with arrays in place of the chunks in which Flax stores those above 1 GiB."""
    out: dict[Any, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value.get(_CHUNKED):
            parts = [value["chunks"][str(i)] for i in range(len(value["chunks"]))]
            shape = [value["shape"][str(i)] for i in range(len(value["shape"]))]
            out[key] = np.concatenate(parts).reshape(shape)
        else:
            out[key] = _joined(value) if isinstance(value, Mapping) else value
    return out
