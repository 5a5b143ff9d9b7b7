"""The port's arrays: kept as they were given, and in float64 each time that one is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, overload

import jax
import numpy as np

from twinvit.port.record import jax_types
from twinvit.port.record.jax_interpreter import Deferred


class PortLeaves(Sequence[Any]):
    """A port's arrays in order, those of floating-point numbers in float64.

    A copy of all of them in float64 would be twice a model in float32; each is widened where it is
    read, and not kept.
    """

    def __init__(self, given: Sequence[Any]) -> None:
        self._kept = [_kept(x) for x in given]

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, k: int) -> Any: ...
    @overload
    def __getitem__(self, k: slice) -> list[Any]: ...
    def __getitem__(self, k: int | slice) -> Any:
        if isinstance(k, slice):
            return [jax_types.widen(x) for x in self._kept[k]]
        return jax_types.widen(self._kept[k])

    def __iter__(self) -> Iterator[Any]:
        return (jax_types.widen(x) for x in self._kept)

    def __setitem__(self, k: int, value: Any) -> None:
        self._kept[k] = _kept(value)

    def kept(self, k: int) -> Any:
        """An array in the type that it is kept in."""
        return self._kept[k]

    def is_real(self, k: int) -> bool:
        """True for an array of real floating-point numbers."""
        x = self._kept[k]
        return isinstance(x, np.ndarray) and bool(jax_types.wide(x.dtype) == np.float64)

    def numbers(self) -> int:
        """How many numbers all of them hold together."""
        return sum(int(np.size(x)) for x in self._kept)

    def replaced(self, others: Mapping[int, Any]) -> PortLeaves:
        """The same with others in some places."""
        return PortLeaves([others.get(k, x) for k, x in enumerate(self._kept)])

    def arguments(self) -> list[Any]:
        """What a program is evaluated with: each array is widened where an equation reads it."""
        return [Deferred(partial(jax_types.widen, x)) if _narrow(x) else x for x in self._kept]

    def shapes(self) -> list[Any]:
        """What a program is traced with: shapes and types in place of arrays that are widened."""
        return [
            jax.ShapeDtypeStruct(x.shape, jax_types.wide(x.dtype)) if _narrow(x) else x
            for x in self._kept
        ]


def _kept(x: Any) -> Any:
    dtype = getattr(x, "dtype", None)
    plain = dtype is None or jax_types.extended(dtype) or isinstance(x, float)
    return x if plain else np.asarray(x)


def _narrow(x: Any) -> bool:
    return isinstance(x, np.ndarray) and jax_types.is_narrow(x.dtype)
