"""The inputs that a model is called with, whichever framework it is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def split_inputs(inputs: Any) -> tuple[list[str], list[Any]]:
    """Names (none for positional inputs) and arrays; an array alone is the only input."""
    if isinstance(inputs, Mapping):
        return list(inputs), list(inputs.values())
    return [], [inputs] if hasattr(inputs, "shape") else list(inputs)


def float_type(x: Any) -> str:
    """The name of the type of an input's elements, "bfloat16"."""
    dtype = x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype
    return str(dtype).removeprefix("torch.")
