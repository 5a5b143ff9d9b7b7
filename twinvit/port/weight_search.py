"""What names leave open in a map of weights is decided by running the port with it.

The reference's values are looked for in its order. Where the first one is missing, the arrays that
it is computed from are exchanged with others of their shape, layer by layer or one by one, or
turned, and an exchange is kept if more of the reference's values appear.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from twinvit.port.errors import PortError
from twinvit.port.found import EQUAL
from twinvit.port.index import Index, evidence
from twinvit.port.pair import Pair
from twinvit.port.record import jax_trace, jax_types
from twinvit.port.record.graph import Graph, Node, Ref
from twinvit.port.record.jax_interpreter import Interpreter
from twinvit.port.record.torch_values import to_numpy

TRIES = 600  # alternatives that are decided by running the port, all together
SECONDS = 60.0
BEHIND = 12  # operations that are followed back from a missing value to the arrays behind it


@dataclass
class Target:
    """A value of the reference that the port is to compute.

    Attributes:
        value: its elements.
        node: the operation that it belongs to.
        names: the reference's arrays that it is computed from directly.
    """

    value: np.ndarray
    node: int
    names: tuple[str, ...]


def targets_of(graph: Graph) -> list[Target]:
    """The reference's values in order, those of a layer's parts among them: a product before its
    bias, a normalised value before its scale."""
    live = set().union(*(graph.ancestors(o) for o in graph.outputs))
    live &= graph.input_dependent()
    found: list[Target] = []
    for node in graph.nodes:
        outs = [o for o in node.outs if o is not None and o in live]
        if not outs:
            continue
        values = [(v, names) for v, names in _inner(graph, node)]
        names = tuple(n for r in node.refs if (n := _parameter(graph, r)) is not None)
        values += [(graph.values[o], names) for o in outs]
        for value, behind in values:
            if value.dtype == torch.float64 and evidence(to_numpy(value)):
                found.append(Target(to_numpy(value), node.index, behind))
    return found


def _parameter(graph: Graph, value: int) -> str | None:
    """The name of the array that a value is, or a layout or part of; None if it is computed."""
    dependent = graph.input_dependent()
    while value not in dependent:
        source = graph.source[value]
        if source.startswith("param:"):
            return source[6:]
        producer = graph.producer[value]
        if producer is None or not graph.nodes[producer].refs:
            return None
        value = graph.nodes[producer].refs[0]
    return None


def _inner(graph: Graph, node: Node) -> Iterator[tuple[torch.Tensor, tuple[str, ...]]]:
    """Values inside an operation that a port has between several of its own."""
    args, _ = graph.arguments(node)

    def named(*places: int) -> tuple[str, ...]:
        refs = [node.args[k] for k in places if k < len(node.args)]
        found = [_parameter(graph, r.id) for r in refs if isinstance(r, Ref)]
        return tuple(n for n in found if n is not None)

    with torch.no_grad():
        if node.name == "addmm" and len(args) >= 3:
            yield args[1] @ args[2], named(1, 2)
        elif node.name == "convolution" and args[2] is not None:
            yield node.op(*args[:2], None, *args[3:]), named(0, 1)
        elif node.name == "native_layer_norm":
            yield node.op(*args[:2], None, None, *args[4:])[0], ()
            if args[2] is not None:
                yield node.op(*args[:3], None, *args[4:])[0], named(2)
        elif node.name == "native_batch_norm" and not args[5] and args[3] is not None:
            shape = [1, -1] + [1] * (args[0].ndim - 2)
            yield args[0] - args[3].reshape(shape), named(3)
            yield node.op(args[0], None, None, *args[3:])[0], named(3, 4)
            if args[1] is not None:
                yield node.op(args[0], args[1], None, *args[3:])[0], named(1, 3, 4)


class WeightSearch:
    """A map of weights that is made better by running the port with it.

    Args:
        rules: the proposed rules, changed in place.
        open_: names of the port's arrays that may be exchanged or turned.
        turned: orders of axes to try for a rule.
        state: the reference's arrays in float64.
    """

    def __init__(
        self,
        pair: Pair,
        graph: Graph,
        rules: list[Any],
        open_: set[str],
        turned: Callable[[Any], Sequence[tuple[int, ...]]],
        state: Mapping[str, np.ndarray],
    ) -> None:
        self.pair, self.graph, self.rules = pair, graph, rules
        self.open, self.turned, self.state = open_, turned, state
        self.targets = targets_of(graph)
        self.traced, self.arrays, self.pure = pair.trace()
        self.tries = 0
        self.until = time.monotonic() + SECONDS
        self.flags = self.run(rules)

    @property
    def spent(self) -> bool:
        return self.tries >= TRIES or time.monotonic() > self.until

    def run(self, rules: Sequence[Any]) -> list[bool]:
        """Which of the targets the port computes with these rules."""
        self.tries += 1
        position = {n: k for k, n in enumerate(self.pure.names)}
        values = [*self.pair.leaves.arguments(), *self.arrays]
        try:
            for rule in rules:
                k = position[rule.jax]
                values[k] = jax_types.widen(
                    np.asarray(rule.make(self.state)).reshape(np.shape(self.pair.leaves.kept(k)))
                )
            index = Index()
            jax_trace.evaluate(self.traced, values, [-1] * len(values), Interpreter(index.add))
        except (PortError, ValueError):
            return [False] * len(self.targets)
        return [index.find(t.value, EQUAL) is not None for t in self.targets]

    def decide(self) -> set[str]:
        """Exchange and turn what makes more values appear; returns the port's arrays that nothing
        decided."""
        stuck: set[int] = set()
        while not self.spent:
            lost = next((k for k in self._lost() if k not in stuck), None)
            if lost is None:
                break
            if not self._repair(lost):
                stuck.add(lost)
                stuck.update(self._after(lost))
        return self._undecided()

    def _lost(self) -> list[int]:
        """Targets in order that are missing, and that nothing that follows them proves."""
        of_node: dict[int, list[int]] = {}
        for k, target in enumerate(self.targets):
            of_node.setdefault(target.node, []).append(k)
        reached: set[int] = set()  # operations that a found value depends on
        lost: list[int] = []
        for node in reversed(range(len(self.graph.nodes))):
            mine = of_node.get(node, [])
            right = node in reached or bool(mine) and self.flags[mine[-1]]
            if not right:
                lost += [k for k in reversed(mine) if not self.flags[k]]
            if right or any(self.flags[k] for k in mine):
                reached.update(self._behind(node))
        return lost[::-1]

    def _behind(self, node: int) -> set[int]:
        """Operations that one takes its operands from."""
        producers = (self.graph.producer[r] for r in self.graph.nodes[node].refs)
        return {p for p in producers if p is not None}

    def _after(self, k: int) -> set[int]:
        """Targets that depend on one."""
        nodes = {self.targets[k].node}
        for node in self.graph.nodes[self.targets[k].node + 1 :]:
            if self._behind(node.index) & nodes:
                nodes.add(node.index)
        return {j for j, t in enumerate(self.targets) if j != k and t.node in nodes}

    def _repair(self, lost: int) -> bool:
        best, kept = sum(self.flags), None
        for rules in self._moves(lost):
            if self.spent:
                break
            flags = self.run(rules)
            if sum(flags) > best:
                best, kept = sum(flags), (rules, flags)
                if flags[lost]:
                    break
        if kept is None:
            return False
        self.rules[:], self.flags = kept
        return True

    def _moves(self, lost: int) -> Iterator[list[Any]]:
        """Other rules, those first that concern the arrays which the value is computed from."""
        names = self.targets[lost].names or self._nearest(lost)
        mine = [r for r in self.rules if r.jax in self.open and set(r.torch) & set(names)]
        for rule in mine:
            for order in self.turned(rule):
                if order != rule.permute:
                    yield self._with({rule.jax: replace(rule, permute=order)})
        seen: set[frozenset[tuple[str, ...]]] = set()
        for rule in mine:
            layer = [r for r in self.rules if _layer(r) == _layer(rule)]
            for place in self._places(rule):
                changed = self._moved(layer, place)
                key = frozenset((n, *r.torch, *map(str, r.part)) for n, r in changed.items())
                if changed and key not in seen:
                    seen.add(key)
                    yield self._with(changed)
        for rule in mine:
            for other in self._others(rule):
                changed = self._exchange(rule, other)
                key = frozenset((n, *r.torch, *map(str, r.part)) for n, r in changed.items())
                if key not in seen:
                    seen.add(key)
                    yield self._with(changed)

    def _nearest(self, lost: int) -> tuple[str, ...]:
        """The reference's arrays behind an operation that takes none itself."""
        found: dict[str, None] = {}
        todo: list[int] = [self.targets[lost].node]
        seen: set[int] = set()
        while todo and len(seen) < BEHIND * 4:
            node = todo.pop(0)
            if node in seen:
                continue
            seen.add(node)
            own = [_parameter(self.graph, r) for r in self.graph.nodes[node].refs]
            names = [n for n in own if n is not None]
            found.update(dict.fromkeys(names))
            if len(found) >= BEHIND:
                break
            todo += sorted(self._behind(node), reverse=True)
        return tuple(found)

    def _others(self, rule: Any) -> list[Any]:
        """Rules whose arrays the rule's could be, those of values not yet found first."""
        missing = {n for k, t in enumerate(self.targets) if not self.flags[k] for n in t.names}
        others = [
            r
            for r in self.rules
            if r.jax != rule.jax
            and r.jax in self.open
            and np.prod(r.torch_shape) == np.prod(rule.torch_shape)
            and len(r.torch) == len(rule.torch)
        ]
        return sorted(others, key=lambda r: not set(r.torch) & missing)

    def _places(self, rule: Any) -> list[list[str]]:
        """Layers of the port that a rule's array and the others of its layer could stand in."""
        found: dict[str, list[str]] = {}
        for other in self._others(rule):
            near = [r for r in self.rules if _place(r) == _place(other)]
            if len({_kind(r) for r in near}) == len(near):
                found.setdefault(_place(other), [r.jax for r in near])
        return list(found.values())

    def _moved(self, layer: Sequence[Any], place: Sequence[str]) -> dict[str, Any]:
        """A layer's arrays put into another place, kind by kind, and what was there in theirs;
        empty if they do not fit."""
        now = {r.jax: r for r in self.rules}
        kinds = {_kind(now[n]): n for n in place}
        before = dict(now)
        for array in layer:
            goal = kinds.get(_kind(array))
            if goal is None or goal not in self.open:
                return {}
            holder = next(r for r in now.values() if (r.torch, r.part) == (array.torch, array.part))
            if holder.jax == goal:
                continue
            if np.prod(holder.torch_shape) != np.prod(now[goal].torch_shape):
                return {}
            now |= self._exchange(holder, now[goal])
        return {n: r for n, r in now.items() if r != before[n]}

    def _exchange(self, a: Any, b: Any) -> dict[str, Any]:
        """Two rules with each other's arrays; each keeps its own order of axes, if it can."""

        def taking(rule: Any, other: Any) -> Any:
            shape = tuple(other.torch_shape)
            new = replace(rule, torch=other.torch, part=other.part, torch_shape=shape)
            if shape == tuple(rule.torch_shape):
                return new
            return replace(new, permute=self.turned(new)[0])

        return {a.jax: taking(a, b), b.jax: taking(b, a)}

    def _with(self, changed: Mapping[str, Any]) -> list[Any]:
        return [changed.get(r.jax, r) for r in self.rules]

    def _mixing(self, node: int) -> bool:
        """True if several computed values meet here or on the one way back to it, so that arrays
        whose products are all found may still be in each other's place."""
        dependent = self.graph.input_dependent()
        while True:
            refs = [r for r in self.graph.nodes[node].refs if r in dependent]
            if len(refs) > 1:
                return True
            own = [_parameter(self.graph, r) for r in self.graph.nodes[node].refs]
            producer = self.graph.producer[refs[0]] if refs else None
            if producer is None or any(own):
                return False
            node = producer

    def _undecided(self) -> set[str]:
        """The port's arrays whose values never appeared."""
        lost = self._lost()
        names: set[str] = set()
        for k in lost:
            mixed = self._mixing(self.targets[k].node)
            names.update(self.targets[k].names or (self._nearest(k) if mixed else ()))
        return {r.jax for r in self.rules if r.jax in self.open and set(r.torch) & names}


