"""A recorded PyTorch program: values, operations between them, and running it again with edits.

What is recorded is functional (an operation in place is there as its functional form), so any part
of the graph can be run again with other values, under autograd too. Nothing changes a graph: an
edit returns a new one, which uses the same values where the edit does not reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_flatten

from twinvit.port.ops import FRESH_DRAWS, RANDOM, SHAPE_ONLY
from twinvit.port.record.graph_values import Values
from twinvit.port.record.own_types import OwnTypes
from twinvit.port.record.torch_types import Heard

SIZED_BY_VALUES = frozenset(
    {"nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive"}
)
"""Operations whose results' sizes depend on numbers."""
RANDOM_NUMBERS = (RANDOM | FRESH_DRAWS) - {"native_dropout"}


_PLAIN = frozenset((int, float, bool, type(None), str, torch.dtype, torch.device))
"""Types of arguments that hold no value."""


@dataclass(frozen=True, slots=True)
class Ref:
    """A recorded value in an operation's arguments."""

    id: int


@dataclass(frozen=True, eq=False)
class Node:
    """One operation: what it was called with, what came out, and where it is in the user's
    code. `refs` are the ids of the values among its arguments, each once."""

    index: int
    op: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outs: tuple[int | None, ...]
    scope: str
    where: str
    narrowed: torch.dtype | None = None
    refs: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        leaves = tree_flatten((self.args, self.kwargs))[0]
        refs = tuple(dict.fromkeys(r.id for r in leaves if isinstance(r, Ref)))
        object.__setattr__(self, "refs", refs)

    @property
    def place(self) -> str:
        """The reference's place, "layers.0.mlp.act: gelu"."""
        return f"{self.scope}: {self.name}" if self.scope else self.name

    def run(self, values: Mapping[int, torch.Tensor]) -> Any:
        """What it returns for these operands, by id."""

        def get(x: Any) -> Any:
            return values[x.id] if isinstance(x, Ref) else x

        return self.op(*_map_refs(self.args, get), **_map_refs(self.kwargs, get))

    def edited(self, edit: Edit) -> Node:
        """The operation as an edit makes it."""
        if edit.refs is None:
            return replace(self, op=edit.fn)
        return replace(self, op=edit.fn, args=tuple(map(Ref, edit.refs)), kwargs={})

    def with_result(self, position: int, value: torch.Tensor) -> Node:
        """The operation with one of its results given."""
        op = self.op

        def fn(*args: Any, **kwargs: Any) -> Any:
            out = op(*args, **kwargs)
            if isinstance(out, torch.Tensor):
                return value
            made = list(flat_tensors(out))
            made[position] = value
            return tuple(made)

        return replace(self, op=fn)


