"""Other inputs and other weights for two models, without a map between their weights."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import overload

import numpy as np

PART = 1 << 18  # numbers that are drawn together
HUGE = 1e30  # larger numbers are masks' constants
SPREAD = 0.2  # standard deviation of the factors that inputs are drawn with
LAYERS = 64  # a longer first axis is none of stacked layers
FEW = 8  # arrays of fewer different values equal others by chance
GATE = 0.37  # zeros that are opened become so much of the median size
WIDTH = 0.8  # spread of the factors (around 1.1) of weights; a larger one turns their order
Key = tuple[int, int]
"""Size and checksum of an array's elements in any order."""


def redrawn_inputs(arrays: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """Other inputs of the same kinds.

    Floating-point numbers are multiplied by 1 + 0.2 r, r standard normal; matrices stay symmetric
    or rotations, lines of one norm, one sum or in order stay such. Integers are
    permuted along the longest axis, each line by itself, so that each stays in its range. Masks
    (booleans, 0 and 1, two different values) are rolled along the batch: shuffled, they could hide
    every position of a row. Infinite numbers stay.
    """
    rng = np.random.default_rng(seed)
    return [_redrawn(x, rng) for x in arrays]


def signs_redrawn(arrays: Sequence[np.ndarray], seed: int) -> list[np.ndarray] | None:
    """The inputs with random signs where all numbers of a floating-point array have one sign; None
    if there is no such array."""
    rng = np.random.default_rng(seed)
    result, changed = [], False
    for x in arrays:
        one_sign = x.dtype.kind == "f" and x.size > 1 and ((x >= 0).all() or (x <= 0).all())
        if one_sign and not _is_mask(x) and not _is_whole(x):
            x = np.where(np.abs(x) < HUGE, x * rng.choice([-1.0, 1.0], x.shape), x)
            changed = True
        result.append(x)
    return result if changed else None


def asymmetric(arrays: Sequence[np.ndarray], seed: int) -> tuple[list[np.ndarray], set[int]]:
    """The inputs with symmetric matrices that are symmetric no more, and their positions."""
    rng = np.random.default_rng(seed)
    result, places = list(arrays), set()
    for k, x in enumerate(arrays):
        if x.dtype.kind == "f" and x.size > 1 and _is_symmetric(x) and not _is_mask(x):
            result[k] = x * (1 + SPREAD * rng.standard_normal(x.shape))
            places.add(k)
    return result, places


def _is_symmetric(x: np.ndarray) -> bool:
    return bool(x.ndim > 1 and x.shape[-1] == x.shape[-2] and np.array_equal(x, x.swapaxes(-1, -2)))


def _redrawn(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if not x.size or x.dtype.kind not in "fciub":
        return x
    if _is_mask(x):
        return np.roll(x, 1, 0) if x.ndim else x
    if x.dtype.kind in "iu" or _is_whole(x):
        return rng.permuted(x, axis=int(np.argmax(x.shape))) if x.ndim else x
    factor = 1 + SPREAD * rng.standard_normal(x.shape)
    if _is_symmetric(x):
        factor = (factor + factor.swapaxes(-1, -2)) / 2
    with np.errstate(all="ignore"):
        return _restored(x, np.where(np.abs(x) < HUGE, x * factor, x))


def _restored(x: np.ndarray, new: np.ndarray) -> np.ndarray:
    """The random numbers with what the lines of `x` have in common: one norm (directions,
    rotations), one sum (probabilities), an order (times, edges of bins)."""
    if x.dtype.kind != "f" or not x.ndim or x.shape[-1] < 2 or not np.isfinite(new).all():
        return new
    if (
        x.ndim > 1
        and x.shape[-1] == x.shape[-2]
        and _alike(x @ x.swapaxes(-1, -2), np.eye(len(x.T)))
    ):
        u, _, v = np.linalg.svd(new)
        return u @ v
    if (np.diff(x) > 0).all() and x.shape[-1] > 3:
        return np.sort(new)
    for size in (
        lambda a: np.linalg.norm(a, axis=-1, keepdims=True),
        lambda a: a.sum(-1, keepdims=True),
    ):
        if _alike(size(x), np.ones(1)):
            return new / size(new)
    return new


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    """True if two arrays agree to the rounding of float32."""
    return bool(np.allclose(a, b, rtol=0, atol=1e-5))


def _is_mask(x: np.ndarray) -> bool:
    """True for booleans, for 0 and 1 in any type, and for two different values."""
    if x.dtype.kind == "b":
        return True
    if x.dtype.kind not in "fiu" or x.size < 2:
        return False
    low, high = x.min(), x.max()
    if not ((x == low) | (x == high)).all():
        return False
    return bool({float(low), float(high)} <= {0.0, 1.0} or (low != high and x.dtype.kind == "f"))


def _is_whole(x: np.ndarray) -> bool:
    """True for floating-point arrays of different integers: ids, timesteps, pixels."""
    if x.dtype.kind != "f" or x.size < 2 or not np.isfinite(x).all():
        return False
    return bool((x == np.floor(x)).all() and (x != x.flat[0]).any())


class Drawn(Sequence[np.ndarray]):
    """Arrays that are computed each time that they are requested, and not stored."""

    def __init__(
        self,
        count: int,
        make: Callable[[int], np.ndarray],
        own: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        """`own`: the same numbers in the type that they are kept in, which may be float32."""
        self._count, self._make = count, make
        self._own = own or make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, k: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, k: slice) -> list[np.ndarray]: ...
    def __getitem__(self, k: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(k, slice):
            return [self._make(i) for i in range(*k.indices(self._count))]
        if not -self._count <= k < self._count:
            raise IndexError(k)
        return self._make(k % self._count)

    def own(self, k: int) -> np.ndarray:
        """An array in the type that it is kept in."""
        return self._own(k)


@dataclass
class Weights:
    """Other weights of both models.

    Attributes:
        mine: the reference's arrays, in the order given.
        theirs: the port's.
        moved: how many of the reference's arrays have other values.
        alone: numbers of arrays of either side that have no equal on the other and kept their
            values, as positions (of the reference's, of the port's). What one side computed from
            its weights before stays with the old ones there.
    """

    mine: Sequence[np.ndarray]
    theirs: Sequence[np.ndarray]
    moved: int
    alone: tuple[list[int], list[int]]


def redrawn_weights(
    mine: Sequence[np.ndarray],
    theirs: Sequence[np.ndarray],
    fixed: Sequence[np.ndarray],
    seed: int,
    opened: bool = False,
) -> Weights:
    """One smooth random function applied to every number of every parameter of both sides.

    Numbers that are equal stay equal in every layout, split and stack, so no map is needed. The
    function keeps signs (variances stay positive) and zero. An array without an equal on the other
    side (not as a whole, in slices or splits along an axis, nor element by element) keeps its
    values, and so does what equals one of `fixed`.

    Args:
        mine: the reference's parameters, float64.
        theirs: the port's, float64.
        fixed: arrays whose equals must keep their values.
        seed: of the function.
        opened: arrays that are zero everywhere (gates, last layers of branches) become one number
            other than zero, where the two sides hold equally many such zeros.
    """
    sides = [
        [Held(x, partial(side.__getitem__, k)) for k, x in enumerate(side)]
        for side in (mine, theirs)
    ]
    kept = [a for a in (Held(x) for x in fixed if x.dtype == np.float64) if a.strong]
    parts, wholes = {k for a in kept for k in a.parts}, {a.whole for a in kept}
    for a in itertools.chain(*sides):
        a.moves = a.strong and a.whole not in parts and not a.parts & wholes
    _settle(sides)
    pinned = _pinned(sides)
    function = _function(mine, seed)
    zero = _open(sides, {Held(x).whole for x in fixed}) if opened else set()
    gate = _typical(mine) * GATE
    gates = [[id(a) in zero for a in side] for side in sides]
    goes = [[(a.moves or not a.strong) for a in side] for side in sides]

    def made(number: int, values: Sequence[np.ndarray], k: int) -> np.ndarray:
        x = new = values.own(k) if isinstance(values, Drawn) else values[k]
        if gates[number][k]:
            return np.full(x.shape, gate)
        if goes[number][k] and x.size:
            new = function(x)
            if pinned.size and (still := _among(x, pinned)).any():
                new = np.where(still, x, new)
        return np.asarray(new, np.float64).reshape(x.shape)

    drawn = [
        Drawn(len(values), partial(made, number, values))
        for number, values in enumerate((mine, theirs))
    ]
    moved = sum(not np.array_equal(new, x) for new, x in zip(drawn[0], mine))
    alone = tuple([i for i, a in enumerate(side) if a.alone(pinned)] for side in sides)
    return Weights(drawn[0], drawn[1], moved, (alone[0], alone[1]))


class Held:
    """An array of one side, with what it can be recognised by.

    Attributes:
        strong: True if it has enough elements to be recognised by.
        whole: key of all its elements.
        coverings: ways of taking it apart, each a list of keys.
        parts: all these keys.
        moves: True if its elements are sampled anew.
    """

    def __init__(self, x: np.ndarray, again: Callable[[], np.ndarray] | None = None) -> None:
        """`again` makes `x` anew; with it the array is not kept."""
        self._again = (lambda: x) if again is None else again
        self.one_zero = False  # its negative zeros are zeros
        self.strong = _different(x) >= FEW
        self.moves = False
        self.coverings = list(_coverings(x)) if self.strong else []
        self.whole = self.coverings[0][0] if self.coverings else (x.size, 0)
        self.parts = {k for covering in self.coverings for k in covering}

    @property
    def value(self) -> np.ndarray:
        """The array."""
        x = self._again()
        return x + 0.0 if self.one_zero else x

    def covered(self, parts: set[Key]) -> bool:
        return any(all(k in parts for k in covering) for covering in self.coverings)

    def alone(self, pinned: np.ndarray) -> bool:
        """True for an array that kept numbers that nobody writes by hand."""
        if self.strong:
            return not self.moves
        value = self.value
        kept = value[_among(value, pinned)]
        return any(len(np.format_float_positional(np.float32(v), trim="-")) > 7 for v in kept.flat)


def _settle(sides: Sequence[Sequence[Held]]) -> None:
    """Of the arrays that move keep those that the other side's make up."""
    for a in itertools.chain(*sides):
        value = a.value
        a.one_zero = bool(((value == 0) & np.signbit(value)).any())
    while True:
        tables = [{k for a in side if a.moves for k in a.parts} for side in sides]
        open_ = [
            [a for a in side if a.moves and not a.covered(other)]
            for side, other in zip(sides, reversed(tables))
        ]
        lost = _without_equal(open_)
        for a in lost:
            a.moves = False
        if not lost:
            return


def _without_equal(open_: Sequence[Sequence[Held]]) -> list[Held]:
    """Arrays of which a number is in none of the other side's."""
    lost: list[Held] = []
    for side, other in zip(open_, reversed(open_)):
        known = np.unique(np.concatenate([np.zeros(1), *(a.value.reshape(-1) for a in other)]))
        for a in side:
            numbers = np.unique(a.value)
            place = np.searchsorted(known, numbers).clip(max=known.size - 1)
            long = numbers.view(np.uint64) & np.uint64((1 << 42) - 1) != 0  # not of float16
            if not (known[place] == numbers).all() or np.count_nonzero(long) < FEW:
                lost.append(a)
    return lost


def _pinned(sides: Sequence[Sequence[Held]]) -> np.ndarray:
    """Numbers that keep their values wherever they stand: zero, and those of arrays too poor to be
    recognised that the two sides do not hold equally often."""
    counts: list[Counter[float]] = [Counter(), Counter()]
    for count, side in zip(counts, sides):
        for a in side:
            if not a.strong:
                values, often = np.unique(a.value, return_counts=True)
                count.update(dict(zip(values.tolist(), often.tolist())))
    apart = {v for v in counts[0] | counts[1] if counts[0][v] != counts[1][v]}
    return np.array(sorted(v for v in apart if np.isfinite(v)))


def _open(sides: Sequence[Sequence[Held]], fixed: set[Key]) -> set[int]:
    """Ids of the arrays that are zero everywhere, if the sides hold equally many such zeros."""
    zeros = [
        [a for a in side if a.value.size and not a.value.any() and a.whole not in fixed]
        for side in sides
    ]
    if sum(a.value.size for a in zeros[0]) != sum(a.value.size for a in zeros[1]):
        return set()
    return {id(a) for side in zeros for a in side}


def _typical(arrays: Sequence[np.ndarray]) -> float:
    """The median size of the numbers that are not zero; 1 without any."""
    flat = [np.ascontiguousarray(x).reshape(-1) for x in arrays]
    some = np.concatenate([np.ones(0), *(x[:: max(1, x.size // 512)] for x in flat)])
    some = np.abs(some[np.isfinite(some) & (some != 0)])
    return float(np.median(some)) if some.size else 1.0


def _among(x: np.ndarray, few: np.ndarray) -> np.ndarray:
    """Where `x` holds one of few elements, which are sorted."""
    if len(few) <= 4:
        found = np.zeros(x.shape, bool)
        for v in few:
            found |= x == v
        return found
    return few[np.searchsorted(few, x).clip(max=few.size - 1)] == x


def _function(mine: Sequence[np.ndarray], seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """A smooth function that keeps zero, the sign of every number, and their order; it returns
    float64."""
    rng = np.random.default_rng(seed)
    size = _typical(mine)
    speed, shift = rng.uniform(1.0, 2.0) / size, rng.uniform(-0.5, 0.5)

    def part(x: np.ndarray) -> np.ndarray:
        u = x * speed + shift
        u /= 1 + u * u
        u *= WIDTH
        u += 1.1
        u *= x
        return u

    def function(x: np.ndarray) -> np.ndarray:
        made = np.empty(x.shape)
        with np.errstate(all="ignore"):
            for flat, own in _parts(made, x):
                flat[...] = part(own.astype(np.float64, copy=False))
            if np.isfinite(made.sum()):
                return made
            wide = x.astype(np.float64, copy=False)
            return np.where(np.abs(wide) < HUGE, made, wide)

    return function


def _parts(made: np.ndarray, x: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Both arrays in parts, so that what is computed of one on the way is small."""
    if x.size <= PART or not x.flags.c_contiguous:
        yield made, x
        return
    flat, own = made.reshape(-1), x.reshape(-1)
    yield from ((flat[k : k + PART], own[k : k + PART]) for k in range(0, x.size, PART))


def _different(x: np.ndarray) -> int:
    """How many different values an array holds, counted up to FEW."""
    flat = np.ascontiguousarray(x).reshape(-1)
    head = np.unique(flat[:4096]).size
    return head if head >= FEW or flat.size <= 4096 else np.unique(flat).size


def _mixed(x: np.ndarray) -> np.ndarray:
    """Each number's bits, stirred so that sums of them tell multisets apart."""
    bits = np.ascontiguousarray(x + 0.0).view(np.uint64)
    bits ^= bits >> np.uint64(29)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(32)
    bits *= np.uint64(0x94D049BB133111EB)
    return bits


def _coverings(x: np.ndarray) -> Iterator[list[Key]]:
    """Keys of the whole array, of its slices, and of its equal splits along each axis."""
    mixed = _mixed(x)
    yield [(x.size, int(mixed.sum()))]
    if x.ndim >= 2 and 1 < x.shape[0] <= LAYERS:
        sums = mixed.reshape(x.shape[0], -1).sum(1)
        yield [(x.size // x.shape[0], int(s)) for s in sums]
    for axis in range(x.ndim):
        rest = tuple(i for i in range(x.ndim) if i != axis)
        lines = mixed.sum(axis=rest) if rest else mixed
        for n in (2, 3, 4):
            if x.shape[axis] % n == 0 and x.shape[axis] > n:
                sums = lines.reshape(n, -1).sum(1)
                yield [(x.size // n, int(s)) for s in sums]
