"""A run's own update against the same update in float64, by value, in units in the last place.

The optimizer's map does not amplify rounding but where the first moment cancels, and there its
rounding is that of the moment before. So the rounding of each number is known without measuring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from shared_vit.run.state import TrainState
from shared_vit.spec.optimizers import EMA
from twinvit.lockstep import Measured

# Right updates are within a few units in the last place of the float64 one. But all gradients are
# scaled by their norm, a sum over all of them, which is rounded alike in each.
OWN_LIMIT = 64.0
# An update that changes the weights by no more than this many units in the last place tests
# nothing.
STILL = 16
HUGE = 1e308  # written for infinity, which JSON lacks
_FIRST = ("exp_avg", "momentum_buffer")  # what the parameters are updated along
_UNDER = 1e8  # Adam divides by at least 1e-8, and numbers below the dtype's smallest become zero


def own_update(
    step: int, twin: str, before: TrainState, own: TrainState, exact: TrainState, lr: float
) -> Measured:
    """How far the state after a twin's own step is from `exact`, in units in the last place of its
    dtype.

    before, own: states in the run's dtype. exact: the float64 update of `before` by the gradients
    that the step took. The gaps are, by array ("torch's own params.head.bias"), the largest
    distance of a number over its rounding; frozen arrays and the optimizer's counts are compared
    exactly.
    """
    names = list(next(iter(before.slots.values())))
    if not names:
        return Measured(step, {})
    info = np.finfo(own.params[names[0]].dtype)
    eps, tiny = float(info.eps), float(info.tiny)
    new = {slot: _flat(exact.slots[slot], names) for slot in before.slots}
    sums = {slot: _size(_flat(before.slots[slot], names), new[slot]) for slot in new}
    old, new["params"] = _flat(before.params, names), _flat(exact.params, names)
    first = next(s for s in _FIRST if s in before.slots)
    along = np.abs(new[first])
    np.maximum(along, tiny, out=along)
    np.divide(sums[first], along, out=along)
    along += 1
    moved = new["params"] - old
    np.abs(moved, out=moved)
    moved *= along
    moved += _size(old, new["params"])
    units = {"params": _rounding(moved, eps, tiny * (1 + _UNDER * lr))}
    units |= {slot: _rounding(size, eps, tiny) for slot, size in sums.items()}
    if EMA in units:  # it follows the parameters
        units[EMA] += units["params"]
    gaps: dict[str, float] = {}
    apart: list[str] = []
    vague: list[str] = []
    for slot, unit in units.items():
        theirs = own.params if slot == "params" else own.slots[slot]
        _note(f"{twin}'s own {slot}.", names, theirs, new[slot], unit, gaps, apart, vague)
    for name in set(own.params) - set(names):
        same = np.array_equal(own.params[name], before.params[name], equal_nan=True)
        gaps[f"{twin}'s own params.{name}"] = 0.0 if same else HUGE
    for name, value in own.scalars.items():
        gaps[f"{twin}'s own scalars.{name}"] = 0.0 if value == exact.scalars[name] else HUGE
    return Measured(step, gaps, apart=tuple(apart), vague=tuple(vague))


def movement(before: TrainState, after: TrainState) -> float:
    """|after - before| / |before| of all parameters together; infinite from zero, 0 where nothing
    moves."""
    far = size = 0.0
    for name, array in before.params.items():
        x = np.asarray(array, np.float64).ravel()
        d = np.asarray(after.params[name], np.float64).ravel() - x
        far, size = far + float(d @ d), size + float(x @ x)
    return float(np.sqrt(far / size)) if size else (HUGE if far else 0.0)


def _flat(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """float64 [all values]."""
    return np.concatenate([arrays[n].ravel() for n in names], dtype=np.float64)


def _size(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """|old| + |new|, written into `old`."""
    np.abs(old, out=old)
    old += np.abs(new)
    return old


def _rounding(size: np.ndarray, eps: float, least: float) -> np.ndarray:
    """eps size + least, written into `size`."""
    size *= eps
    size += least
    return size


def _note(
    prefix: str,
    names: Sequence[str],
    arrays: Mapping[str, np.ndarray],
    exact: np.ndarray,
    unit: np.ndarray,
    gaps: dict[str, float],
    apart: list[str],
    vague: list[str],
) -> None:
    """Add each array's largest distance over its rounding."""
    mine = _flat(arrays, names)
    with np.errstate(all="ignore"):
        ratio = np.subtract(mine, exact)
        np.abs(ratio, out=ratio)
        ratio /= unit
    ends = np.cumsum([arrays[n].size for n in names])
    largest = np.maximum.reduceat(ratio, [0, *ends[:-1].tolist()]) if ratio.size else ratio
    for name, value, end in zip(names, largest.tolist(), ends.tolist(), strict=True):
        gaps[prefix + name] = value if value < HUGE else HUGE
        if not value < np.inf:
            here = slice(end - arrays[name].size, end)
            ours, theirs = np.isfinite(mine[here]), np.isfinite(exact[here])
            (apart if (ours != theirs).any() else vague).append(prefix + name)
