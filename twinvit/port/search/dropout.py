"""Dropout of both sides, paired in train mode: the reference takes the port's random pattern.

What a side draws are zeros and ones at random, by which it multiplies a value. The two sides draw
others, so nothing after a dropout agrees before one takes the pattern of the other. Which dropout
is which is told by the value that goes in, element by element; the rates are read off what is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from twinvit.port.index import distance
from twinvit.port.record.draws import (
    CHAIN,
    SCALINGS,
    given_to,
    meeting,
    scaled_from,
    scaled_to,
)
from twinvit.port.record.graph import Edit, Graph, Node
from twinvit.port.record.jax_tape import Step, Tape
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.search.region import DRAWING, Order, orders
from twinvit.port.search.session import Session
from twinvit.port.search.trial import AppliedEdit

ARRANGED = ("convert_element_type", "copy", "reshape", "squeeze", "expand_dims", "broadcast_in_dim")
"""Layout operations of JAX that keep the order of the numbers, where their count stays."""
UNLIKELY = 5.0  # standard deviations that a fraction of zeros is not off by


@dataclass(frozen=True)
class Pattern:
    """Zeros in a value, and what the rest is multiplied by.

    Attributes:
        kept: True where a number is kept, or was zero before.
        factor: of the elements that are not dropped.
        zeros: the fraction of the others, among those that were not zero before.
    """

    kept: np.ndarray
    factor: float
    zeros: float


def pattern_of(given: np.ndarray, dropped: np.ndarray) -> Pattern | None:
    """The zeros in a value that was `given`; None where it is not zeros and one factor."""
    if given.shape != dropped.shape or not np.isfinite(given).all():
        return None
    there = given != 0
    kept = (dropped != 0) | ~there
    told = kept & there
    if not told.any() or not np.isfinite(dropped).all() or (dropped[~there] != 0).any():
        return None
    factors = dropped[told] / given[told]
    factor = float(np.median(factors))
    if factor == 0 or float(abs(factors - factor).max()) > 1e-9 * abs(factor):
        return None
    return Pattern(kept, factor, 1 - float(told.sum() / there.sum()))


@dataclass(frozen=True)
class Dropped:
    """A value with random zeros in it.

    Attributes:
        own: the zeros as the operation makes them that does.
        given: the value that it takes, and those that this one is made of by scalings with a
            number, each with the factor that makes it; the nearest first.
        after: factors of the scalings that follow, the first one 1.
        draws: how many elements were drawn.
    """

    own: Pattern
    given: list[tuple[np.ndarray, float]]
    after: list[float]
    draws: int

    def factors(self, i: int) -> list[float]:
        """What is kept is multiplied by these, from the i-th value given on."""
        return [self.given[i][1] * self.own.factor * after for after in self.after]

    @cached_property
    def rate(self) -> float:
        """Read off a factor where it fits the fraction of zeros; else that share."""
        return self.read if self.read is not None else self.own.zeros

    @cached_property
    def read(self) -> float | None:
        """The rate that a factor is for; None where none fits the fraction of zeros."""
        beside = [f for i in range(len(self.given)) for f in self.factors(i)]
        for factor in (self.own.factor, *beside):
            rate = 1 - 1 / factor
            if 1e-6 < rate < 1 and self.likely(rate):
                return rate
        return None

    def likely(self, rate: float) -> bool:
        """True if so many zeros are no wonder with this rate."""
        spread = math.sqrt(max(rate * (1 - rate), 1e-12) / max(self.draws, 1))
        return abs(self.own.zeros - rate) <= UNLIKELY * spread + 1 / max(self.draws, 1)


def _factor(whole: np.ndarray, part: np.ndarray) -> float:
    """What one value is multiplied by in another that is a scaling of it."""
    at = int(np.argmax(abs(part)))
    return float(whole.flat[at] / part.flat[at]) if part.size and part.flat[at] else 1.0


# ------------------------------------------------------------------------------- the reference


@dataclass(frozen=True)
class Site:
    """A dropout of the reference.

    Attributes:
        node: the operation that makes the zeros.
        given: the id of the value that it takes.
        draws: how many elements are drawn.
    """

    node: Node
    given: int
    draws: int


def sites_of(graph: Graph) -> list[Site]:
    """Operations that multiply a value by random zeros and ones, or mask it by them, in order."""
    drawn = graph.drawn()
    found = []
    for node in meeting(graph).values():
        given = given_to(graph, node)
        if given is None:
            continue
        out = graph.values[node.outs[0] or 0]
        if pattern_of(to_numpy(graph.values[given]), to_numpy(out)) is not None:
            random = [graph.values[r].numel() for r in node.refs if r in drawn]
            found.append(Site(node, given, max(random, default=out.numel())))
    return found


def _of_reference(session: Session, site: Site) -> Dropped | None:
    graph = session.graph
    out = site.node.outs[0]
    assert out is not None
    given, dropped = to_numpy(graph.values[site.given]), to_numpy(graph.values[out])
    own = pattern_of(given, dropped)
    if own is None:
        return None
    before = [to_numpy(graph.values[i]) for i in scaled_from(graph, site.given)]
    after = [to_numpy(graph.values[i]) for i in scaled_to(graph, out)]
    return Dropped(
        own,
        [(x, _factor(given, x)) for x in before],
        [_factor(x, dropped) for x in after],
        site.draws,
    )


# ------------------------------------------------------------------------------------ the port


class PortDropouts:
    """The dropouts of the port, by the steps of its tape that make the zeros."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape

    @cached_property
    def found(self) -> dict[int, Dropped]:
        """By the position of the step."""
        tape = self.tape
        drawn: set[int] = set()
        dependent: set[int] = set()
        for number, slot in enumerate(tape.slots):
            entry = tape.index.entries[slot.entry] if slot.entry >= 0 else None
            if slot.step < 0 and entry is not None and slot.kind in ("parameter", "input"):
                if entry.value is not None or entry.few is not None:
                    dependent.add(number)
        result = {}
        for k, step in enumerate(tape.steps):
            random = any(step.name.startswith(name) for name in DRAWING)
            of_random = [i for i in step.operands if i in drawn]
            of_inputs = [i for i in step.operands if i in dependent]
            if of_inputs and not random:
                dependent.update(step.outs)
                if of_random and len(of_inputs) == 1:
                    dropped = self._dropped(step, of_inputs[0], of_random)
                    if dropped is not None:
                        result[k] = dropped
            elif random or of_random:
                drawn.update(step.outs)
        return result

    def _dropped(self, step: Step, given: int, random: list[int]) -> Dropped | None:
        first, last = [given], [step.outs[0]]
        while len(first) <= CHAIN:
            before = self.tape.step_of(first[-1])
            scaled = self._scaled(before) if before is not None else None
            if scaled is None:
                break
            first.append(scaled)
        while len(last) <= CHAIN:
            reading = self.tape.reading(self.tape.slots[last[-1]].entry)
            after = [self.tape.steps[i] for i in reading if i >= 0]
            if len(after) != 1 or self._scaled(after[0]) is None:
                break
            last.append(after[0].outs[0])
        x, y = self._value(given), self._value(step.outs[0])
        if x is None or y is None or x.dtype != np.float64 or y.dtype != np.float64:
            return None
        own = pattern_of(x, y)
        arrays = [v for v in map(self._value, first) if v is not None]
        later = [v for v in map(self._value, last) if v is not None]
        if own is None:
            return None
        return Dropped(
            own,
            [(v, _factor(x, v)) for v in arrays],
            [_factor(v, y) for v in later],
            self._draws(random, x.size),
        )

    def _value(self, number: int) -> np.ndarray | None:
        """The array that a slot holds, where it was stored in this layout or in another."""
        value = self.tape.value(number)
        step = self.tape.step_of(number)
        if value is not None or step is None or not step.layout or not step.operands:
            return value
        before = self._value(step.operands[0])
        if before is None:
            return None
        if step.name == "transpose":
            return before.transpose(step.eqn.params["permutation"])
        shape = step.eqn.outvars[step.outs.index(number)].aval.shape
        kept = step.name in ARRANGED and before.size == int(np.prod(shape))
        return before.reshape(shape) if kept else None

    def _scaled(self, step: Step) -> int | None:
        """The operand that a step multiplies by a number, or divides by one; None for others."""
        if step.name not in SCALINGS or len(step.operands) != 2:
            return None
        kinds = [self.tape.slots[i].kind for i in step.operands]
        sizes = [np.size(v) if (v := self.tape.value(i)) is not None else 0 for i in step.operands]
        numbers_ = [k in ("literal", "constant") and n == 1 for k, n in zip(kinds, sizes)]
        if numbers_[1] and not numbers_[0]:
            return step.operands[0]
        if step.name == "mul" and numbers_[0] and not numbers_[1]:
            return step.operands[1]
        return None

    def _draws(self, random: list[int], size: int) -> int:
        """How many elements were drawn for a value of this size: fewer, where they are
        broadcast."""
        sizes = []
        for number in random:
            slot = number
            while (step := self.tape.step_of(slot)) is not None and step.name in (
                "broadcast_in_dim", "reshape", "squeeze", "convert_element_type", "expand_dims"
            ):  # fmt: skip
                slot = step.operands[0]
            value = self.tape.value(slot)
            sizes.append(size if value is None else int(value.size))
        return max(sizes, default=size)


