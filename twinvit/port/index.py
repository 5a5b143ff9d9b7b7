"""Values of the port, looked up by their elements and not by where they are computed.

Two arrays count as equal if they have the same size and their *sorted* values agree, so axes may be
ordered and
merged in any way. A fingerprint that no order changes (mean, root mean square, mean of absolute
values, extremes)
bounds the distance of the sorted values from below, so only near candidates are ever sorted.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from twinvit.port.aside import set_aside
from twinvit.port.hashed import whole
from twinvit.port.verdict import DWARFED, dwarfing
from twinvit.port.verdict import relative as distance

if TYPE_CHECKING:
    from twinvit.port.record.jax_tape import Tape

SMALLEST = 8  # fewer numbers are found everywhere by chance
FEW = 64
EQUAL = 1e-13
LARGE = 1 << 14
PART = 1 << 20  # numbers that are looked at together
LARGEST = 1e299  # sums of squares beyond are not reckoned with
SORTED = 1 << 26  # bytes of values in order that are kept
GIVEN = ("parameter", "constant", "input")


@dataclass
class Entry:
    """One value of the port.

    Attributes:
        id: position in the port's order of execution.
        name: primitive, or "parameter", "input", "constant".
        where: the user's file and line.
        parents: ids of the operands.
        zero: all of its elements, of which there are some, are zero.
        kept: its numbers, in the type that they are kept in; None where they are not.
    """

    id: int
    name: str
    where: str
    parents: list[int]
    shape: tuple[int, ...]
    kept: np.ndarray | None = field(repr=False, default=None)
    slot: int = -1
    few: np.ndarray | None = field(repr=False, default=None)
    """The sorted numbers of a value that has too few to be told from others."""
    zero: bool = False

    @property
    def value(self) -> np.ndarray | None:
        """The numbers in float64, made each time that they are asked for where they are kept in
        a narrower type; None where they were not kept."""
        return None if self.kept is None else self.kept.astype(np.float64, copy=False)


def evidence(x: np.ndarray) -> bool:
    """True if equality of `x` with something would prove anything: 8 different values or more."""
    if x.size < SMALLEST or x.dtype != np.float64:
        return False
    flat = x.reshape(-1) if x.flags.c_contiguous else x.ravel()
    few = flat[:: max(1, flat.size // FEW)][:FEW]
    if np.unique(few[np.isfinite(few)]).size >= SMALLEST:
        return True
    step = max(1, flat.size // 4096)
    sample = flat[::step] if step > 1 else flat
    distinct = np.unique(sample[np.isfinite(sample)]).size
    if distinct < SMALLEST and step > 1:
        distinct = np.unique(flat[np.isfinite(flat)]).size
    return distinct >= SMALLEST


def fingerprint(x: np.ndarray) -> np.ndarray:
    """Mean, root mean square, mean absolute value, maximum, minimum of the numbers that count, and
    a number that stands for how many others there are of each kind (`countable`)."""
    return _moments(*countable(x))


def _moments(flat: np.ndarray, others: float) -> np.ndarray:
    if not flat.size:
        return np.array([0, 0, 0, 0, 0, others], dtype=np.float64)
    top, low = np.max(flat), np.min(flat)
    scale = max(top, -low) if max(top, -low) > 1e150 else 1.0  # squares must not overflow
    part = flat if scale == 1.0 else flat / scale
    rms = scale * np.sqrt(np.dot(part, part) / part.size)
    mean, size = scale * part.mean(), scale * _mean_size(part)
    return np.array([mean, rms, size, top, low, others], dtype=np.float64)


def _mean_size(x: np.ndarray) -> float:
    """The mean absolute value; of a large array without one of the absolute values."""
    if x.size <= PART:
        return float(np.abs(x).mean())
    return sum(float(np.abs(x[k : k + PART]).sum()) for k in range(0, x.size, PART)) / x.size


def countable(x: np.ndarray) -> tuple[np.ndarray, float]:
    """The numbers that a lookup compares, flat, and what stands for the count of the others: NaN,
    +inf, -inf, and constants that repeat and dwarf the rest (masks, padding)."""
    flat = np.ascontiguousarray(x).reshape(-1)
    others = 0.0
    with np.errstate(all="ignore"):
        total = np.sum(flat)  # of huge numbers it overflows, too
    if not np.isfinite(total) and not (finite := np.isfinite(flat)).all():
        # Counts under irrational weights: another count of a kind is another sum.
        counts = [np.isnan(flat).sum(), (flat == np.inf).sum(), (flat == -np.inf).sum()]
        others = float(np.dot(counts, (np.pi, np.e, np.sqrt(2))))
        flat = flat[finite]
    masks = dwarfing(flat) if flat.size else None
    if masks is not None:
        others += float(masks.sum())
        flat = flat[~masks]
    return flat, others


def _squares(flat: np.ndarray) -> float:
    """The sum of the numbers' squares; of large ones it overflows."""
    with np.errstate(all="ignore"):
        return float(np.dot(flat, flat)) if flat.size else 0.0


