"""Floating-point dtypes of a JAX program, and those that its values are computed in."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from twinvit.port.record.closed_forms import unrounded


def is_narrow(dtype: Any) -> bool:
    """True for floating-point types narrower than float64 (complex: than complex128)."""
    try:
        return np.dtype(dtype) != wide(dtype)
    except TypeError:
        return False


def wide(dtype: Any) -> np.dtype:
    """The type that values of a floating-point type are computed in; any other type itself."""
    if jax.dtypes.issubdtype(dtype, np.complexfloating):
        return np.dtype(np.complex128)
    return np.dtype(np.float64 if jax.dtypes.issubdtype(dtype, np.floating) else dtype)


def widen(x: Any) -> Any:
    """A floating-point array in float64 (complex: complex128); everything else as it is (PRNG
    keys among it)."""
    dtype = getattr(x, "dtype", None)
    if dtype is None or extended(dtype) or isinstance(x, float):
        return x
    array = np.asarray(x)
    return array.astype(wide(array.dtype), copy=False)


def literal(value: Any) -> Any:
    """A literal in float64: the number that was written where float32 has rounded it."""
    array = np.asarray(value)
    if array.dtype == np.float32 and array.ndim == 0 and np.isfinite(array):
        return unrounded(array[()])
    return widen(array)


def is_float(x: Any) -> bool:
    """True for real and complex floating-point arrays."""
    dtype = getattr(x, "dtype", None)
    return dtype is not None and not extended(dtype) and jax.dtypes.issubdtype(dtype, np.inexact)


def extended(dtype: Any) -> bool:
    return dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.extended)


def kind(dtype: Any) -> str:
    """Types of one kind differ by their width: "f", "i", "u", "c", "b"; others are themselves."""
    for group, name in ((np.floating, "f"), (np.complexfloating, "c"), (np.integer, "i")):
        if jax.dtypes.issubdtype(dtype, group):
            return name
    return str(dtype)


def rounds_to(mine: Any, theirs: Any) -> bool:
    """True if numbers are, rounded to the type of the others, these, element by element."""
    a, b = np.asarray(mine), np.asarray(theirs)
    if kind(a.dtype) != kind(b.dtype):
        return False
    with np.errstate(over="ignore"):
        rounded = a.astype(b.dtype)
    return bool(np.array_equal(rounded, b, equal_nan=kind(b.dtype) in "fc"))