# --------------------------------------------------------------------------------------- pairs


class Pairing:
    """Dropouts of the reference that have taken the pattern of one of the port's."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.sites = sites_of(session.graph)
        self.random = meeting(session.graph)
        tape = session.index.tape
        self.port = None if tape is None else PortDropouts(tape)
        self._pairs: dict[int, tuple[Node, int]] = {}
        """By the site's operation, what stands there and the port's step."""
        self.alike: dict[int, Edit] = {}
        """The patterns that were taken where the two are alike, by the site's operation."""

    def unpaired(self) -> Iterator[Node]:
        """Operations where random numbers meet values, and that nothing has been put in place
        of."""
        nodes = self.session.graph.nodes
        yield from (n for i, n in self.random.items() if nodes[i] is n and i in self.session.live)

    def step(self, *, alike: bool = False) -> AppliedEdit | bool:
        """Pair the next dropout whose input the port holds. Returns the finding where the two are
        not alike (`alike`: such a pair is left), True where they are, and False if there is none to
        be paired."""
        nodes = self.session.graph.nodes
        claimed = {k for i, (node, k) in self._pairs.items() if nodes[i] is node}
        for site in self.sites:
            if nodes[site.node.index] is not site.node or site.node.index not in self.session.live:
                continue
            mine = _of_reference(self.session, site)
            if mine is None or self.port is None:
                continue
            for k, theirs in self.port.found.items():
                found = None if k in claimed else _alike(mine, theirs)
                if found is not None and not (alike and found.told):
                    return self._take(site, mine, theirs, found, k)
        return False

    def _take(
        self, site: Site, mine: Dropped, theirs: Dropped, pair: _Pair, k: int
    ) -> AppliedEdit | bool:
        session, index = self.session, site.node.index
        kept = pair.order.apply(theirs.own.kept).astype(np.float64)
        mask = torch.from_numpy(mine.own.factor * pair.factor * kept)
        replaced = session.graph.nodes[index]
        edit = Edit(lambda x: x * mask, (site.given,))
        session.apply({index: edit})
        made = session.graph.nodes[index]
        self._pairs[index] = (made, k)
        if pair.told is None:
            self.alike[index] = edit
            return True
        assert session.index.tape is not None
        cause, text = pair.told
        where = session.index.tape.steps[k].where
        done = AppliedEdit(
            "cause", cause, text, site.node, {index: edit}, {}, where, abs(pair.factor - 1), 0.0,
            [site.node.place],
        )  # fmt: skip
        done.replaced, done.made, done.groups = {index: replaced}, {index: made}, [[index]]
        return done


