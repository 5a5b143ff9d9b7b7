"""Parts of the port's program whose inputs the reference holds, too, and what they replace there.

From a value of the port the walk goes back and stops at the first value on every path that the
reference holds, element by element in some layout. Parameters and inputs are such values where
nothing lies between. All functions here look at the tape and the graph and change neither.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from twinvit.port.index import distance, merges
from twinvit.port.ops import LAYOUT, SHAPE_ONLY
from twinvit.port.ops.primitives import BY_VALUE
from twinvit.port.record.graph import Graph
from twinvit.port.record.jax_tape import Step, Tape
from twinvit.port.record.torch_values import to_numpy

RUN = 16  # operations of the port in a transplant, at most, library functions folded
TABLE = 40  # the same of a table that depends on no input and no parameter
REPLACED = 6  # operations of the reference that it replaces, or a tenth of all, at most RUN
SILENT = 4  # operations that change nothing here and are taken along
STEPS = 160  # steps of the port that are walked, layouts among them
DRAWING = ("random", "threefry", "rng_")


class Refused(Exception):
    """Why a part of the port's program cannot be put into the reference, in words."""


@dataclass(frozen=True)
class Order:
    """An order of an array's axes (those of one left out), and the shape that results.

    Attributes:
        axes: which of the array's axes, in this order.
        shape: the result's.
    """

    axes: tuple[int, ...]
    shape: tuple[int, ...]

    def apply(self, array: np.ndarray) -> np.ndarray:
        small = array.reshape([n for n in array.shape if n != 1])
        return small.transpose(self.axes).reshape(self.shape)


def orders(shape: Sequence[int], target: Sequence[int]) -> list[Order]:
    """Every order of axes by which an array of one shape becomes one of another, merging and
    splitting neighbours where the numbers of axes differ; the present order first."""
    small, wanted = [n for n in shape if n != 1], [n for n in target if n != 1]
    if int(np.prod(small)) != int(np.prod(wanted)) or len(small) > 5:
        return [Order(tuple(range(len(small))), tuple(target))] if small == wanted else []
    found = []
    for axes in itertools.permutations(range(len(small))):
        moved = tuple(small[i] for i in axes)
        fits = moved == tuple(wanted) if len(small) == len(wanted) else merges(moved, tuple(wanted))
        if fits:
            found.append(Order(axes, tuple(target)))
    if not found:  # axes that are merged and split at once
        found = [Order(tuple(range(len(small))), tuple(target))]
    return found


def order_between(mine: np.ndarray, theirs: np.ndarray, tolerance: float) -> Order | None:
    """The order of axes by which `mine` is `theirs`, element by element; None if there is none."""
    if mine.size != theirs.size:
        return None
    exact = mine.dtype.kind not in "fc"
    if exact != (theirs.dtype.kind not in "fc"):
        return None
    for order in orders(mine.shape, theirs.shape)[:120]:
        moved = order.apply(mine)
        if np.array_equal(moved, theirs) if exact else distance(theirs, moved) <= tolerance:
            return order
    return None


