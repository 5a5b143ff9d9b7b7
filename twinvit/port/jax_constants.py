"""NumPy arrays in a port's code, in the type of whoever asks for them.

JAX remembers what it has made of a NumPy array, float32 or float64, without the setting of 64-bit
types (seen in 0.10.2). A table of float64 that a port was run with is float32 in a recording in
float64 then, and a port that was recorded can no longer be run: its table stays float64. Here JAX
makes it anew each time.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np


@functools.cache
def forget_types() -> None:
    """Have JAX convert each NumPy array by the setting in force, in this process from now on.

    It stays so: the models are run after a comparison, too. Without effect on a JAX that does not
    have these parts.
    """
    try:
        from jax._src import dtypes, literals

        typed, register = literals.TypedNdArray, dtypes.register_canonicalize_value_handler
        check = dtypes.check_valid_dtype
    except (ImportError, AttributeError):
        return

    def convert(x: np.ndarray) -> Any:
        if isinstance(x, typed):  # its type was chosen already
            return x
        check(x.dtype)
        return typed(np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype)))

    register(np.ndarray, convert)
