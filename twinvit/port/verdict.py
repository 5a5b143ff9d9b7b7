"""When two arrays are the same: the arithmetic of every verdict, in NumPy alone.

Two programs of one function differ by rounding. Rounding is measured at each number (several runs
of the reference whose every result is changed by one unit in the last place), so each number is
judged by itself: what is large cannot hide what is small. NaN, +inf and -inf are compared kind by
kind.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

SAME, DIFFERENT, UNDECIDED = "same", "different", "undecided"

EPS = float(np.finfo(np.float64).eps)
FACTOR = 100.0  # right ports stay within 5 measured roundings
LEAST = 1e-13  # no tolerance (relative L2) is smaller
MOST = 1e-9  # and none is larger, whatever rounding was measured
UNJUDGED = 1e-10  # a number that rounding alone changes by more proves nothing
GARBAGE = 1e-15  # of an array's size: rounding below this is that of a zero
ENOUGH = 8  # different finite values that an array with others needs
MASK = 1e37  # the types' most negative numbers, by which masks are made
DWARFED = 1e-4  # the rest is at most this much of a constant that dwarfs it
CLUSTERS = 3  # so many different constants at most


@dataclass(frozen=True)
class Arithmetic:
    """What rounding is in the type that two arrays were computed in.

    Attributes:
        eps: one unit in the last place of 1.
        most: no number may be further off, relative to its scale, whatever rounding was measured.
        unjudged: a number that rounding alone changes by more of its scale proves nothing.
        garbage: rounding below this fraction of an array's size is that of a zero.
    """

    eps: float = EPS
    most: float = MOST
    unjudged: float = UNJUDGED
    garbage: float = GARBAGE


FLOAT64 = Arithmetic()
FLOAT32 = Arithmetic(eps=2.0**-23, most=1e-2, unjudged=1e-3, garbage=5e-7)


def tolerance(noise: float) -> float:
    """The relative L2 distance up to which a value with this measured noise is the same."""
    return max(LEAST, min(FACTOR * noise, MOST))


def kinds(x: np.ndarray) -> np.ndarray:
    """Of each element 0 (finite), 1 (NaN), 2 (+inf) or 3 (-inf); of complex ones 4 times that of
    the real part more; int8, of `x`'s shape."""
    x = np.asarray(x)
    if x.dtype.kind == "c":
        return 4 * kinds(x.real) + kinds(x.imag)
    result = np.zeros(x.shape, np.int8)
    if x.dtype.kind == "f":
        result[np.isnan(x)] = 1
        result[x == np.inf] = 2
        result[x == -np.inf] = 3
    return result


def dwarfing(x: np.ndarray) -> np.ndarray | None:
    """True where a constant that repeats dwarfs the rest of `x` (masks, padding); None if there is
    none. Elements that are not finite are not among them."""
    if x.dtype.kind == "f" and x.size and _is_spread(np.asarray(x).reshape(-1)):
        return None
    size = np.abs(x).reshape(-1)
    top = float(size.max()) if size.size else 0.0
    if not top < np.inf:
        size = np.where(size < np.inf, size, 0)
        top = float(size.max())
    if not top or _between(size, top):
        return None
    large = size >= 0.1 * top
    small = size[~large]
    if not small.size or small.max() > DWARFED * top or not small.any():
        return None
    values = np.sort(np.asarray(x).reshape(-1)[large].real)
    ends = np.flatnonzero(np.diff(values) > 1e-3 * top)
    counts = np.diff([0, *(ends + 1), values.size])
    return large.reshape(x.shape) if len(counts) <= CLUSTERS and counts.min() >= 2 else None


