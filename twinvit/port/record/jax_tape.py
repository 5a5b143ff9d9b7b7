"""What the port computed, step by step: each equation with its parameters and operands.

The index knows what the port's values hold; the tape knows how they are made, so that a part of the
port's program can be run again on other values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from twinvit.port.index import Index
from twinvit.port.ops.primitives import LAYOUT
from twinvit.port.record.jax_interpreter import Interpreter

KEPT = 1 << 20  # bytes of one value that the index does not hold, at most
BUDGET = 1 << 27  # bytes of all of them

Frame = tuple[tuple[int, int], ...]
"""The loops around an equation, outermost first, each with the step that it is in."""


@dataclass(frozen=True)
class Step:
    """One equation that was run.

    Attributes:
        eqn: the equation, with its primitive and parameters; None for a scan's slice.
        name: the primitive; "slice" of a scan takes one step of an array's first axis.
        where: the user's line.
        operands, outs: slots.
        frame: the loops around it.
        part: which step a scan's slice takes.
    """

    eqn: Any
    name: str
    where: str
    operands: tuple[int, ...]
    outs: tuple[int, ...]
    frame: Frame = ()
    part: int = 0

    @property
    def layout(self) -> bool:
        """True for a step that returns the same values, at most in another order or more often."""
        return self.name in LAYOUT or self.name in ("convert_element_type", "broadcast_in_dim")


@dataclass
class Slot:
    """One value as the program holds it: unlike the index, in each layout by itself.

    Attributes:
        entry: the index's entry of these values; -1 for a literal.
        kind: "parameter", "input", "constant", "literal", "step", "slice" or "stack".
        step: the step that makes it; -1 for what no step makes.
        first: True if the entry's numbers are in this layout.
        value: stored where the index does not hold it, and small; else None.
    """

    entry: int
    kind: str
    step: int = -1
    first: bool = True
    value: Any = None


@dataclass
class Tape:
    """The port's program as it ran: slots and the steps between them, in order."""

    index: Index
    slots: list[Slot] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    held: int = 0
    origin: dict[int, int] = field(default_factory=dict)
    """By entry, the slot in whose layout the index holds it."""
    returned: set[int] = field(default_factory=set)
    """Slots that the program or a step of a loop returns as results, read by no equation."""

    def add(self, slot: Slot, value: Any = None) -> int:
        """A new slot; its value is stored if the index does not hold it and it is small."""
        number = len(self.slots)
        if value is not None and (slot.entry < 0 or self.index.entries[slot.entry].kept is None):
            size = getattr(value, "nbytes", 0)
            plain = isinstance(getattr(value, "dtype", None), np.dtype)  # no key of random numbers
            if size <= KEPT and self.held + size <= BUDGET and plain:
                slot.value = value
                self.held += size
        self.slots.append(slot)
        if slot.entry >= 0 and slot.first:
            self.origin.setdefault(slot.entry, number)
        return number

    def value(self, number: int) -> np.ndarray | None:
        """The array that a slot holds; None where it was not stored."""
        slot = self.slots[number]
        if slot.value is not None:
            return np.asarray(slot.value)
        if slot.first and slot.entry >= 0:
            return self.index.entries[slot.entry].value
        return None

    def reading(self, entry: int) -> set[int]:
        """Steps that read an entry in any layout; -1 stands for its being returned."""
        return self._readers.get(entry, set())

    @cached_property
    def _readers(self) -> dict[int, set[int]]:
        found: dict[int, set[int]] = {}
        for k, step in enumerate(self.steps):
            made = {self.slots[i].entry for i in step.outs}
            for operand in step.operands:
                entry = self.slots[operand].entry
                if made != {entry}:  # no other layout of the same values
                    found.setdefault(entry, set()).add(k)
        for number in self.returned:
            found.setdefault(self.slots[number].entry, set()).add(-1)
        return found

    def step_of(self, number: int) -> Step | None:
        k = self.slots[number].step
        return self.steps[k] if k >= 0 else None


