"""The dtypes that a program's values have as it runs, where it is computed in float64.

A value is identified by its elements, and may exist in several dtypes: a product in float32 that is
converted to bfloat16 is held in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

Types = frozenset[str]
"""Names of floating-point types, "bfloat16"."""


@dataclass(frozen=True)
class Rounding:
    """One value that a program rounds to a narrower type as it runs.

    Attributes:
        value: its id in the recording.
        dtype: the type that it is rounded to.
        inner: the innermost location, which may be within a library, "linear.py:80".
        where: the user's location, "model.py:31".
        users: the operations that take the result, where the recording has none that makes it.
    """

    value: int
    dtype: str
    inner: str
    where: str
    users: tuple[int, ...] = ()


@dataclass
class OwnTypes:
    """What is known of a program's types as it runs.

    Attributes:
        held: by value, the types that it is held in.
        roundings: the values that it rounds to a narrower type, in order.
    """

    held: dict[int, Types] = field(default_factory=dict)
    roundings: list[Rounding] = field(default_factory=list)

    def add(self, value: int, dtypes: Iterable[str]) -> None:
        self.held[value] = self.held.get(value, frozenset()) | frozenset(dtypes)


_DIGITS = {"bfloat16": 7, "float16": 10, "float32": 23, "complex64": 23}
_DIGITS |= {"float64": 52, "complex128": 52}


def digits(dtype: str) -> int:
    """Binary digits of a floating-point type after the first; of a complex one those of a part."""
    if dtype in _DIGITS:
        return _DIGITS[dtype]
    import ml_dtypes  # which PyTorch alone does not bring

    return int(ml_dtypes.finfo(np.dtype(getattr(ml_dtypes, dtype, dtype))).nmant)


def as_narrow(dtypes: Iterable[str], dtype: str) -> bool:
    """True if one of these types holds as few digits as this one, or fewer."""
    most = digits(dtype)
    return any(digits(d) <= most for d in dtypes)


def narrowest(held: Mapping[int, Types]) -> Types:
    """All types that any value of a program is held in."""
    return frozenset(d for dtypes in held.values() for d in dtypes)