def _is_spread(flat: np.ndarray) -> bool:
    """True for finite numbers of which few that are looked at are neither small nor large: most
    arrays, told without an array of their sizes."""
    with np.errstate(invalid="ignore"):
        top = max(float(flat.max()), -float(flat.min()))
    return top < np.inf and (not top or _between(np.abs(flat[:: max(1, flat.size // 64)]), top))


def _between(size: np.ndarray, top: float) -> bool:
    """True if some of a few sizes lie between those of what is dwarfed and of what dwarfs it."""
    sample = size[:: max(1, size.size // 64)]
    return bool(((sample > DWARFED * top) & (sample < 0.1 * top)).any())


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """Relative L2 distance of two arrays of one size, taken flat; constants that dwarf the rest at
    the same places on both sides are left out, as is what is not finite at the same places with the
    same kind; inf where kinds differ."""
    a, b = np.asarray(a).reshape(-1), np.asarray(b).reshape(-1)
    if a.size != b.size:
        return float("inf")
    with np.errstate(all="ignore"):
        finite = np.isfinite(np.sum(a)) and np.isfinite(np.sum(b))
    if not finite:
        ka, kb = kinds(a), kinds(b)
        if not np.array_equal(ka, kb):
            return float("inf")
        a, b = a[ka == 0], b[ka == 0]
    wide = np.complex128 if "c" in (a.dtype.kind, b.dtype.kind) else np.float64
    a, b = a.astype(wide, copy=False), b.astype(wide, copy=False)
    masks = dwarfing(a)
    if masks is not None:
        others = dwarfing(b)
        if others is not None and np.array_equal(masks, others):
            a, b = a[~masks], b[~masks]
    return _l2(a - b, a)


def _l2(difference: np.ndarray, a: np.ndarray) -> float:
    scale = float(np.abs(a).max(initial=0.0)) or 1.0  # squares of large numbers overflow
    with np.errstate(all="ignore"):
        norm = float(np.linalg.norm(a / scale))
        far = float(np.linalg.norm(difference / scale))
    if norm:
        return far / norm
    return 0.0 if not np.any(difference) else float("inf")


@dataclass(frozen=True)
class Distance:
    """How an array of the port differs from the reference's, element by element.

    Attributes:
        verdict: "same", "different" or "undecided".
        reason: why, in words; "" where it is the same.
        relative: relative L2 distance, constants that dwarf the rest left out; inf where kinds or
            shapes differ.
        worst: the largest |difference| over that number's measured rounding; inf where kinds
            differ. Right ports stay within 5, the bound is 100.
        where: the index of that number, None where nothing differs.
        different: how many elements are not the same.
        size: how many elements there are.
    """

    verdict: str
    reason: str
    relative: float
    worst: float
    where: tuple[int, ...] | None
    different: int
    size: int


def scales(x: np.ndarray) -> np.ndarray:
    """What each number's rounding is small or large against: the number itself, or the root mean
    square along that axis through it where this is smallest, whichever is larger; of `x`'s shape.
    A number that cancels to nearly nothing has the size of its neighbours, a small row beside large
    ones its own."""
    size = np.abs(x)
    top = float(size.max(initial=0.0))
    if not top or not np.isfinite(top):
        return size
    square = (size / top) ** 2
    axes = [a for a in range(x.ndim) if x.shape[a] > 1]
    if not axes:
        return size
    along = [np.broadcast_to(square.mean(a, keepdims=True), x.shape) for a in axes]
    return np.maximum(size, top * np.sqrt(np.min(along, axis=0)))


def judge(
    mine: np.ndarray,
    theirs: np.ndarray,
    rounding: np.ndarray | None = None,
    arithmetic: Arithmetic = FLOAT64,
) -> Distance:
    """Compare two arrays of one shape.

    Args:
        mine: the reference's, of any type; float64 or complex128 where it is floating point.
        theirs: the port's, of the same shape.
        rounding: the measured absolute rounding of each number of `mine`; None: zero. Integers and
            booleans are compared exactly.
        arithmetic: that of the type both were computed in.
    """
    mine, theirs = np.asarray(mine), np.asarray(theirs)
    if mine.shape != theirs.shape:
        text = f"the shapes {mine.shape} and {theirs.shape} differ"
        return Distance(DIFFERENT, text, np.inf, np.inf, None, mine.size, mine.size)
    if mine.dtype.kind in "biu" or theirs.dtype.kind in "biu":
        return _exact(mine, theirs)
    mine, theirs = _wide(mine), _wide(theirs)
    ours, others = kinds(mine), kinds(theirs)
    apart = ours != others
    if apart.any():
        return _other_kinds(ours, others, apart)
    finite = ours == 0
    clean = np.where(finite, mine, 0)
    size = scales(clean)
    unit = _units(clean, size, finite, rounding, arithmetic)
    vague = (unit > arithmetic.unjudged * size) & (unit > arithmetic.garbage * _rms(clean))
    with np.errstate(all="ignore"):
        gap = np.where(finite, np.abs(clean - np.where(finite, theirs, 0)), 0.0)
        gap[_masks(clean, theirs)] = 0.0
        bound = np.where(vague, unit, np.minimum(unit, arithmetic.most / FACTOR * size))
        ratio = np.where(gap > 0, gap / bound, 0.0)
    far = relative(mine, theirs)
    worst = float(ratio.max(initial=0.0))
    where = tuple(map(int, np.unravel_index(int(ratio.argmax()), ratio.shape))) if worst else None
    wrong = int((ratio > FACTOR).sum())
    if wrong:
        text = f"{wrong} of {mine.size} numbers differ by more than rounding"
        return Distance(DIFFERENT, text, far, worst, where, wrong, mine.size)
    result = Distance(SAME, "", far, worst, where, 0, mine.size)
    if vague.any():
        share = float(np.max(unit[vague] / np.maximum(size[vague], 1e-300)))
        text = (
            f"rounding alone moves {int(vague.sum())} of {mine.size} numbers by up to {share:.1e}"
        )
        return replace(result, verdict=UNDECIDED, reason=text)
    if not finite.all() and np.unique(clean[finite]).size < min(ENOUGH, mine.size):
        names = ("", "NaN", "+inf", "-inf")
        there = " and ".join(names[k] for k in (1, 2, 3) if (ours % 4 == k).any())
        count = mine.size - int(finite.sum())
        text = f"{count} of {mine.size} numbers are not finite ({there}) on both sides"
        if finite.any():
            text += f", {np.unique(clean[finite]).size} of the others are different"
        return replace(result, verdict=UNDECIDED, reason=text)
    return result


def _masks(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """True where both hold the most negative (or largest) number of some type as a mask: -1.8e308
    and -3.4e38 stand for the same, since the models were widened."""
    ours, others = dwarfing(mine), dwarfing(theirs)
    if ours is None or others is None or not np.array_equal(ours, others):
        return np.zeros(mine.shape, bool)
    huge = (np.abs(mine) > MASK) & (np.abs(theirs) > MASK)
    return ours & huge & (np.sign(mine.real) == np.sign(theirs.real))


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64, copy=False)


def _units(
    x: np.ndarray,
    size: np.ndarray,
    finite: np.ndarray,
    rounding: np.ndarray | None,
    arithmetic: Arithmetic,
) -> np.ndarray:
    """Each number's measured rounding and its own last place; that of a zero that no rounding
    changes is small against its neighbours."""
    unit = arithmetic.eps * np.abs(x)
    if rounding is not None:
        with np.errstate(invalid="ignore"):
            unit = unit + np.where(finite & np.isfinite(rounding), rounding, 0.0)
    return np.where(unit > 0, unit, arithmetic.garbage / FACTOR * size)


def _rms(x: np.ndarray) -> float:
    top = float(np.abs(x).max(initial=0.0))
    return top * float(np.sqrt(np.mean(np.abs(x / top) ** 2))) if top else 0.0


def _exact(mine: np.ndarray, theirs: np.ndarray) -> Distance:
    apart = mine != theirs
    wrong = int(apart.sum())
    if not wrong:
        return Distance(SAME, "", 0.0, 0.0, None, 0, mine.size)
    what = "booleans" if mine.dtype.kind == "b" else "whole numbers"
    where = tuple(map(int, np.argwhere(apart)[0]))
    text = f"{wrong} of {mine.size} {what} differ"
    return Distance(DIFFERENT, text, wrong / mine.size, np.inf, where, wrong, mine.size)


def _other_kinds(ours: np.ndarray, others: np.ndarray, apart: np.ndarray) -> Distance:
    names = ("finite", "NaN", "+inf", "-inf")
    where = tuple(map(int, np.argwhere(apart)[0]))
    a, b = int(ours[where]), int(others[where])
    words = [
        names[k] if k < 4 and max(a, b) < 4 else f"({names[k // 4]}, {names[k % 4]})"
        for k in (a, b)
    ]
    text = (
        f"{int(apart.sum())} of {apart.size} numbers are of another kind: "
        f"{words[0]} in the reference, {words[1]} in the port at {list(where)}"
    )
    return Distance(DIFFERENT, text, np.inf, np.inf, where, int(apart.sum()), apart.size)


Layout = tuple[tuple[int, ...], tuple[int, ...]]
"""How the port's array becomes the reference's: the order of its axes (of more than one position),
and the shape."""


def layouts(theirs: tuple[int, ...], mine: tuple[int, ...]) -> list[Layout]:
    """The orders of the port's axes that give the reference's shape: equal shapes as they are; axes
    of one position left out; axes permuted where lengths say so; neighbouring axes merged or
    split. Empty if there is none."""
    if theirs == mine:
        return [(tuple(range(len(theirs))), mine)]
    long = [i for i, n in enumerate(theirs) if n != 1]
    lengths = [theirs[i] for i in long]
    target = [n for n in mine if n != 1]
    if lengths == target:
        return [(tuple(long), mine)]
    if sorted(lengths) == sorted(target) and len(long) <= 6:
        return [
            (order, mine)
            for order in itertools.permutations(long)
            if [theirs[i] for i in order] == target
        ]
    return [(tuple(long), mine)] if _merges(lengths, target) else []


def arrange(theirs: np.ndarray, layout: Layout) -> np.ndarray:
    """The port's array in the reference's layout."""
    order, shape = layout
    if theirs.shape == shape and order == tuple(range(theirs.ndim)):
        return theirs
    kept = theirs.reshape([n for n in theirs.shape if n != 1])
    rank = {axis: k for k, axis in enumerate(sorted(order))}
    if len(order) == theirs.ndim and theirs.ndim != kept.ndim:
        kept, rank = theirs, {axis: axis for axis in order}
    return kept.transpose([rank[axis] for axis in order]).reshape(shape)


def _merges(a: list[int], b: list[int]) -> bool:
    short, long = sorted((a, b), key=len)
    rest = list(long)
    for n in short:
        size = 1
        while rest and size < n:
            size *= rest.pop(0)
        if size != n:
            return False
    return not rest


def best_layout(mine: np.ndarray, theirs: np.ndarray, relaid: bool = False) -> Layout | None:
    """Of the layouts that fit, the one whose numbers are nearest; None if no layout fits.

    `relaid`: the port's images are NHWC, and 4-D arrays of equal shapes may be that, too.
    """
    fits = layouts(tuple(theirs.shape), tuple(mine.shape))
    if relaid and theirs.ndim == 4 and theirs.shape == mine.shape and len(set(mine.shape[1:])) == 1:
        fits.append(((0, 3, 1, 2), tuple(mine.shape)))
    if len(fits) <= 1:
        return fits[0] if fits else None
    return min(fits, key=lambda layout: _rank(mine, arrange(theirs, layout)))


def _rank(mine: np.ndarray, theirs: np.ndarray) -> tuple[int, float]:
    wrong = int((kinds(mine) != kinds(theirs)).sum())
    keep = (kinds(mine) == 0) & (kinds(theirs) == 0)
    return wrong, _l2((mine - theirs)[keep], mine[keep]) if mine.dtype.kind in "fc" else float(
        (mine != theirs).sum()
    )


def worst_of(verdicts: Any) -> str:
    """`different` before `undecided` before `same`; `same` of nothing."""
    found = set(verdicts)
    return next((v for v in (DIFFERENT, UNDECIDED) if v in found), SAME)


@dataclass(frozen=True)
class Evidence:
    """What a verdict rests on.

    Attributes:
        wrong: differences that are proven, or seen and not explained, in words.
        open: what could not be decided, in words: outputs that were not compared or that rounding
            alone decides, values that nothing vouches for.
        found: how many values of the reference the port has an equal of.
    """

    wrong: list[str]
    open: list[str]
    found: int


def decide(evidence: Evidence) -> str:
    """The verdict: different if anything is wrong, else undecided if anything is open or nothing
    was there to be compared, else same."""
    if evidence.wrong:
        return DIFFERENT
    return UNDECIDED if evidence.open or not evidence.found else SAME