def _layer(rule: Any) -> tuple[Any, ...]:
    return tuple(n.rpartition(".")[0] for n in rule.torch), rule.part


def _place(rule: Any) -> str:
    """The layer of the port that a rule's array stands in, whatever its collection."""
    return re.sub(r"^(params|batch_stats)\.", "", rule.jax).rpartition(".")[0]


def _kind(rule: Any) -> tuple[str, int]:
    last = rule.torch[0].rpartition(".")[2]
    return next((k for k in ("weight", "bias") if last.endswith(k)), last), len(rule.torch)


def equal_arrays(state: Mapping[str, np.ndarray]) -> list[str]:
    """Arrays that hold the same values in the same or in another order of axes, in words: which of
    them one of the port's is cannot be determined by any value."""
    sets: dict[tuple[Any, ...], list[str]] = {}
    texts = []
    for name, x in state.items():
        if not x.size:
            continue
        flat = np.sort(x.reshape(-1))
        sets.setdefault((x.size, flat.tobytes()), []).append(name)
        x = x.squeeze()
        if 2 <= x.ndim <= 5 and float(flat[0]) != float(flat[-1]):
            orders = list(itertools.permutations(range(x.ndim)))[1:]
            if any(np.array_equal(x.transpose(o), x) for o in orders):
                texts.append(f"{name} is the same in another order of its axes")
    for names in sets.values():
        if len(names) > 1:
            texts.append(f"{', '.join(names)} hold equal numbers: which is which cannot be told")
    return texts