@dataclass(frozen=True)
class _Pair:
    """Two dropouts of one value.

    Attributes:
        order: how the port's axes become the reference's.
        told: how the two differ, a cause and its text; None where they are alike.
        factor: of the port's kept numbers, beside the reference's.
    """

    order: Order
    told: tuple[str, str] | None
    factor: float


def _alike(mine: Dropped, theirs: Dropped) -> _Pair | None:
    """The two as a pair, if the same value goes into both."""
    for i, (x, _) in enumerate(mine.given):
        for j, (y, _) in enumerate(theirs.given):
            if x.size != y.size:
                return None
            for order in orders(y.shape, x.shape)[:24]:
                if distance(x, order.apply(y)) <= 1e-9:
                    return _Pair(order, *_unlike(mine, theirs, i, j))
    return None


def _unlike(mine: Dropped, theirs: Dropped, i: int, j: int) -> tuple[tuple[str, str] | None, float]:
    """How two dropouts of one value differ, and the factor of the port's kept numbers. `i`, `j`:
    places of the value among those given."""
    rate = mine.rate
    near = any(abs(a - b) <= 1e-9 * abs(a) for a in mine.factors(i) for b in theirs.factors(j))
    known = theirs.read is not None and abs(theirs.read - rate) < 1e-9
    if theirs.likely(rate) and (near or known):
        return None, 1.0
    if theirs.read is not None and not near:
        text = f"the port drops at a rate of {theirs.read:.4g} here; the reference of {rate:.4g}"
        return ("dropout_rate", text), (1 - rate) / (1 - theirs.read)
    share = f"the port zeroes {100 * theirs.own.zeros:.3g} % of the numbers here"
    if near:
        text = f"{share} and scales the rest as for the reference's rate of {rate:.4g}"
        return ("dropout_rate", text), 1.0
    whole = theirs.factors(j)[0] / mine.factors(i)[0]
    text = (
        f"{share} and multiplies the rest by {whole / (1 - rate):.6g}; the reference's rate is "
        f"{rate:.4g}, and it multiplies by {1 / (1 - rate):.6g}"
    )
    return ("dropout_scale", text), whole