def is_plain(flat: np.ndarray, squares: float) -> bool:
    """True where a few of the numbers tell that `countable` leaves none of them out: all are
    finite, and one is neither small nor large beside the largest, whose size lies between their
    root mean square and the root of the sum of their squares."""
    if flat.dtype != np.float64 or not 0 < squares < LARGEST:
        return False
    few = np.abs(flat[:: max(1, flat.size // FEW)])
    small, large = DWARFED * math.sqrt(squares), 0.1 * math.sqrt(squares / flat.size)
    return bool(((few > 1.01 * small) & (few < 0.99 * large)).any())


def sorted_finite(x: np.ndarray) -> np.ndarray:
    """The numbers that a lookup compares (`countable`), in order."""
    return np.sort(countable(x)[0])


class Index:
    """The port's values. `add` is the interpreter's sink."""

    def __init__(self, budget: int = 5 << 29) -> None:
        self.entries: list[Entry] = []
        self.tape: Tape | None = None  # how they were computed, where that was written down
        self.budget = budget
        self.bytes = 0
        self.lookups = 0
        self._aside = False
        self._once: set[int] = set()  # entries that were sorted
        self._by_size: dict[int, list[int]] = {}
        self._prints: dict[int, list[np.ndarray]] = {}
        self._table: dict[int, np.ndarray] = {}
        self._rms: dict[int, np.ndarray] = {}
        self._sorted: OrderedDict[int, np.ndarray] = OrderedDict()
        self._sorted_bytes = 0
        self._keys: dict[int, tuple[int, str, str]] = {}

    def add(
        self, value: Any, name: str, where: str, parents: list[int], own: np.ndarray | None = None
    ) -> int:
        """Take up a value; returns its id. `own`: its numbers in a narrower type, to be kept."""
        entry = Entry(len(self.entries), name, where, parents, tuple(np.shape(value)))
        self.entries.append(entry)
        if (
            isinstance(value, np.ndarray)
            and value.dtype == np.float64
            and value.size >= SMALLEST
            and evidence(value)
        ):
            entry.slot = len(self._by_size.setdefault(value.size, []))
            self._by_size[value.size].append(entry.id)
            self._prints.setdefault(value.size, []).append(fingerprint(value))
            self._table.pop(value.size, None)
            self._rms.pop(value.size, None)
            kept = value if own is None else own
            if self.bytes + kept.nbytes <= self.budget:
                entry.kept = kept
                self.bytes += kept.nbytes
        elif isinstance(value, np.ndarray) and value.dtype == np.float64:
            entry.zero = value.size > 0 and not value.any()
            if value.size <= FEW:
                entry.few = np.sort(value.reshape(-1))
        return entry.id

    @property
    def sorts(self) -> int:
        """How many values were put in order."""
        return len(self._once)

    def forget_sorted(self) -> None:
        """Keep no values in order: they are put in order again where that is asked for."""
        self._sorted.clear()
        self._sorted_bytes = 0

    def set_aside(self) -> None:
        """Keep the computed values' numbers in a file where they are many: nobody asks for them
        while both programs are run on other inputs and weights."""
        if self._aside:
            return
        self._aside = True
        computed = [e for e in self.entries if e.kept is not None and e.name not in GIVEN]
        moved = set_aside([e.kept for e in computed if e.kept is not None])
        for entry, kept in zip(computed, moved):
            entry.kept = kept

    def ids(self, size: int) -> list[int]:
        """Entries of this many elements, in the order of `table`'s rows."""
        return self._by_size.get(size, [])

    def key(self, entry_id: int) -> tuple[int, str, str]:
        """What equal values have in common, to nine digits."""
        found = self._keys.get(entry_id)
        if found is None:
            found = self._keys[entry_id] = self._key(entry_id)
        return found

    def _key(self, entry_id: int) -> tuple[int, str, str]:
        entry = self.entries[entry_id]
        size = int(np.prod(entry.shape)) if entry.shape else 1
        if entry.slot < 0:
            return size, "", str(entry_id)
        print_ = self._prints[size][entry.slot]
        # A rotation keeps the root mean square, and the maximum if that is where nothing turns.
        return size, f"{print_[1]:.9e} {print_[2]:.9e}", f"{print_[3]:.9e} {print_[4]:.9e}"

    def table(self, size: int) -> np.ndarray:
        if size not in self._table:
            self._table[size] = np.array(self._prints.get(size, np.zeros((0, 6)))).reshape(-1, 6)
        return self._table[size]

    def bounds(self, print_: np.ndarray, size: int) -> np.ndarray:
        """Lower bounds of the relative distance of each value of this size to one with this
        fingerprint."""
        table = self.table(size)
        if not len(table):
            return np.zeros(0)
        rms = max(print_[1], 1e-300)
        delta = np.abs(table - print_)
        with np.errstate(over="ignore"):
            bound = delta[:, :3].max(axis=1) / rms
            bound = np.maximum(bound, delta[:, 3:5].max(axis=1) / (rms * np.sqrt(size)))
        bound[table[:, 5] != print_[5]] = np.inf
        return bound

    def find(
        self,
        x: np.ndarray,
        tolerance: float,
        print_: np.ndarray | None = None,
        proves: bool = False,
    ) -> int | None:
        """The first entry whose sorted values are within `tolerance` of those of `x`. `proves`:
        None also where equality with `x` would prove nothing (`evidence`)."""
        self.lookups += 1
        if x.size not in self._by_size:
            return None
        if print_ is None:
            flat, others = np.ascontiguousarray(x).reshape(-1), 0.0
            total = _squares(flat)
            if not is_plain(flat, total):
                flat, others = countable(x)
                total = _squares(flat)
            if self._none_near(total, flat.size, others, x.size, tolerance):
                return None
            print_ = _moments(flat, others)
        if proves and not evidence(x):
            return None
        bound = self.bounds(print_, x.size)
        hits = np.flatnonzero(bound <= tolerance)
        if not hits.size:
            return None
        ids = self._by_size[x.size]
        mine: np.ndarray | None = None
        for hit in hits[np.argsort(bound[hits], kind="stable")][:8]:
            if self._same_numbers(x, ids[hit]):
                return ids[hit]
            theirs = self.sorted(ids[hit])
            if theirs is None:  # not stored: five moments agree to rounding
                return ids[hit]
            if mine is None:
                mine = sorted_finite(x)
            if mine.size == theirs.size and distance(mine, theirs) <= tolerance:
                return ids[hit]
        return None

    def _none_near(
        self, total: float, count: int, others: float, size: int, tolerance: float
    ) -> bool:
        """True if the root mean square alone tells these values (`count` numbers, `total`: the sum
        of their squares) from each value of this size; it is one of the bounds, and the
        cheapest."""
        if not 0 < total < LARGEST:
            return False
        rms = math.sqrt(total / count)
        apart = np.abs(self._sizes(size) - rms)
        if not apart.size or float(apart.min()) / max(rms, 1e-300) > tolerance:
            return True
        near = apart / max(rms, 1e-300) <= tolerance
        return not (near & (self.table(size)[:, 5] == others)).any()

    def _sizes(self, size: int) -> np.ndarray:
        """The root mean squares of the values of this many elements."""
        if size not in self._rms:
            self._rms[size] = self.table(size)[:, 1].copy()
        return self._rms[size]

    def _same_numbers(self, x: np.ndarray, entry_id: int) -> bool:
        """True for the elements of a large array that the program was given: weights are as a rule
        the same to the last place, and hashing them is less work, and less memory, than sorting."""
        entry = self.entries[entry_id]
        if x.size < LARGE or entry.name not in GIVEN or entry.kept is None:
            return False
        return whole(x) == whole(entry.kept)

    def sorted(self, entry_id: int) -> np.ndarray | None:
        if entry_id in self._sorted:
            self._sorted.move_to_end(entry_id)
            return self._sorted[entry_id]
        value = self.entries[entry_id].value
        if value is None:
            return None
        self._once.add(entry_id)
        result = sorted_finite(value)
        self._sorted[entry_id] = result
        self._sorted_bytes += result.nbytes
        while self._sorted_bytes > SORTED and len(self._sorted) > 1:
            _, old = self._sorted.popitem(last=False)
            self._sorted_bytes -= old.nbytes
        return result

    def nearest(
        self, x: np.ndarray, count: int = 1, try_: int = 4, exclude: Iterable[int] = ()
    ) -> list[tuple[float, int]]:
        """The nearest entries of the same size by distance of the sorted values, nearest first."""
        if x.size not in self._by_size or x.dtype != np.float64:
            return []
        ids = self._by_size[x.size]
        bound = self.bounds(fingerprint(x), x.size)
        order = [i for i in np.argsort(bound, kind="stable") if ids[i] not in exclude]
        mine = sorted_finite(x)
        result: list[tuple[float, int]] = []
        for i in order[: max(try_, count)]:
            theirs = self.sorted(ids[i])
            if theirs is None or theirs.size != mine.size:
                result.append((float(bound[i]), ids[i]))
            else:
                result.append((distance(mine, theirs), ids[i]))
        return sorted(result)[:count]

    def bound(self, x: np.ndarray) -> float:
        """A lower bound of the distance to the nearest entry; inf without any of this size."""
        if x.size not in self._by_size:
            return float("inf")
        return float(self.bounds(fingerprint(x), x.size).min())


def merges(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """True if a reshape from one shape to the other only merges neighbouring axes, or splits
    them."""
    short, long = sorted(([n for n in s if n != 1] for s in (shape, target)), key=len)
    rest = list(long)
    for n in short:
        size = 1
        while rest and size < n:
            size *= rest.pop(0)
        if size != n:
            return False
    return not rest


def layouts(array: np.ndarray, shape: tuple[int, ...], *, clean: bool = False) -> list[np.ndarray]:
    """`array` in every order of its axes that has this shape (axes of one left out), else
    reshaped; `clean`: only by merging or splitting axes, where that is possible."""
    target = tuple(s for s in shape if s != 1)
    small = array.reshape([s for s in array.shape if s != 1])
    result = []
    if small.ndim == len(target) and small.ndim <= 5:
        result = [
            small.transpose(o).reshape(shape)
            for o in itertools.permutations(range(small.ndim))
            if tuple(small.shape[i] for i in o) == target
        ]
    else:
        orders = list(itertools.permutations(range(small.ndim))) if small.ndim <= 5 else []
        moved = [small.transpose(o) for o in orders]
        if clean or small.ndim == 5:
            merged = [x for x in moved if merges(x.shape, target)]
            moved = merged if merged or small.ndim == 5 else moved
        result = [x.reshape(shape) for x in moved]
    return result


def align_distance(mine: np.ndarray, theirs: np.ndarray) -> float:
    """Relative L2 distance of a reference's and a port's output; axes may be permuted if the shapes
    say so."""
    if mine.size != theirs.size:
        return float("inf")
    theirs = np.asarray(theirs)
    if mine.shape == theirs.shape:
        return distance(mine, theirs)
    best = float("inf")
    small = mine.reshape([s for s in mine.shape if s != 1])
    other = theirs.reshape([s for s in theirs.shape if s != 1])
    if small.shape == other.shape:
        return distance(small, other)
    if small.ndim == other.ndim and small.ndim <= 5:
        for order in itertools.permutations(range(other.ndim)):
            if tuple(other.shape[i] for i in order) == small.shape:
                best = min(best, distance(small, other.transpose(order)))
    elif mine.size:
        best = distance(mine, theirs)
    return best


def squeezed_distance(mine: np.ndarray, theirs: np.ndarray) -> float:
    """The smallest distance over the orders of axes that fit."""
    if mine.size != theirs.size:
        return float("inf")
    return min([distance(mine, m) for m in layouts(theirs, mine.shape)[:24]] or [float("inf")])
