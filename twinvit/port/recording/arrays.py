"""Arrays of a recording: those to be written, and those that were read."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from twinvit.port.errors import PortError

PLAIN = frozenset(
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split()
)
"""Types that a file of safetensors holds as they are."""
PARTS = {"complex64": "float32", "complex128": "float64"}
"""Complex types are held as two numbers along a last axis of their own."""
BITS = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}
"""Types that NumPy lacks are held as the bits of their values."""
AXES = 32
NUMBERS = 1 << 40


class Written:
    """Arrays to be written, each once; `add` gives the number that an array is read by."""

    def __init__(self) -> None:
        self.described: list[list[Any]] = []
        self.stored: dict[str, np.ndarray] = {}
        self._known: dict[tuple[str, tuple[int, ...], bytes], int] = {}

    def add(self, array: Any, dtype: str = "") -> int:
        """Add an array, or a PyTorch tensor on the CPU. With `dtype` it holds that type's bits.

        Raises:
            TypeError: of a type that no file holds.
        """
        if hasattr(array, "untyped_storage"):
            array, dtype = _of_torch(array)
        array = np.asarray(array)
        name = dtype or array.dtype.name
        kept = _stored(array, name)
        key = (name, array.shape, hashlib.sha256(kept.tobytes()).digest())
        if key not in self._known:
            self._known[key] = len(self.described)
            self.stored[str(len(self.described))] = kept
            self.described.append([name, list(array.shape)])
        return self._known[key]


def _of_torch(tensor: Any) -> tuple[np.ndarray, str]:
    name = str(tensor.dtype).removeprefix("torch.")
    if name in BITS:
        import torch

        tensor = tensor.contiguous().view(getattr(torch, BITS[name]))
    return tensor.contiguous().numpy(), name


def _stored(array: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(array, order="C")
    if name in PARTS:
        return array.reshape(*array.shape, 1).view(PARTS[name])
    if name in BITS:
        return array.view(BITS[name])
    if name not in PLAIN:
        raise TypeError(f"an array of {name}")
    return array


class Read:
    """The arrays of a recording, each read when it is requested."""

    def __init__(self, described: Any, stored: Mapping[str, np.ndarray], path: Any) -> None:
        if not isinstance(described, list) or len(described) != len(stored):
            raise PortError(
                f"{path} is damaged: it has other arrays than it names; record it again"
            )
        self._described, self._stored, self.path = described, stored, path

    def __getitem__(self, number: int) -> np.ndarray:
        """An array in its own type. Raises PortError where it is not what the recording says."""
        try:
            name, shape = self._described[number]
            array = self._stored[str(number)]
            self._check(name, shape)
            if name in PARTS:
                array = array.view(name)
            elif name in BITS:
                import ml_dtypes

                array = array.view(getattr(ml_dtypes, name))
            if array.dtype.name != name or array.size != math.prod(shape):
                raise ValueError(name)
            return array.reshape(shape)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise PortError(
                f"{self.path} is damaged: array {number} is not what it says; record it again"
            ) from error

    def _check(self, name: Any, shape: Any) -> None:
        whole = all(type(n) is int and n >= 0 for n in shape)
        if name not in PLAIN | PARTS.keys() | BITS.keys() or not whole or len(shape) > AXES:
            raise ValueError(name)
        if math.prod(shape) > NUMBERS:
            raise ValueError(shape)
