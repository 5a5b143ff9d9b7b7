"""Layers of a stack that the port holds in another order: found before formulas are compared.

Which layer is at which position of the port is read off the weights. A port may well run a stack
from its end: the reference's layers are put in that order if the port runs them in it or, where
that cannot be determined, if more values of the reference are found then.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from twinvit.port.hashed import whole
from twinvit.port.index import SMALLEST, Index
from twinvit.port.pair import Pair, Rounded
from twinvit.port.record.graph import Graph
from twinvit.port.record.torch_values import WideTensors
from twinvit.port.search.proof import behind

if TYPE_CHECKING:
    from twinvit.port.search.loop import Progress

MOST = 256  # layers of a stack that are looked at
_Key = tuple[int, int]
"""Size and checksum of an array's elements in any order."""
_Group = list[_Key]
"""Of one parameter of a stack, the key of each layer's."""
_Ordered = tuple[torch.nn.Module, dict[str, np.ndarray], dict[str, np.ndarray]]
"""A copy of a model with its layers in another order, and the parameters that differ by name,
before and after."""


def order_layers(pair: Pair, train: bool, say: Progress) -> None:
    """Put the reference's layers in the order of the port's, for `tell_rounded`, where the port
    holds them in another one and more agrees so. The model that was given is not changed."""
    model = pair.torch_model
    if not isinstance(model, torch.nn.Module):
        return
    for prefix, order in _orders(model, pair).items():
        present = pair.torch_model
        ordered = _ordered(present, prefix, order)
        if ordered is None:
            continue
        say(f"the port holds the layers of {prefix} in another order")
        try:
            if not _runs_so(pair, prefix, order, ordered, train, say):
                continue
        except Exception:  # one of them does not run, which the comparison says
            continue
        pair.torch_model, given, taken = ordered
        pair.rounded.append(
            Rounded("reference", given, taken, _text(prefix, order), "layer_order", prefix)
        )


def _runs_so(
    pair: Pair, prefix: str, order: Sequence[int], ordered: _Ordered, train: bool, say: Progress
) -> bool:
    """Whether the port runs a stack's layers in this order."""
    from twinvit.port.comparison import lost_values, record

    recorded = record(pair, train, say)
    if not _in_turn(recorded.graph, prefix):
        return False
    run = run_order(recorded.graph, recorded.index, prefix)
    if run is not None and run in (list(order), list(range(len(order)))):
        return run == list(order)
    present, before = pair.torch_model, lost_values(recorded, train)
    pair.torch_model = ordered[0]
    try:
        return lost_values(record(pair, train, say), train) < before
    finally:
        pair.torch_model = present


def _groups(graph: Graph, prefix: str) -> list[dict[int, int]]:
    """Of each parameter of a stack, the ids of the layers' by their values."""
    groups: dict[str, dict[int, int]] = {}
    for name, value in graph.params().items():
        split = _split(name)
        if (
            split is not None
            and split[0] == prefix
            and graph.values.shaped(value).numel() >= SMALLEST
        ):
            groups.setdefault(split[2], {})[split[1]] = value
    return list(groups.values())


def _in_turn(graph: Graph, prefix: str) -> bool:
    """True if each layer takes what the one before it returns: experts and heads side by side may
    stand in any order."""
    group = max(_groups(graph, prefix), key=len, default={})
    first = [_meets(graph, group[n]) for n in sorted(group)]
    if len(first) < 2 or max(first) >= len(graph.nodes):
        return False
    return all(behind(graph, [a], graph.nodes[b]) for a, b in zip(first, first[1:]))


def _meets(graph: Graph, value: int) -> int:
    """Index of the first operation that takes a parameter, or what is computed of it alone (1 + w),
    together with what depends on an input."""
    varied = graph.input_dependent()
    reached = {value}
    for node in graph.nodes[graph.first_use(value) :]:
        if any(r in reached for r in node.refs):
            if any(o in varied for o in node.outs):
                return node.index
            reached.update(o for o in node.outs if o is not None)
    return len(graph.nodes)


def run_order(graph: Graph, index: Index, prefix: str) -> list[int] | None:
    """Which of a stack's layers the port runs where the reference runs the first, the second, ...;
    None where that cannot be determined."""
    tape = index.tape
    for group in _groups(graph, prefix):
        numbers = sorted(group)
        mine = sorted(numbers, key=lambda n: graph.first_use(group[n]))
        keys = {_key(graph.values[group[n]].numpy()): numbers.index(n) for n in numbers}
        if tape is None or mine != numbers or len(keys) < len(numbers):
            continue
        sizes = {size for size, _ in keys}
        known: dict[int, int | None] = {}
        theirs: list[int] = []
        for step in tape.steps:
            if step.layout or step.eqn is None:
                continue
            for slot in step.operands:
                entry = tape.slots[slot].entry
                if entry not in known:
                    held = index.entries[entry].value if entry >= 0 else None
                    known[entry] = None
                    if held is not None and held.size in sizes:
                        known[entry] = keys.get(_key(held))
                layer = known[entry]
                if layer is not None:
                    theirs.append(layer)
        if len(theirs) == len(numbers):
            return theirs
    return None


