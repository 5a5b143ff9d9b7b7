"""A recorded PyTorch program: values, operations between them, and running it again with edits.

What is recorded is functional (an operation in place is there as its functional form), so any part
of the graph can be run again with other values, under autograd too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_flatten

from twinvit.port.ops import SHAPE_ONLY
from twinvit.port.record.torch_types import Heard


@dataclass(frozen=True, slots=True)
class Ref:
    """A recorded value in an operation's arguments."""

    id: int


@dataclass
class Node:
    """One operation: what it was called with, what came out, and where it stands in the user's
    code."""

    index: int
    op: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outs: list[int | None]
    scope: str
    where: str
    refs: list[int] = field(default_factory=list)
    narrowed: torch.dtype | None = None

    @property
    def place(self) -> str:
        """The reference's place, "layers.0.mlp.act: gelu"."""
        return f"{self.scope}: {self.name}" if self.scope else self.name


class Edit(NamedTuple):
    """A function in place of an operation.

    It takes the operation's resolved arguments, or the values `refs` where they are given (all of
    them come before
    the operation), and returns what the operation returns.
    """

    fn: Callable[..., Any]
    refs: tuple[int, ...] | None = None


@dataclass
class Graph:
    """A recorded model: values by id, the operations between them, the outputs' ids."""

    values: list[torch.Tensor] = field(default_factory=list)
    source: list[str] = field(default_factory=list)  # "param:NAME", "input:K", "const" or "node"
    producer: list[int | None] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    consumers: dict[int, list[int]] = field(default_factory=dict)
    narrowings: list[tuple[str, str]] = field(default_factory=list)  # where, dtype
    modules: dict[str, str] = field(default_factory=dict)  # name: class
    buffers: set[str] = field(default_factory=set)
    reads: list[tuple[int, str]] = field(default_factory=list)
    """Values that the model's Python code read as numbers (`if`, `.item()`), and where."""
    heard: list[Heard] = field(default_factory=list)
    """Each operation as the model called it."""
    numbers: Mapping[int, Heard] = field(default_factory=dict)
    """Operations, by their place in `heard`, that took the numbers of the program that runs."""
    own: dict[str, torch.dtype] = field(default_factory=dict)
    """The types that the program was recorded in, by parameter and input ("input:0"), where its
    operations depend on them; empty for a recording in float64."""
    notes: list[str] = field(default_factory=list)
    _dependent: frozenset[int] | None = None
    _trained: frozenset[int] | None = None

    def add_value(self, value: torch.Tensor, source: str, producer: int | None = None) -> int:
        self.values.append(value)
        self.source.append(source)
        self.producer.append(producer)
        return len(self.values) - 1

    def finish(self) -> None:
        """Derive who consumes what."""
        self.consumers = {}
        for node in self.nodes:
            node.refs = list(
                dict.fromkeys(
                    r.id for r in tree_flatten((node.args, node.kwargs))[0] if isinstance(r, Ref)
                )
            )
            for ref in node.refs:
                self.consumers.setdefault(ref, []).append(node.index)

    def input_dependent(self) -> frozenset[int]:
        """Ids of the values that depend on an input's numbers, and not on its shape alone."""
        if self._dependent is None:
            found = set(self.inputs())
            for node in self.nodes:
                if node.name not in SHAPE_ONLY and any(r in found for r in node.refs):
                    found.update(o for o in node.outs if o is not None)
            self._dependent = frozenset(found)
        return self._dependent

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

    def trained(self) -> frozenset[int]:
        """Ids of the values that depend on a parameter, or on a running statistic; other buffers
        are tables and masks."""
        if self._trained is None:
            found = {
                i
                for name, i in self.params().items()
                if name not in self.buffers or name.rsplit(".", 1)[-1].startswith("running_")
            }
            for node in self.nodes:
                if any(r in found for r in node.refs):
                    found.update(o for o in node.outs if o is not None)
            self._trained = frozenset(found)
        return self._trained

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
        """The operation's arguments with `changed` values in place of the recorded ones."""
        values = self.values

        def get(x: Any) -> Any:
            if isinstance(x, Ref):
                return changed[x.id] if changed is not None and x.id in changed else values[x.id]
            return x

        return _map_refs(node.args, get), _map_refs(node.kwargs, get)

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
            edits: functions in place of operations, by node index.
            changed: values put in place of recorded ones, by id.
            first: no operation before this one changes.
            until: the last operation to run.
            everything: run every operation (under autograd, or with other parameters).
            on_value: told of each value as it is computed.
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
