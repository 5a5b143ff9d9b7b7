"""How far apart the results of a step by two sides are."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from shared_vit.errors import UserError, some
from twinvit.lockstep.limits import HUGE, WHOLE, Arrays


def not_finite(
    a: Arrays, b: Arrays, found: Mapping[str, float]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The quantities with a number that is finite on one side alone, and on neither.

    found: their gaps. A number that is not finite makes its difference so, and the gap infinite.
    """
    apart, vague, arrays = [], [], False
    for name in a:
        if found[name] < HUGE:
            continue
        x, y = np.isfinite(a[name]), np.isfinite(b[name])
        if np.any(x != y):
            apart.append(name)
        elif not np.all(x):
            vague.append(name)
        else:
            continue
        arrays |= bool(np.ndim(a[name]))
    if arrays:
        (apart if any(np.ndim(a[n]) for n in apart) else vague).append(WHOLE)
    return tuple(apart), tuple(vague)


def is_zero(array: np.ndarray) -> bool:
    """Whether all values are zero; for most arrays the first that is not decides."""
    flat = np.ravel(array)
    return not (flat.size and flat[0]) and not np.any(flat)


def gaps(b: Arrays, a: Arrays, relative_to: Mapping[str, str] | None = None) -> dict[str, float]:
    """`{quantity: distance of b from a}`: scalars, `whole`, and each array.

    Relative L2 in float64; infinite where it is not a number. Raises UserError for other names or
    shapes.
    """
    relative_to = relative_to or {}
    if set(a) != set(b):
        raise UserError(f"the sides return other arrays: {some(sorted(set(a) ^ set(b)))}")
    scalars, squares, norms = {}, {}, {}
    for name in a:
        x, y = np.asarray(a[name], np.float64), np.asarray(b[name], np.float64)
        if x.shape != y.shape:
            raise UserError(f"{name} has shape {x.shape} on one side, {y.shape} on the other")
        if x.ndim == 0:
            size = abs(float(x))
            scale = max(1.0, size) if name == "loss" else size
            scalars[name] = _ratio(abs(float(x - y)), scale)
        else:
            x, difference = x.ravel(), (x - y).ravel()
            norms[name], squares[name] = float(x @ x), float(difference @ difference)
    found = {WHOLE: _ratio(math.sqrt(sum(squares.values())), math.sqrt(sum(norms.values())))}
    for name, square in squares.items():
        scale = norms[relative_to.get(name, name)]
        found[name] = _ratio(math.sqrt(square), math.sqrt(scale))
    return scalars | found


def _ratio(distance: float, scale: float) -> float:
    if distance == 0:
        return 0.0
    ratio = distance / scale if scale else math.inf
    return min(ratio, HUGE) if not math.isnan(ratio) else HUGE