@dataclass
class _Loop:
    number: int
    body: Any
    length: int
    reverse: bool
    carried: int
    step: int = -1

    def next(self) -> int:
        """The step whose slices are made now."""
        done = self.step + 1
        return self.length - 1 - done if self.reverse else done


class Taping(Interpreter):
    """An interpreter that also writes a tape; the ids that it passes on are slots of the tape."""

    def __init__(self, index: Index) -> None:
        super().__init__(index.add)
        self.index = index
        self.tape = Tape(index)
        self._eqn: Any = None
        self._loops: list[_Loop] = []
        self._count = 0

    def given(self, entries: Sequence[int]) -> list[int]:
        """Slots of the parameters and inputs that the program is called with."""
        kinds = [self.index.entries[e].name for e in entries]
        return [self.tape.add(Slot(e, kind)) for e, kind in zip(entries, kinds)]

    def equation(self, eqn: Any, values: list[Any], ids: list[int]) -> tuple[list[Any], list[int]]:
        ids = [
            self.tape.add(Slot(-1, "literal"), np.asarray(v)) if i < 0 else i
            for i, v in zip(ids, values)
        ]
        self._eqn = eqn
        return super().equation(eqn, values, ids)

    def tell(self, value: Any, name: str, where: str, parents: list[int]) -> int:
        entries = [self.tape.slots[p].entry for p in parents]
        entry = super().tell(value, name, where, [e for e in entries if e >= 0])
        kind = name if name in ("constant", "slice", "stack") and not where else "step"
        number = self.tape.add(Slot(entry, kind), value)
        if kind == "slice" and parents and self._loops:
            part = self._loops[-1].next()
            self._write(Step(None, "slice", "", (parents[0],), (number,), self._frame(), part))
        return number

    def told(
        self, name: str, outs: list[Any], values: list[Any], ids: list[int], where: str
    ) -> tuple[list[Any], list[int]]:
        outs, found = super().told(name, outs, values, ids, where)
        numbers = [
            self.tape.add(Slot(self.tape.slots[i].entry, "step", first=False)) if i in ids else i
            for i in found
        ]
        self._write(Step(self._eqn, name, where, tuple(ids), tuple(numbers), self._frame()))
        return outs, numbers

    def mark(self, var: Any, value: int) -> None:
        super().mark(var, self.tape.slots[value].entry if value >= 0 else value)

    def _write(self, step: Step) -> None:
        for number in step.outs:
            self.tape.slots[number].step = len(self.tape.steps)
        self.tape.steps.append(step)

    def _frame(self) -> Frame:
        return tuple((loop.number, loop.step) for loop in self._loops)

    def closed(
        self, closed: Any, args: Sequence[Any], ids: Sequence[int]
    ) -> tuple[list[Any], list[int]]:
        loop = self._loops[-1] if self._loops and closed is self._loops[-1].body else None
        if loop is not None:
            loop.step += 1
        outs, found = super().closed(closed, args, ids)
        if loop is not None:
            self.tape.returned.update(found[loop.carried :])
        return outs, found

    def _scan(
        self, params: dict[str, Any], values: list[Any], ids: list[int]
    ) -> tuple[list[Any], list[int]]:
        carried = params["num_carry"]
        with self._loop(params["jaxpr"], params["length"], params["reverse"], carried):
            return super()._scan(params, values, ids)

    def _while(
        self, params: dict[str, Any], values: list[Any], ids: list[int]
    ) -> tuple[list[Any], list[int]]:
        carried = len(values) - params["cond_nconsts"] - params["body_nconsts"]
        with self._loop(params["body_jaxpr"], 0, False, carried):
            return super()._while(params, values, ids)

    def _loop(self, body: Any, length: int, reverse: bool, carried: int) -> _Within:
        self._count += 1
        return _Within(self._loops, _Loop(self._count, body, length, reverse, carried))


class _Within:
    """Within a loop of the program."""

    def __init__(self, loops: list[_Loop], loop: _Loop) -> None:
        self.loops, self.loop = loops, loop

    def __enter__(self) -> None:
        self.loops.append(self.loop)

    def __exit__(self, *_: object) -> None:
        self.loops.pop()