@dataclass
class Held:
    """Which values of the reference the port's slots are, as both stand now.

    Attributes:
        graph, tape: the two programs.
        found: values of the reference that the port holds, by the index's key of the entry.
        near: values of the reference around the place that is looked at: of several that are equal
            these are meant.
        tolerance: up to which a value of the reference is equal.
    """

    graph: Graph
    tape: Tape
    found: Mapping[object, Sequence[int]]
    tolerance: Callable[[int], float]
    near: Mapping[int, int] = field(default_factory=dict)
    _known: dict[int, list[tuple[int, Order]]] = field(default_factory=dict)
    _further: dict[int, bool] = field(default_factory=dict)
    _best: dict[tuple[int, int], tuple[int, Order] | None] = field(default_factory=dict)

    def all_of(self, slot: int) -> list[tuple[int, Order]]:
        """The reference's values that a slot is, with the order of axes that makes it of them."""
        if slot not in self._known:
            self._known[slot] = list(self._look(slot))
        return self._known[slot]

    def further(self, slot: int) -> bool:
        """True for one more value of these elements than the reference has: an operation of the
        port's that changes nothing here (a clip that nothing exceeds) and that it lacks."""
        if slot not in self._further:
            self._further[slot] = self._is_further(slot)
        return self._further[slot]

    def _is_further(self, slot: int) -> bool:
        key, depth = self._key(slot), 0
        step = self.tape.step_of(slot)
        while key is not None and step is not None:
            same = next((o for o in step.operands if self._key(o) == key), None)
            if same is None:
                break
            depth += not step.layout
            step = self.tape.step_of(same)
        return depth > 0 and depth >= len(self.found.get(key, ()))

    def _key(self, slot: int) -> object:
        entry = self.tape.slots[slot].entry
        held = entry >= 0 and self.tape.index.entries[entry].slot >= 0
        return self.tape.index.key(entry) if held else None

    def best(self, slot: int, before: int) -> tuple[int, Order] | None:
        """The one of them that is meant, of those that are computed before an operation."""
        if (slot, before) not in self._best:
            self._best[slot, before] = self._meant(slot, before)
        return self._best[slot, before]

    def _meant(self, slot: int, before: int) -> tuple[int, Order] | None:
        usable = [(i, o) for i, o in self.all_of(slot) if _computed(self.graph, i) < before]
        name = self.tape.index.entries[e].where if (e := self.tape.slots[slot].entry) >= 0 else ""

        def rank(item: tuple[int, Order]) -> tuple[int, float, int]:
            source = self.graph.source[item[0]]
            like = 0.0
            if source.startswith("param:"):
                like = -difflib.SequenceMatcher(None, source[6:], name).ratio()
            return self.near.get(item[0], 1 << 30), like, item[0]

        return min(usable, key=rank, default=None)

    def _look(self, slot: int) -> Iterable[tuple[int, Order]]:
        held = self.tape.slots[slot]
        theirs = self.tape.value(slot)
        if theirs is None or not theirs.size:
            return
        for i in self._candidates(slot, theirs):
            mine = to_numpy(self.graph.values[i])
            order = order_between(mine, theirs, max(self.tolerance(i), 1e-13))
            if order is not None:
                yield i, order
        if held.kind == "slice":
            return

    def _candidates(self, slot: int, theirs: np.ndarray) -> list[int]:
        held, graph = self.tape.slots[slot], self.graph
        entry = self.tape.index.entries[held.entry] if held.entry >= 0 else None
        if entry is not None and entry.slot >= 0:
            return list(self.found.get(self.tape.index.key(entry.id), ()))
        given = held.kind in ("parameter", "input", "slice")
        kinds = theirs.dtype.kind
        return [
            i
            for i in range(len(graph.values))
            if (value := graph.values.shaped(i)).numel() == theirs.size
            and (graph.source[i] != "node" if given else kinds in "iub" and theirs.size > 1)
            and value.is_floating_point() == (kinds == "f")
            and (given or _varied(theirs))
        ]


def _varied(array: np.ndarray) -> bool:
    return bool((array != array.flat[0]).any())


def _computed(graph: Graph, value_id: int) -> int:
    producer = graph.producer[value_id]
    return -1 if producer is None else producer


@dataclass
class Region:
    """A part of the port's program.

    Attributes:
        out: the slot that it computes.
        steps: places of its steps on the tape, in order.
        inputs: by slot, the reference's value and the order of axes that makes it.
        constants: slots of numbers that are written in the program.
    """

    out: int
    steps: list[int]
    inputs: dict[int, tuple[int, Order]]
    constants: list[int]

    def operations(self, tape: Tape) -> list[Step]:
        """Its steps but for layouts, in order."""
        return [tape.steps[k] for k in self.steps if not _free(tape.steps[k])]

    def lines(self, tape: Tape) -> list[str]:
        """The user's lines of its operations, in order, each once."""
        steps = self.operations(tape) or [tape.steps[k] for k in self.steps]
        return list(dict.fromkeys(s.where for s in steps if s.where))


def _free(step: Step) -> bool:
    return step.layout or step.name == "slice" and step.eqn is None


def region_behind(
    tape: Tape, held: Held, out: int, before: int, limit: int = STEPS, through: int = -1
) -> Region:
    """`_region`, with what changes nothing on the way to a value that the reference holds, where
    that can be."""
    taken = False

    def inside(slot: int) -> bool:
        nonlocal taken
        further = held.further(slot)
        taken = taken or further
        return further

    try:
        return _region(tape, held, out, before, limit, through, inside)
    except Refused:
        if not taken:  # the same walk again
            raise
        return _region(tape, held, out, before, limit, through, lambda slot: False)


def _region(
    tape: Tape,
    held: Held,
    out: int,
    before: int,
    limit: int,
    through: int,
    inside: Callable[[int], bool],
) -> Region:
    """The part of the port's program that computes a slot from what the reference holds before an
    operation.

    Args:
        before: the index of the reference's operation.
        limit: steps that are walked, at most.
        through: a slot that is part of it whatever the reference holds.
        inside: says so of further slots.

    Raises:
        Refused: there is none, in words.
    """
    steps: set[int] = set()
    inputs: dict[int, tuple[int, Order]] = {}
    constants: list[int] = []
    seen, rest = {out}, [out]
    while rest:
        number = rest.pop()
        slot = tape.slots[number]
        if slot.kind == "literal":
            constants.append(number)
            continue
        usable = slot.first or slot.step < 0
        if number not in (out, through) and usable and not inside(number):
            found = held.best(number, before)
            if found is not None:
                inputs[number] = found
                continue
            if held.all_of(number):
                raise Refused("it reads what the reference computes later")
        if slot.step < 0:
            _leaf(tape, number, constants)
            continue
        step = tape.steps[slot.step]
        if step.name.startswith(DRAWING):
            raise Refused("it draws random numbers")
        if step.name.startswith(BY_VALUE):
            raise Refused(f"{step.name.removeprefix(BY_VALUE)} was recorded by its value")
        steps.add(slot.step)
        if len(steps) > limit:
            raise Refused(f"it is more than {limit} steps")
        for operand in step.operands:
            if operand not in seen:
                seen.add(operand)
                rest.append(operand)
    _one_step(tape, steps)
    return Region(out, sorted(steps), inputs, constants)