class Edit(NamedTuple):
    """A function that replaces an operation.

    It takes the operation's resolved arguments, or the values `refs` where they are given (all of
    them come before the operation), and returns what the operation returns.
    """

    fn: Callable[..., Any]
    refs: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Graph:
    """A recorded model: values by id, the operations between them, the outputs' ids.

    Attributes:
        source: of each value "param:NAME", "input:K", "const" or "node".
        producer: of each value the index of the operation that makes it; None where none does.
        narrowings: where the model requested a narrower type, and which.
        modules: classes of modules by name.
        reads: values that the model's Python code read as numbers (`if`, `.item()`), and where.
        heard: each operation as the model called it in its own dtypes.
        heard_at: the number of recorded operations before each of them.
        written: values that random numbers were written into (`bernoulli_`).
        rows: of each attention whether it zeroed rows that are completely masked.
        types: the types that values have as the program runs; None where that is not known.
        numbers: operations, by their place in `heard`, that took the numbers of the program that
            runs.
        own: the types that the program was recorded in, by parameter and input ("input:0"), where
            its operations depend on them; empty for a recording in float64.
        by_value: positions of operations that a recording holds by their value: they are run on
            the numbers that were recorded alone, and not edited.
        recorded: the graph as it was recorded, of one with edits.
    """

    values: Values
    source: tuple[str, ...]
    producer: tuple[int | None, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    narrowings: tuple[tuple[str, str], ...] = ()
    modules: Mapping[str, str] = field(default_factory=dict)
    buffers: frozenset[str] = frozenset()
    reads: tuple[tuple[int, str], ...] = ()
    heard: tuple[Heard, ...] = ()
    heard_at: tuple[int, ...] = ()
    written: frozenset[int] = frozenset()
    rows: tuple[bool, ...] = ()
    types: OwnTypes | None = None
    numbers: Mapping[int, Heard] = field(default_factory=dict)
    own: Mapping[str, torch.dtype] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    by_value: frozenset[int] = frozenset()
    recorded: Graph | None = None

    @cached_property
    def consumers(self) -> dict[int, tuple[int, ...]]:
        """Indices of the operations that take a value, in order, by its id."""
        found: dict[int, list[int]] = {}
        for node in self.nodes:
            for ref in node.refs:
                found.setdefault(ref, []).append(node.index)
        return {i: tuple(users) for i, users in found.items()}

    def input_dependent(self) -> frozenset[int]:
        """Ids of the values that depend on an input's elements, and not on its shape alone, in the
        program as it was recorded."""
        return (self.recorded or self)._input_dependent

    @cached_property
    def _input_dependent(self) -> frozenset[int]:
        return self._reached(self.inputs(), lambda node: node.name not in SHAPE_ONLY)

    def trained(self) -> frozenset[int]:
        """Ids of the values that depend on a parameter, or on a running statistic, in the program
        as it was recorded; other buffers are tables and masks."""
        return (self.recorded or self)._trained

    @cached_property
    def _trained(self) -> frozenset[int]:
        return self._reached(
            i
            for name, i in self.params().items()
            if name not in self.buffers or name.rsplit(".", 1)[-1].startswith("running_")
        )

    def drawn(self) -> frozenset[int]:
        """Ids of the values that random numbers make alone, and neither inputs nor parameters, in
        the program as it was recorded."""
        return (self.recorded or self)._drawn

    @cached_property
    def _drawn(self) -> frozenset[int]:
        made = {o for n in self.nodes if n.name in RANDOM_NUMBERS for o in n.outs if o is not None}
        fixed = self.input_dependent() | self.trained()
        return self._reached(made | self.written) - fixed

    def _reached(
        self, start: Iterable[int], through: Callable[[Node], bool] = lambda node: True
    ) -> frozenset[int]:
        """These values, and those that operations `through` compute from them."""
        found = set(start)
        for node in self.nodes:
            if through(node) and any(r in found for r in node.refs):
                found.update(o for o in node.outs if o is not None)
        return frozenset(found)

    def following(self, *values: int) -> frozenset[int]:
        """Ids of these values, and of those that are computed from them."""
        return self._reached(values)

    def ancestors(self, value_id: int) -> set[int]:
        """Ids of the values that a value is computed from, itself among them."""
        found, rest = {value_id}, [value_id]
        while rest:
            producer = self.producer[rest.pop()]
            refs = self.nodes[producer].refs if producer is not None else ()
            fresh = [r for r in refs if r not in found]
            found.update(fresh)
            rest += fresh
        return found

    def branches(self) -> list[str]:
        """Where the model's control flow follows numbers that depend on its inputs, in words."""
        dependent = self.input_dependent()
        places = dict.fromkeys(where for i, where in self.reads if i in dependent)
        return [
            f"{where}: the reference reads a number that depends on its inputs (if, while, "
            ".item()); only what these inputs lead to is compared"
            for where in places
        ]

    def follows_values(self) -> bool:
        """True if what the model runs may follow numbers that depend on its inputs: it reads them,
        or makes arrays whose sizes depend on them."""
        dependent = self.input_dependent()
        return any(i in dependent for i, _ in self.reads) or any(
            node.name in SIZED_BY_VALUES and any(r in dependent for r in node.refs)
            for node in self.nodes
        )

    def first_use(self, value_id: int) -> int:
        """Index of the first operation that takes a value."""
        users = self.consumers.get(value_id)
        return users[0] if users else len(self.nodes)

    def params(self) -> dict[str, int]:
        """Ids of the parameters and buffers by name."""
        return {s[6:]: i for i, s in enumerate(self.source) if s.startswith("param:")}

    def inputs(self) -> list[int]:
        return [i for i, s in enumerate(self.source) if s.startswith("input:")]

    def arguments(
        self, node: Node, changed: Mapping[int, torch.Tensor] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The operation's arguments with `changed` values instead of the recorded ones."""
        values = self.values

        def get(x: Any) -> Any:
            if isinstance(x, Ref):
                return changed[x.id] if changed is not None and x.id in changed else values[x.id]
            return x

        args = tuple(
            get(a) if type(a) is Ref else a if type(a) in _PLAIN else _map_refs(a, get)
            for a in node.args
        )
        return args, _map_refs(node.kwargs, get) if node.kwargs else {}

    def step(
        self, index: int, edits: Mapping[int, Edit], changed: Mapping[int, torch.Tensor]
    ) -> list[tuple[int, torch.Tensor]]:
        """Run one operation again if the edits or the changed values reach it; what it returns, by
        id. The arguments are as of `run`."""
        node, edit = self.nodes[index], edits.get(index)
        if edit is None and not any(r in changed for r in node.refs):
            return []
        if edit is not None and edit.refs is not None:
            out = edit.fn(*(changed[r] if r in changed else self.values[r] for r in edit.refs))
        else:
            args, kwargs = self.arguments(node, changed)
            out = edit.fn(*args, **kwargs) if edit is not None else node.op(*args, **kwargs)
        made = zip(node.outs, flat_tensors(out))
        return [(o, t) for o, t in made if o is not None and o not in changed]

    def run(
        self,
        edits: Mapping[int, Edit],
        changed: dict[int, torch.Tensor] | None = None,
        *,
        first: int = 0,
        until: int | None = None,
        everything: bool = False,
        on_value: Callable[[int, torch.Tensor], None] | None = None,
        keep: Callable[[int], bool] | None = None,
    ) -> dict[int, torch.Tensor]:
        """Run again what the edits or the changed values reach, in order, and return the changed
        values by id.

        Args:
            edits: functions that replace operations, by node index.
            changed: values substituted for recorded ones, by id.
            first: no operation before this one changes.
            until: the last operation to run.
            everything: run every operation (under autograd, or with other parameters).
            on_value: called with each value as it is computed.
            keep: with it, a value is dropped after its last use unless it says True.
        """
        changed = dict(changed or {})
        fixed = frozenset(changed)
        last = len(self.nodes) - 1 if until is None else until
        for node in self.nodes[first : last + 1]:
            edit = edits.get(node.index)
            refs = node.refs if edit is None or edit.refs is None else edit.refs
            if edit is None and not everything and not any(r in changed for r in refs):
                continue
            if edit is not None and edit.refs is not None:
                out = edit.fn(*(changed[r] if r in changed else self.values[r] for r in edit.refs))
            else:
                args, kwargs = self.arguments(node, changed)
                out = edit.fn(*args, **kwargs) if edit is not None else node.op(*args, **kwargs)
            for out_id, tensor in zip(node.outs, flat_tensors(out)):
                if out_id is None:
                    continue
                if out_id in fixed:
                    continue
                changed[out_id] = tensor
                if on_value is not None:
                    on_value(out_id, tensor)
            if keep is not None:
                for ref in node.refs:
                    if ref in changed and not keep(ref) and self.consumers[ref][-1] == node.index:
                        del changed[ref]
        return changed

    def with_nodes(self, nodes: Mapping[int, Node]) -> Graph:
        """The graph with other operations in these places; the values are as they were."""
        changed = list(self.nodes)
        for i, node in nodes.items():
            changed[i] = node
        return replace(self, nodes=tuple(changed), recorded=self.recorded or self)

    def with_values(self, values: Mapping[int, torch.Tensor]) -> Graph:
        """The graph with other values of these ids; what follows from them is as it was."""
        changed = list(self.values.kept)
        for i, value in values.items():
            changed[i] = value.detach()
        return replace(self, values=Values(changed), recorded=self.recorded or self)

    def put(self, nodes: Mapping[int, Node], values: Mapping[int, torch.Tensor]) -> Graph:
        """The graph with other operations and values in these places, and what follows from
        them."""
        first = min([*nodes, *(self.first_use(v) for v in values)])
        graph = self.with_nodes(nodes)
        edits = {i: Edit(node.op) for i, node in nodes.items()}
        return graph.with_values(graph.run(edits, dict(values), first=first))

    def edited(self, edits: Mapping[int, Edit]) -> Graph:
        """The graph with operations replaced by functions, and what follows from them."""
        return self.put({i: self.nodes[i].edited(edit) for i, edit in edits.items()}, {})

    def pinned(self, values: Mapping[int, torch.Tensor]) -> Graph:
        """The graph with these values given, and what follows from them. An operation with one
        result is replaced by it, and one with several keeps the others."""
        first = min(self.first_use(v) for v in values)
        graph = self.with_values(self.run({}, dict(values), first=first))
        return graph.with_nodes(graph.given(values))

    def given(self, values: Mapping[int, torch.Tensor]) -> dict[int, Node]:
        """Operations that return these values of theirs, by position."""
        nodes: dict[int, Node] = {}
        for i, value in values.items():
            producer = self.producer[i]
            if producer is None:
                continue
            node = nodes.get(producer, self.nodes[producer])
            if len(node.outs) == 1:  # what it was computed from matters no more
                nodes[producer] = node.edited(Edit(_given(value), ()))
            else:
                nodes[producer] = node.with_result(node.outs.index(i), value)
        return nodes

    def changed_from(self, before: Graph) -> set[int]:
        """Ids of the values that are not those of another state of the same graph."""
        pairs = enumerate(zip(self.values.kept, before.values.kept))
        return {i for i, (now, then) in pairs if now is not then}


def flat_tensors(out: Any) -> list[Any]:
    """The results of an operation as a list, None where there is no tensor."""
    if isinstance(out, tuple | list):
        return [t for o in out for t in flat_tensors(o)]
    return [out if isinstance(out, torch.Tensor) else None]


def _map_refs(tree: Any, get: Callable[[Any], Any]) -> Any:
    if isinstance(tree, Ref):
        return get(tree)
    if isinstance(tree, tuple):
        return tuple(_map_refs(t, get) for t in tree)
    if isinstance(tree, list):
        return [_map_refs(t, get) for t in tree]
    if isinstance(tree, dict):
        return {k: _map_refs(v, get) for k, v in tree.items()}
    return tree


def _given(value: torch.Tensor) -> Callable[..., object]:
    """An operation that takes nothing and returns this value."""
    return lambda: value
