"""A recorded PyTorch program as JSON and arrays, and run again from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from twinvit.port.errors import PortError
from twinvit.port.record.graph import Graph, Node, Ref, flat_tensors
from twinvit.port.record.graph_values import Values
from twinvit.port.record.own_types import OwnTypes, Rounding
from twinvit.port.record.torch_place import PLACE
from twinvit.port.record.torch_values import WIDE
from twinvit.port.recording.arrays import Read, Written
from twinvit.port.recording.torch_operations import (
    ByValue,
    Unwritable,
    decoded,
    dtype_of,
    encoded,
    named_operation,
    operation_name,
)

NODES = 1 << 20
NUMBERS = 1 << 36  # of one value


def written_graph(graph: Graph, arrays: Written, names: Sequence[str]) -> dict[str, Any]:
    """A graph as JSON: its operations and constants, and not what follows from them.

    Args:
        graph: a recording.
        arrays: takes its constants.
        names: those of its outputs.
    """
    by_value: dict[int, str] = {}
    nodes = [_written_node(node, by_value) for node in graph.nodes]
    given = {i for i, s in enumerate(graph.source) if s == "const"}
    given |= {o for k in by_value for o in graph.nodes[k].outs if o is not None}
    return {
        "values": [_kind(v) for v in graph.values],
        "sources": list(graph.source),
        "given": [[i, arrays.add(_narrowed(graph.values[i]))] for i in sorted(given)],
        "nodes": nodes,
        "outputs": list(graph.outputs),
        "names": list(names),
        "narrowings": [list(n) for n in graph.narrowings],
        "modules": dict(graph.modules),
        "buffers": sorted(graph.buffers),
        "reads": [list(r) for r in graph.reads],
        "written": sorted(graph.written),
        "own": {k: _name(t) for k, t in graph.own.items()},
        "notes": list(graph.notes),
        "types": None if graph.types is None else _written_types(graph.types),
        "by_value": sorted(set(by_value.values())),
    }


def _written_node(node: Node, by_value: dict[int, str]) -> list[Any]:
    rest: list[Any] = [node.name, node.scope, node.where, list(node.outs)]
    rest.append(None if node.narrowed is None else _name(node.narrowed))
    try:
        operation, args = operation_name(node.op), [encoded(a) for a in node.args]
        return [operation, args, {k: encoded(v) for k, v in node.kwargs.items()}, *rest]
    except Unwritable as reason:
        # Drawn numbers are a function without arguments: they are their value.
        if node.refs:
            by_value[node.index] = f"{node.name} ({reason})"
        else:
            by_value[node.index] = node.name
        return ["", [encoded(Ref(r)) for r in node.refs], {}, *rest]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _kind(value: torch.Tensor) -> list[Any]:
    return [_name(value.dtype), list(value.shape)]


def _narrowed(value: torch.Tensor) -> torch.Tensor:
    """A constant, in float32 where that holds its elements."""
    value = value.detach()
    if value.dtype != torch.float64 or value.numel() < 64:
        return value
    narrow = value.to(torch.float32)
    return narrow if torch.equal(narrow.double(), value) else value


def _written_types(types: OwnTypes) -> dict[str, Any]:
    return {
        "held": [[i, sorted(names)] for i, names in types.held.items()],
        "roundings": [[r.value, r.dtype, r.inner, r.where, list(r.users)] for r in types.roundings],
    }


class StoredGraph:
    """A program that was written, to be run on parameters and inputs of the recording's shapes.

    Attributes:
        names: of the outputs.
        by_value: operations that were recorded by their value.
    """

    def __init__(self, found: Mapping[str, Any], arrays: Read) -> None:
        try:
            self._read(found, arrays)
        except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
            raise PortError(
                f"{arrays.path} is damaged: its program cannot be read ({error}); record it again"
            ) from error

    def __deepcopy__(self, memo: Any) -> StoredGraph:
        return self  # nothing changes it

    def _read(self, found: Mapping[str, Any], arrays: Read) -> None:
        self.kinds = [(dtype_of(d), tuple(map(_size, shape))) for d, shape in found["values"]]
        count = len(self.kinds)
        if any(math.prod(shape) > NUMBERS for _, shape in self.kinds):
            raise ValueError("a value of too many numbers")
        self.names = tuple(str(n) for n in found["names"])
        self.by_value = tuple(str(n) for n in found["by_value"])
        source = tuple(str(s) for s in found["sources"])
        self.given = {
            _below(i, count): _tensor(arrays[_size(k)], self.kinds[i]) for i, k in found["given"]
        }
        nodes: list[Node] = []
        producer: list[int | None] = [None] * count
        if len(found["nodes"]) > NODES or len(source) != count:
            raise ValueError("too many operations, or a value without a source")
        ready = {i for i, s in enumerate(source) if s != "node"}
        for k, row in enumerate(found["nodes"]):
            node = self._node(k, row, count)
            if not ready.issuperset(node.refs):
                raise ValueError(f"operation {k} takes what is not there yet")
            for out in node.outs:
                if out is not None:
                    producer[out] = k
                    ready.add(out)
            nodes.append(node)
        if len(ready) != count:
            raise ValueError("a value that no operation makes")
        self.graph = Graph(
            Values(()),
            source,
            tuple(producer),
            tuple(nodes),
            tuple(_below(o, count) for o in found["outputs"]),
            narrowings=tuple((str(w), str(d)) for w, d in found["narrowings"]),
            modules={str(k): str(v) for k, v in found["modules"].items()},
            buffers=frozenset(map(str, found["buffers"])),
            reads=tuple((_below(i, count), str(w)) for i, w in found["reads"]),
            written=frozenset(_below(i, count) for i in found["written"]),
            own={str(k): dtype_of(v) for k, v in found["own"].items()},
            notes=tuple(map(str, found["notes"])),
            by_value=frozenset(n.index for n in nodes if isinstance(n.op, ByValue) and n.refs),
            types=None if found["types"] is None else _types(found["types"], count),
        )

    def _node(self, index: int, row: Sequence[Any], count: int) -> Node:
        operation, args, kwargs, name, scope, where, outs, narrowed = row
        outs = tuple(None if o is None else _below(o, count) for o in outs)
        made = tuple(decoded(a) for a in args)
        given = {str(k): decoded(v) for k, v in kwargs.items()}
        op: Callable[..., Any]
        if operation:
            op = named_operation(operation)
        else:
            op = ByValue(str(name), (), [self.given[o] for o in outs if o is not None])
        dtype = None if narrowed is None else dtype_of(narrowed)
        node = Node(index, op, str(name), made, given, outs, str(scope), str(where), dtype)
        for ref in node.refs:
            _below(ref, count)
        return node

    def run(self, leaves: Mapping[str, torch.Tensor]) -> Graph:
        """The graph with the values that these parameters and inputs give.

        Args:
            leaves: by source, "param:NAME" and "input:K"; of the recording's types and shapes.

        Raises:
            PortError: an operation fails on them, or was recorded by its value.
        """
        values: dict[int, torch.Tensor] = dict(self.given)
        for i, source in enumerate(self.graph.source):
            if source in ("const", "node"):
                continue
            values[i] = leaves[source]
            if tuple(values[i].shape) != self.kinds[i][1]:
                raise PortError(
                    f"{source.replace(':', ' ')} is {tuple(values[i].shape)}; the reference was "
                    f"recorded with {self.kinds[i][1]}"
                )
        graph = self.graph
        with torch.no_grad():
            for node in graph.nodes:
                self._put(node, self._result(node, values), values)
        return replace(graph, values=Values([values[i] for i in range(len(self.kinds))]))

    def _result(self, node: Node, values: Mapping[int, torch.Tensor]) -> Any:
        args, kwargs = self.graph.arguments(node, values)
        if isinstance(node.op, ByValue) and not node.op.operands:  # the first run is the recorded
            node.op.operands = [x for x in args if isinstance(x, torch.Tensor)]
        token = PLACE.set(node.where)
        try:
            return node.op(*args, **kwargs)
        except PortError:
            raise
        except Exception as error:
            raise PortError(
                f"the recorded reference fails at {node.place} {node.where}: "
                f"{type(error).__name__}: {error}"
            ) from error
        finally:
            PLACE.reset(token)

    def _put(self, node: Node, out: Any, values: dict[int, torch.Tensor]) -> None:
        for k, tensor in zip(node.outs, flat_tensors(out)):
            if k is None:
                continue
            dtype, shape = self.kinds[k]
            if tensor is None or tuple(tensor.shape) != shape or tensor.dtype != dtype:
                raise PortError(
                    f"the recorded reference's {node.name} ({node.where}) returns another type or "
                    "shape on these numbers than on those that it was recorded with"
                )
            values[k] = tensor


def _tensor(array: Any, kind: tuple[torch.dtype, tuple[int, ...]]) -> torch.Tensor:
    dtype, shape = kind
    if array.dtype.name == "bfloat16":
        tensor = torch.from_numpy(array.view("uint16").copy()).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array.copy())
    if tuple(tensor.shape) != shape or (tensor.dtype != dtype and WIDE.get(tensor.dtype) != dtype):
        raise ValueError("a constant of another type or shape")
    return tensor.to(dtype)


def _size(n: Any) -> int:
    if type(n) is not int or n < 0:
        raise ValueError(f"{n!r} is no size")
    return n


def _below(n: Any, count: int) -> int:
    if _size(n) >= count:
        raise ValueError(f"no value {n}")
    return int(n)


def _types(found: Mapping[str, Any], count: int) -> OwnTypes:
    types = OwnTypes()
    for i, names in found["held"]:
        types.add(_below(i, count), map(str, names))
    for value, dtype, inner, where, users in found["roundings"]:
        users = tuple(map(_size, users))
        types.roundings.append(
            Rounding(_below(value, count), str(dtype), str(inner), str(where), users)
        )
    return types
