"""The number that a float32 constant is the rounding of.

A program traced in float32 holds `1 / math.sqrt(48)` as 0.14433756. What was written is a short
decimal number or a simple expression; one of these that rounds to exactly the constant is taken.
There are some 2 ** 23 float32 numbers between 1 and 2, and few thousand expressions here, so a
number that is none of them is seldom taken for one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

_BITS = 12  # numbers of so many binary digits are exact in every type that is used
_DIGITS = 6  # decimal numbers of so many are what was written
_INTEGER = 65536  # square roots of integers up to this one
_LOGARITHM = 10_000
_FRACTION = 64


def unrounded(value: Any) -> np.float64:
    """What a finite float32 number is the rounding of, in float64.

    Itself, if it has few binary digits or is the largest of its type; a decimal number of up to six
    digits; else a fraction, a square root of an integer or one over it, a multiple of pi, its
    square root, or a logarithm of an integer; else the shortest decimal number that rounds to it.
    """
    value = np.float32(value)
    mantissa = np.frexp(np.float64(value))[0] * 2**_BITS
    if mantissa == round(mantissa) or abs(value) == np.finfo(np.float32).max:
        return np.float64(value)
    decimal = str(value)
    if len(decimal.lower().split("e")[0].strip("-0").replace(".", "").strip("0")) <= _DIGITS:
        return np.float64(decimal)
    size = abs(float(value))
    sign = -1.0 if value < 0 else 1.0
    for candidate in _candidates(size):
        if np.float32(candidate) == np.float32(size):
            return np.float64(sign * candidate)
    return np.float64(decimal)


def _candidates(a: float) -> Iterator[float]:
    """Simple expressions near a positive number."""
    for unit in (1.0, math.pi, 1 / math.pi):
        for q in range(1, _FRACTION + 1):
            p = round(a / unit * q)
            if 1 <= p <= _FRACTION:
                yield p * unit / q
    for n in (round(a * a), round(1 / (a * a))):
        if 1 <= n <= _INTEGER:
            yield math.sqrt(n) if a >= 1 else 1 / math.sqrt(n)
    for unit in (math.pi, 1 / math.pi):
        for q in range(1, 17):
            p = round(a * a / unit * q)
            if 1 <= p <= 16:
                yield math.sqrt(p * unit / q)
    if a < math.log(_LOGARITHM) + 1:
        n = round(math.exp(a))
        if n > 1:
            yield from (math.log(n), math.log2(n), math.log10(n))
    for log in (math.log(2), math.log(10)):
        yield from (log, 1 / log)
