"""Edits made while a model is recorded, so that its control flow follows the edited numbers.

Operations have no common numbering in two recordings of a model whose control flow depends on
values. An edit is made where the module, the operation, the line, and the count of such operations
before it are those of the recording that it was found in.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch

from twinvit.port.errors import PortError
from twinvit.port.record.draft import Draft
from twinvit.port.record.graph import Edit, Graph, Node, Ref, _map_refs, flat_tensors
from twinvit.port.record.unused import unused_operands

Kind = tuple[str, str, str]
"""An operation's module, name and line."""
Key = tuple[Kind, int]
"""The same, and how many operations of that kind came before it."""
Source: TypeAlias = str | torch.Tensor | tuple[Key, int]
"""Where a value comes from: "param:NAME" or "input:K", a constant, or an operation's result."""


def kind_of(node: Node) -> Kind:
    return node.scope, node.name, node.where


def _layer_kind(kind: Kind) -> Kind:
    """The kind without the numbers of layers and experts."""
    return re.sub(r"\d+", "#", kind[0]), kind[1], kind[2]


def keys_of(nodes: Iterable[Node]) -> list[Key]:
    """The key of each operation, in order."""
    seen: Counter[Kind] = Counter()
    keys = []
    for node in nodes:
        kind = kind_of(node)
        keys.append((kind, seen[kind]))
        seen[kind] += 1
    return keys


@dataclass(frozen=True)
class Given:
    """An edit, and where the values that it takes come from; None for the operation's own."""

    function: Callable[..., Any]
    sources: tuple[Source, ...] | None


@dataclass(frozen=True)
class LiveEdits:
    """Edits by the operations that they are made at.

    Attributes:
        at: the edits of each operation, one after the other.
        everywhere: those of every operation of a kind, in whatever layer or expert, that the
            recording which they were found in has no operation of.
        known: kinds of operations of that recording.
    """

    at: Mapping[Key, tuple[Given, ...]] = field(default_factory=dict)
    everywhere: Mapping[Kind, tuple[Given, ...]] = field(default_factory=dict)
    known: frozenset[Kind] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.at)

    def plus(self, other: LiveEdits) -> LiveEdits:
        """These edits, and then others."""
        at, everywhere = dict(self.at), dict(self.everywhere)
        for key, given in other.at.items():
            at[key] = (*at.get(key, ()), *given)
        for kind, given in other.everywhere.items():
            everywhere[kind] = (*everywhere.get(kind, ()), *given)
        return LiveEdits(at, everywhere, self.known | other.known)

    def of(self, key: Key) -> tuple[Given, ...]:
        """The edits that are to be made at an operation."""
        if key in self.at or key[0] in self.known:
            return self.at.get(key, ())
        return self.everywhere.get(_layer_kind(key[0]), ())


def live_edits(graph: Graph, edits: Sequence[Mapping[int, Edit]]) -> LiveEdits:
    """Edits of a recorded graph, each by the operations' positions, as they are made in others.

    Args:
        graph: as it was recorded, without the edits.
    """
    keys = keys_of(graph.nodes)
    at: dict[Key, tuple[Given, ...]] = {}
    everywhere: dict[Kind, tuple[Given, ...]] = {}
    of_kind = Counter(_layer_kind(kind) for kind, _ in keys)
    for made in edits:
        found: dict[Kind, list[Given]] = {}
        for i, edit in made.items():
            refs = edit.refs
            sources = None if refs is None else tuple(_source(graph, keys, r) for r in refs)
            given = Given(edit.fn, sources)
            at[keys[i]] = (*at.get(keys[i], ()), given)
            found.setdefault(_layer_kind(keys[i][0]), []).append(given)
        for kind, several in found.items():
            if len(several) == of_kind[kind] and several[0].sources is None:
                everywhere[kind] = (*everywhere.get(kind, ()), several[0])
    return LiveEdits(at, everywhere, frozenset(kind for kind, _ in keys))


def _source(graph: Graph, keys: Sequence[Key], value: int) -> Source:
    producer = graph.producer[value]
    if producer is not None:
        return keys[producer], graph.nodes[producer].outs.index(value)
    source = graph.source[value]
    return graph.values[value] if source == "const" else source


def edited(draft: Draft, key: Key, node: Node, out: Any) -> tuple[Node, Any]:
    """An operation that is being recorded, and its result, with its live edits made.

    Raises:
        PortError: an edit takes what was not recorded, or makes another shape.
    """
    given = draft.live.of(key) if draft.live is not None else ()
    if not given:
        return node, out
    for edit in given:
        refs = None if edit.sources is None else tuple(_found(draft, s) for s in edit.sources)
        node = node.edited(Edit(edit.function, refs))

    made = node.run({r: draft.values[r] for r in node.refs})
    node = _without_unused(draft, node)
    before, after = flat_tensors(out), flat_tensors(made)
    if [None if t is None else t.shape for t in before] != [
        None if t is None else t.shape for t in after
    ]:
        raise PortError(f"an edit at {node.place} ({node.where}) makes another shape there")
    after = [t if t is None else t.detach().to(o.dtype).clone() for t, o in zip(after, before)]
    return node, after[0] if isinstance(out, torch.Tensor) else type(out)(after)


def _without_unused(draft: Draft, node: Node) -> Node:
    """The operation with constants for operands that do not matter to it, as of an addition whose
    edit leaves a branch out: nothing is to be compared for their sake."""
    unused = unused_operands(node, {r: draft.values[r] for r in node.refs})

    def kept(x: Any) -> Any:
        return draft.values[x.id] if isinstance(x, Ref) and x.id in unused else x

    return replace(node, args=_map_refs(node.args, kept), kwargs=_map_refs(node.kwargs, kept))


def _found(draft: Draft, source: Source) -> int:
    """The id of a value in the recording that is being made."""
    if isinstance(source, torch.Tensor):
        return draft.add_value(source, "const")
    if isinstance(source, str):
        if source in draft.source:
            return draft.source.index(source)
    else:
        key, position = source
        node = draft.by_key.get(key)
        out = None if node is None else draft.nodes[node].outs[position]
        if out is not None:
            return out
    raise PortError("an edit takes a value that the reference does not compute on these inputs")