def _orders(model: torch.nn.Module, pair: Pair) -> dict[str, list[int]]:
    """By the name of a stack of the reference's, which of its layers stands in each place of the
    port's; stacks in the same order are left out."""
    mine = _numbered(WideTensors(dict(model.named_parameters())))
    sizes = {group[0][0] for group in mine.values()}
    leaves = {
        n: pair.leaves.kept(k)
        for k, n in enumerate(pair.pure.names)
        if pair.leaves.is_real(k) and pair.leaves.kept(k).ndim
    }
    theirs = list(_numbered({n: x for n, x in leaves.items() if x.size in sizes}).values())
    theirs += [
        [_key(part) for part in x]
        for x in leaves.values()
        if x.ndim > 1 and 1 < len(x) <= MOST and x.size // len(x) in sizes
    ]
    by_first: dict[_Key, list[_Group]] = {}
    for group in theirs:
        by_first.setdefault(group[0], []).append(group)
    told: dict[str, set[tuple[int, ...]]] = {}
    for (prefix, _), group in mine.items():
        places = {key: k for k, key in enumerate(group)}
        if len(places) < len(group) or len(group) < 2:
            continue  # equal layers tell nothing
        for other in (g for key in places for g in by_first.get(key, ())):
            if len(other) == len(group) and all(key in places for key in other):
                told.setdefault(prefix, set()).add(tuple(places[key] for key in other))
    only = {prefix: list(next(iter(orders))) for prefix, orders in told.items() if len(orders) == 1}
    return {p: order for p, order in only.items() if order != list(range(len(order)))}


def _numbered(arrays: Mapping[str, np.ndarray]) -> dict[tuple[str, str], _Group]:
    """The keys of arrays that differ by the first number in their names, in its order, by what
    stands before and after it; small arrays left out."""
    found: dict[tuple[str, str], dict[int, _Key]] = {}
    for name, array in arrays.items():
        split = _split(name)
        if split is not None and array.size >= SMALLEST:
            prefix, number, rest = split
            found.setdefault((prefix, rest), {})[number] = _key(array)
    return {
        k: [group[n] for n in sorted(group)] for k, group in found.items() if 1 < len(group) <= MOST
    }


def _split(name: str) -> tuple[str, int, str] | None:
    """A name before, at and after its first number, "layers", 3, "attn.weight"."""
    match = re.search(r"(?:^|[._])(\d+)(?:[._]|$)", name)
    if match is None:
        return None
    return name[: match.start(1)].rstrip("._"), int(match[1]), name[match.end(1) :].lstrip("._")


def _key(array: np.ndarray) -> _Key:
    return int(array.size), whole(array)


def _ordered(model: Any, prefix: str, order: Sequence[int]) -> _Ordered | None:
    """The model with a stack's layers in another order; None where their shapes differ."""
    result = copy.deepcopy(model)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    layers: dict[int, dict[str, str]] = {}
    for name in tensors:
        split = _split(name)
        if split is not None and split[0] == prefix:
            layers.setdefault(split[1], {})[split[2]] = name
    numbers = sorted(layers)
    if len(numbers) != len(order):
        return None
    own = dict(result.named_parameters()) | dict(result.named_buffers())
    given: dict[str, np.ndarray] = {}
    taken: dict[str, np.ndarray] = {}
    for place, layer in enumerate(order):
        source, target = layers[numbers[layer]], layers[numbers[place]]
        if source.keys() != target.keys():
            return None
        for rest, name in target.items():
            value = tensors[source[rest]]
            if value.shape != tensors[name].shape:
                return None
            if layer == place or not value.is_floating_point():
                continue
            own[name].data.copy_(value.data)
            given[name] = tensors[name].detach().cpu().double().numpy()
            taken[name] = value.detach().cpu().double().numpy()
    return result, given, taken


def _text(prefix: str, order: Sequence[int]) -> str:
    stack = prefix or "the stack"
    moved = [k for k, layer in enumerate(order) if k != layer]
    if len(set(order)) == 1:
        return f"the port holds layer {order[0]} of {stack} in the place of each"
    if len(moved) == 2 and order[moved[0]] == moved[1] and order[moved[1]] == moved[0]:
        return f"layers {moved[0]} and {moved[1]} of {stack} are exchanged in the port"
    if list(order) == sorted(order, reverse=True):
        return f"the port holds the layers of {stack} in reverse order"
    shown = ", ".join(map(str, order[:16])) + (", ..." if len(order) > 16 else "")
    return f"the port holds the layers of {stack} in another order: {shown}"