def with_silent(tape: Tape, held: Held, region: Region, before: int) -> Region:
    """The region with the operations after it that leave its elements as they are on these inputs:
    a clip that nothing exceeds is part of what the port computes."""
    for _ in range(SILENT):
        entry = tape.slots[region.out].entry
        key = tape.index.key(entry) if entry >= 0 else None
        further = [
            out
            for k in sorted(tape.reading(entry))
            if k >= 0
            for out in tape.steps[k].outs
            if tape.slots[out].first
            and (other := tape.slots[out].entry) >= 0
            and tape.index.entries[other].slot >= 0
            and tape.index.key(other) == key
        ]
        if not further:
            break
        try:
            region = region_behind(tape, held, further[-1], before, through=region.out)
        except Refused:
            break
    return region


def _leaf(tape: Tape, number: int, constants: list[int]) -> None:
    """Take a constant that is written in the program; refuse all other leaves."""
    slot = tape.slots[number]
    entry = tape.index.entries[slot.entry]
    if slot.kind == "parameter":
        raise Refused(f"it reads {entry.where}, which the reference has no equal of")
    if slot.kind == "input":
        raise Refused(f"it reads {entry.where} of the port, which the reference has no equal of")
    if slot.kind == "stack":
        raise Refused("it reads what all steps of a loop computed")
    if slot.kind != "constant":
        raise Refused(f"it reads {entry.name}, whose numbers were not kept")
    value = tape.value(number)
    if value is None or not _written(value):
        raise Refused(
            f"it reads an array of constants of shape {entry.shape}, which no operation makes"
        )
    constants.append(number)


def _written(value: np.ndarray) -> bool:
    """True for one number, however often, and for integers that count along an axis: not what
    a computation left."""
    if value.size <= 1 or not _varied(value):
        return True
    if value.dtype.kind not in "iu" or value.ndim != 1:
        return False
    return bool((np.diff(value) == value[1] - value[0]).all())


def _one_step(tape: Tape, steps: Iterable[int]) -> None:
    """Refuse what reaches over several steps of a loop."""
    frames: dict[int, int] = {}
    for k in steps:
        for loop, step in tape.steps[k].frame:
            if frames.setdefault(loop, step) != step:
                raise Refused("it reaches over several steps of a loop")


def escaping(tape: Tape, found: Mapping[object, Sequence[int]]) -> set[int]:
    """Slots that lead to something that the reference does not hold, other than over what it holds:
    the rest are steps on the way to its values, which it takes otherwise."""
    read = {i for step in tape.steps for i in step.operands}
    leading: set[int] = {i for i in range(len(tape.slots)) if i not in read}
    keys: dict[int, bool] = {}

    def known(slot: int) -> bool:
        entry = tape.slots[slot].entry
        if entry not in keys:
            keys[entry] = entry >= 0 and tape.index.key(entry) in found
        return keys[entry]

    for step in reversed(tape.steps):
        if any(i in leading and not known(i) for i in step.outs):
            leading.update(step.operands)
    return leading


def replaced(
    graph: Graph,
    live: set[int],
    wanted: Iterable[int],
    refs: Mapping[int, Sequence[int]],
    gone: Iterable[int] = (),
) -> list[int]:
    """The live operations that no output needs where these operations read other values.

    Args:
        graph: without the change.
        live: the operations that an output depends on.
        wanted: ids of the outputs, and of what else is needed.
        refs: by operation, what it reads with the change.
        gone: operations that are not run any more at their own places.
    """
    needed, kept = set(wanted), set()
    for node in reversed(graph.nodes):
        if any(o in needed for o in node.outs):
            kept.add(node.index)
            if node.index in refs:
                needed.update(refs[node.index])
            elif node.name not in SHAPE_ONLY:
                needed.update(node.refs)
    dead = (live - kept) | (set(gone) & live)
    return [i for i in sorted(dead) if graph.nodes[i].name not in LAYOUT]


def small(run: int, dead: int, live: int, table: bool) -> bool:
    """True if a transplant of so many operations, instead of so many, is one."""
    return run <= (TABLE if table else RUN) and dead <= min(RUN, max(REPLACED, live // 10))
