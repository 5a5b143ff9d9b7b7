"""Record a PyTorch model as a graph of ATen operations that can be edited and run again.

The recorder is a dispatch mode below autograd; what it records is functional (an operation in place
becomes its
functional form, and the other views of the same storage are derived again), so any part of the
graph can be run
again with other values, under autograd too.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from twinvit.port.errors import PortError
from twinvit.port.places import Frame, user_place
from twinvit.port.torch_types import Apart, Heard, Listener, differing, heard, with_numbers

aten = torch.ops.aten
WIDE = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}
"""Narrow types, and those that their values are computed in."""
SHAPED = frozenset(
    "zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty".split()
)
"""Operations that take the shape of a tensor, and none of its numbers."""
_HERE = os.path.dirname(os.path.abspath(__file__))
_TORCH = os.path.dirname(os.path.abspath(torch.__file__))


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
                if node.name not in SHAPED and any(r in found for r in node.refs):
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


def where_in_user_code() -> str:
    """File and line in the user's code of what is called now, "model.py:12"; "" if there is
    none."""

    def stack() -> Iterator[Frame]:
        frame = sys._getframe(3)  # of what called this function
        while frame is not None:
            yield frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
            frame = frame.f_back  # type: ignore[assignment]

    return user_place(stack())


class _Attention(TorchFunctionMode):
    """Computes scaled dot-product attention step by step, so that each step can be compared."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._nn.scaled_dot_product_attention:
            return attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`scaled_dot_product_attention` as separate operations; a fully masked row gives zeros, as
    there."""
    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
        value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
    scores = (query @ key.transpose(-2, -1)) * (
        1 / math.sqrt(query.size(-1)) if scale is None else scale
    )
    masked = None
    if is_causal:
        masked = (
            torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
            .tril()
            .logical_not()
        )
        scores = scores.masked_fill(masked, -math.inf)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            masked = attn_mask.logical_not()
            scores = scores.masked_fill(masked, -math.inf)
        else:
            scores = scores + attn_mask
    weights = scores.softmax(-1)
    if masked is not None and bool(masked.all(-1).any().numpy()):  # not read by the model
        weights = weights.masked_fill(masked.all(-1, keepdim=True), 0.0)
    if dropout_p:
        weights = torch.dropout(weights, dropout_p, True)
    return weights @ value


def _restride(base: torch.Tensor, size: Any, stride: Any, offset: int) -> torch.Tensor:
    return base.contiguous().as_strided(size, stride, offset)


def _scatter(
    base: torch.Tensor, part: torch.Tensor, size: Any, stride: Any, offset: int
) -> torch.Tensor:
    return torch.as_strided_scatter(base.contiguous(), part, size, stride, offset)


_FRESH_DRAWS = (aten.rand, aten.randn, aten.rand_like, aten.randn_like)
_DRAWN = frozenset(
    "bernoulli_ normal_ uniform_ random_ exponential_ geometric_ cauchy_ log_normal_".split()
)


def _functional(func: Any) -> Any:
    """The functional form of an operation in place; None where there is none."""
    name = func._schema.name.split("::")[1]
    if name.endswith("_") and name not in _DRAWN:
        packet = getattr(aten, {"zero_": "zeros_like", "copy_": "copy"}.get(name, name[:-1]), None)
        if packet is not None:
            for overload in (func._overloadname, "default", "int"):
                if overload in packet.overloads():
                    return getattr(packet, overload)
    return None


_SHAPE_ONLY = (aten.transpose_, aten.t_, aten.squeeze_, aten.unsqueeze_, aten.swapaxes_)


class Recorder(TorchDispatchMode):
    """Records operations; widens every floating-point value to float64 on the way.

    `numbers` are taken in place of those that operations, by their place in order, are called with.
    With `own` nothing is widened.
    """

    def __init__(
        self, graph: Graph, numbers: Mapping[int, Heard] | None = None, own: bool = False
    ) -> None:
        super().__init__()
        self.graph = graph
        self.numbers = numbers or {}
        self.own = own
        self.ids: dict[int, tuple[torch.Tensor, int]] = {}
        self.by_storage: dict[int, list[torch.Tensor]] = {}
        self.scopes: list[str] = []
        self.seen: set[tuple[str, str]] = set()
        self.storages: dict[int, int] = {}
        self.native = torch.get_default_dtype()  # before recording makes it float64

    def track(self, tensor: torch.Tensor, value_id: int) -> None:
        self.ids[id(tensor)] = (tensor, value_id)
        storage = tensor.untyped_storage()._cdata
        self.storages[id(tensor)] = storage
        self.by_storage.setdefault(storage, []).append(tensor)

    def known(self, tensor: torch.Tensor) -> int:
        """The id of a tensor; one that no operation made is a constant."""
        held = self.storages.get(id(tensor))
        if held is not None and held != tensor.untyped_storage()._cdata:
            # `tensor.data = other` happened: no operation says so.
            self.by_storage[held] = [t for t in self.by_storage[held] if t is not tensor]
            del self.ids[id(tensor)], self.storages[id(tensor)]
        if id(tensor) not in self.ids:
            alias = self._alias(tensor)
            if alias is not None:
                self.ids[id(tensor)] = (tensor, alias)
                return alias
            self.track(tensor, self.graph.add_value(tensor.detach(), "const"))
        return self.ids[id(tensor)][1]

    def _alias(self, tensor: torch.Tensor) -> int | None:
        """The id of a tensor that shares a recorded one's storage (a view that C++ made without an
        operation)."""
        group = self.by_storage.get(tensor.untyped_storage()._cdata, [])
        geometry = (list(tensor.shape), list(tensor.stride()), int(tensor.storage_offset()))
        for other in reversed(group):
            value_id = self.ids[id(other)][1]
            value = self.graph.values[value_id]
            if (
                value.untyped_storage()._cdata != tensor.untyped_storage()._cdata
                or value.dtype != tensor.dtype
            ):
                continue
            if (list(value.shape), list(value.stride()), int(value.storage_offset())) == geometry:
                return value_id
            if (
                value.is_contiguous()
                and value.untyped_storage().nbytes() == value.numel() * value.element_size()
            ):
                index = len(self.graph.nodes)
                out = self.graph.add_value(tensor.detach(), "node", index)
                scope = self.scopes[-1] if self.scopes else ""
                self.graph.nodes.append(
                    Node(
                        index,
                        _restride,
                        "restride",
                        (Ref(value_id), *geometry),
                        {},
                        [out],
                        scope,
                        "",
                    )
                )
                return out
        return None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        where = where_in_user_code()
        operation = heard(func, args, kwargs, where)
        if operation is not None:
            other = self.numbers.get(len(self.graph.heard))
            self.graph.heard.append(operation)
            if other is not None and other.name == operation.name:
                args, kwargs = with_numbers(args, kwargs, other)
        narrowed = self._widen_dtypes(args, kwargs, where)
        writes = [
            a for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write
        ]
        if writes:
            return self._mutation(func, args, kwargs, where, writes)
        # Constants that came in narrow are widened where they are first used.
        args, kwargs = tree_map(self._widen, args), tree_map(self._widen, kwargs)
        packet = func.overloadpacket
        if packet in (
            aten.empty,
            aten.empty_like,
            aten.new_empty,
            aten.empty_strided,
            aten.new_empty_strided,
        ):
            out = func(*args, **kwargs)
            self.track(out, self.graph.add_value(out.detach(), "const"))  # filled later
            return out
        if (
            packet in (aten.native_batch_norm, aten.cudnn_batch_norm)
            and args[5]
            and args[3] is not None
        ):
            return self._batch_norm(args, kwargs, where)
        if packet in _FRESH_DRAWS:
            if self.own:
                return self._draw(func, args, kwargs, kwargs.get("dtype"), where)
            native = narrowed or self.native
            if kwargs.get("dtype") in (None, torch.float64) and native in WIDE:
                return self._draw(func, args, kwargs, native, where)
        if packet is aten._to_copy and narrowed is None and _copies_only(args, kwargs):
            out = args[0].clone()
        else:
            out = func(*args, **kwargs)
        if _makes_from_nothing(func, args, kwargs) and isinstance(out, torch.Tensor):
            kwargs["dtype"] = out.dtype  # the default type is another one when it is run again
        if packet in (aten.unsafe_split, aten.unsafe_chunk, aten.unsafe_split_with_sizes):
            out = [t.clone() for t in out]  # its results are promised not to be written through
        if packet in (aten._local_scalar_dense, aten.is_pinned, aten.equal, aten.sym_size):
            if packet in (aten._local_scalar_dense, aten.equal):
                self.graph.reads += [
                    (self.known(t), where) for t in args if isinstance(t, torch.Tensor)
                ]
            return out
        op = _replayable(func)
        if _takes_the_default(args, kwargs, out):
            op = functools.partial(_by_wide_default, op)
        return self._record(op, _name(func), args, kwargs, out, where, narrowed)

    def _batch_norm(self, args: Any, kwargs: dict[str, Any], where: str) -> Any:
        """Batch norm in train mode writes its running statistics, which its schema does not say."""
        func = aten._native_batch_norm_legit_functional.default
        x, weight, bias, mean, var, training, momentum, eps = args
        out = func(x, weight, bias, mean, var, training, momentum, eps)
        self._record(func, "native_batch_norm", args, kwargs, out, where)
        for target, new in ((mean, out[3]), (var, out[4])):
            value_id = self.known(target)
            self.graph.values[value_id] = target.detach().clone()
            target.copy_(new)
            self.ids[id(target)] = (target, self.ids[id(new)][1])
        return out[0], out[1], out[2]

    def _widen(self, x: Any) -> Any:
        if self.own:
            return x
        if isinstance(x, torch.Tensor) and x.dtype in WIDE and not x.is_sparse:
            if id(x) in self.ids:  # an operation insists on a narrow type: use the wide copy
                return self.graph_wide(x)
            wide = x.detach().to(WIDE[x.dtype])
            self.track(wide, self.graph.add_value(wide, "const"))
            self.ids[id(x)] = (x, self.ids[id(wide)][1])
            return wide
        return x

    def graph_wide(self, x: torch.Tensor) -> torch.Tensor:
        value_id = self.ids[id(x)][1]
        value = self.graph.values[value_id]
        if value.dtype in WIDE:
            value = value.to(WIDE[value.dtype])
            self.graph.values[value_id] = value
        if id(value) not in self.ids:
            self.track(value, value_id)
        return value

    def _widen_dtypes(self, args: Any, kwargs: dict[str, Any], where: str) -> torch.dtype | None:
        dtype = kwargs.get("dtype")
        if dtype not in WIDE or self.own:
            return None
        kwargs["dtype"] = WIDE[dtype]
        tensors = [a for a in tree_flatten(args)[0] if isinstance(a, torch.Tensor)]
        if tensors and not any(t.is_floating_point() or t.is_complex() for t in tensors):
            return None  # from integers or booleans: nothing is rounded
        if (where, str(dtype)) not in self.seen:
            self.seen.add((where, str(dtype)))
            self.graph.narrowings.append((where, str(dtype).removeprefix("torch.")))
        return dtype

    def _record(
        self,
        op: Any,
        name: str,
        args: Any,
        kwargs: Any,
        out: Any,
        where: str,
        narrowed: torch.dtype | None = None,
    ) -> Any:
        graph = self.graph

        def refs(tree: Any) -> Any:
            if isinstance(tree, torch.Tensor):
                return Ref(self.known(tree))
            if isinstance(tree, tuple | list):
                return (
                    type(tree)(refs(t) for t in tree)
                    if type(tree) in (tuple, list)
                    else list(map(refs, tree))
                )
            if isinstance(tree, dict):
                return {k: refs(v) for k, v in tree.items()}
            return tree

        args, kwargs = refs(args), refs(kwargs)
        index = len(graph.nodes)
        outs: list[int | None] = []
        for tensor in flat_tensors(out):
            if tensor is None:
                outs.append(None)
                continue
            value_id = graph.add_value(tensor.detach(), "node", index)
            self.track(tensor, value_id)
            outs.append(value_id)
        scope = self.scopes[-1] if self.scopes else ""
        graph.nodes.append(
            Node(index, op, name, tuple(args), kwargs, outs, scope, where, narrowed=narrowed)
        )
        return out

    def _mutation(
        self, func: Any, args: Any, kwargs: dict[str, Any], where: str, writes: Sequence[Any]
    ) -> Any:
        """Run an operation in place and record what it means for every view of the same storage."""
        by_name = {a.name: i for i, a in enumerate(func._schema.arguments)}
        targets = []
        for argument in writes:
            position = by_name[argument.name]
            target = args[position] if position < len(args) else kwargs.get(argument.name)
            targets += [t for t in flat_tensors(target) if t is not None]
        for target in targets:
            self.known(target)
            for tensor in self.by_storage.get(target.untyped_storage()._cdata, []):
                value_id = self.ids[id(tensor)][1]
                if (
                    self.graph.values[value_id].untyped_storage()._cdata
                    == target.untyped_storage()._cdata
                ):
                    self.graph.values[value_id] = self.graph.values[
                        value_id
                    ].clone()  # it must not change
        functional = _functional(func)
        if functional is not None and len(targets) == 1:
            wide_args, wide_kwargs = tree_map(self._widen, args), tree_map(self._widen, kwargs)
            target = targets[0]
            if func.overloadpacket is aten.zero_:
                wide_args, wide_kwargs = wide_args[:1], {}
            if func.overloadpacket is aten.copy_ and target.is_floating_point():
                new = wide_args[1].to(target.dtype).expand(target.shape).clone()
                functional, wide_args, wide_kwargs = (
                    _copy_into,
                    (wide_args[1], list(target.shape)),
                    {},
                )
            else:
                new = functional(*wide_args, **wide_kwargs)
            name = _name(func).rstrip("_")
            self._record(functional, name, wide_args, wide_kwargs, new, where)
            result = func(*args, **kwargs)
            if func.overloadpacket in _SHAPE_ONLY:
                self.ids[id(target)] = (target, self.ids[id(new)][1])
            else:
                self._derive(target, self.ids[id(new)][1], where)
            return result
        result = self._drawn_into(func, args, kwargs)
        for target in targets:  # e.g. random numbers: what was written is a constant
            fresh = target.detach().clone()
            self._derive(target, self.graph.add_value(fresh, "const"), where)
        return result

    def _drawn_into(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation in place; one that draws draws in the model's own type, whose random
        numbers are others than those of float64."""
        target: Any = args[0] if args else None
        name = func._schema.name.split("::")[1]
        if name not in _DRAWN or target.dtype != torch.float64 or self.native not in WIDE:
            return func(*args, **kwargs)
        drawn = torch.empty(target.shape, dtype=self.native)
        func(drawn, *args[1:], **kwargs)
        return target.copy_(drawn)

    def _draw(self, func: Any, args: Any, kwargs: dict[str, Any], dtype: Any, where: str) -> Any:
        """An operation that makes random numbers, in the model's own type; they stay these when
        the graph is run again."""
        value = func(*args, **kwargs | {"dtype": dtype})
        if not self.own:
            value = value.to(torch.float64)
        return self._record(lambda: value.to(torch.float64), _name(func), (), {}, value, where)

    def _derive(self, target: torch.Tensor, new_id: int, where: str) -> None:
        """Give `target`, which was written to, and all its views their new values."""
        group = self.by_storage[target.untyped_storage()._cdata]
        total = target.untyped_storage().nbytes() // target.element_size()

        def full(t: torch.Tensor) -> bool:
            return t.is_contiguous() and t.numel() == total

        base = next((t for t in group if full(t)), None)
        old_ids = {id(t): self.ids[id(t)][1] for t in group}
        self.ids[id(target)] = (target, new_id)
        if base is None or not target.is_floating_point():
            for t in group:
                if t is not target:
                    self.ids[id(t)] = (t, self.graph.add_value(t.detach().clone(), "const"))
            return
        scope = self.scopes[-1] if self.scopes else ""

        def emit(op: Any, args: tuple[Any, ...], value: torch.Tensor) -> int:
            index = len(self.graph.nodes)
            out = self.graph.add_value(value.detach().clone(), "node", index)
            self.graph.nodes.append(
                Node(index, op, op.__name__.strip("_"), args, {}, [out], scope, where)
            )
            return out

        def geometry(t: torch.Tensor) -> tuple[list[int], list[int], int]:
            return list(t.shape), list(t.stride()), int(t.storage_offset())

        if base is target:
            base_id = new_id
        elif full(target):
            base_id = emit(_restride, (Ref(new_id), *geometry(base)), base)
        else:
            base_id = emit(_scatter, (Ref(old_ids[id(base)]), Ref(new_id), *geometry(target)), base)
        self.ids[id(base)] = (base, base_id)
        for t in group:
            if t is not target and t is not base:
                self.ids[id(t)] = (t, emit(_restride, (Ref(base_id), *geometry(t)), t))


def _copy_into(value: torch.Tensor, shape: list[int]) -> torch.Tensor:
    return value.expand(shape).clone()


def _makes_from_nothing(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """True for a factory call that leaves the type to PyTorch's default."""
    return (
        kwargs.get("dtype") is None
        and any(a.name == "dtype" for a in func._schema.arguments)
        and not any(isinstance(x, torch.Tensor) for x in tree_flatten((args, kwargs))[0])
    )


def _copies_only(args: Any, kwargs: dict[str, Any]) -> bool:
    return (
        isinstance(args[0], torch.Tensor)
        and kwargs.get("dtype") in (None, args[0].dtype)
        and args[0].is_floating_point()
    )


def _name(func: Any) -> str:
    name = func._schema.name.split("::")[1]
    return {
        "_unsafe_view": "view",
        "_to_copy": "to",
        "_softmax": "softmax",
        "_log_softmax": "log_softmax",
    }.get(name, name)


def _replayable(func: Any) -> Any:
    """The operation as it is run again: a substituted value may have other strides than the
    recorded one."""
    if func.overloadpacket in (aten.view, aten._unsafe_view) and func._overloadname != "dtype":
        return aten.reshape.default
    return func


def _takes_the_default(args: Any, kwargs: dict[str, Any], out: Any) -> bool:
    """True for an operation that makes floats of whole numbers (a division, a root): of the default
    type, which is another one when it is run again."""
    if not isinstance(out, torch.Tensor) or not out.is_floating_point() or kwargs.get("dtype"):
        return False
    tensors = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, torch.Tensor)]
    return bool(tensors) and not any(t.is_floating_point() or t.is_complex() for t in tensors)


def _by_wide_default(op: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation run with float64 as the default type, as it was recorded."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return op(*args, **kwargs)
    finally:
        torch.set_default_dtype(default)


@contextlib.contextmanager
def _quiet_torch(dtype: torch.dtype | None = torch.float64) -> Iterator[None]:
    """Recording's settings: this default type (None: as it is), no fast path, no compilation; all
    restored."""
    default, fastpath = torch.get_default_dtype(), torch.backends.mha.get_fastpath_enabled()
    rng = torch.random.get_rng_state()
    functional = torch.nn.functional
    fused = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = (
        attention  # MultiheadAttention's call does not reach the mode
    )
    torch.set_default_dtype(dtype or default)
    torch.backends.mha.set_fastpath_enabled(False)
    stance = getattr(torch.compiler, "set_stance", None)
    try:
        with stance("force_eager") if stance is not None else contextlib.nullcontext():
            yield
    finally:
        functional.scaled_dot_product_attention = fused
        torch.set_default_dtype(default)
        torch.backends.mha.set_fastpath_enabled(fastpath)
        torch.random.set_rng_state(rng)


def widened(model: Any) -> Any:
    """A copy of a module in float64 on the CPU; a function is returned as it is."""
    if not isinstance(model, torch.nn.Module):
        return model
    return copied(model).double()


def copied(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of a module on the CPU. Raises PortError if it cannot be copied."""
    computed: dict[int, Any] = {}  # attributes with a gradient (weight norm's), which refuse
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                computed[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, computed).cpu()
    except Exception as error:
        raise PortError(
            f"the PyTorch model cannot be copied ({error}); explain works on a float64 copy"
        ) from error


def to_torch(array: Any) -> torch.Tensor:
    """An input as PyTorch takes it, floating point widened to float64 (complex: complex128)."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        return array.to(WIDE.get(array.dtype, array.dtype), copy=True)
    array = np.asarray(array)
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        array = array.astype(np.float64)
    elif array.dtype.kind == "c":
        array = array.astype(np.complex128)
    return torch.from_numpy(np.array(array, copy=True, order="C"))


def numbers(t: torch.Tensor) -> np.ndarray:
    """A tensor's numbers as a contiguous array."""
    return np.ascontiguousarray(t.detach().numpy())


def split_inputs(inputs: Any) -> tuple[list[str], list[Any]]:
    """Names (none for positional inputs) and arrays; an array alone is the only input."""
    if isinstance(inputs, Mapping):
        return list(inputs), list(inputs.values())
    return [], [inputs] if hasattr(inputs, "shape") else list(inputs)


def call(model: Any, names: Sequence[str], tensors: Sequence[torch.Tensor]) -> Any:
    """What the model returns for inputs as `split_inputs` gives them."""
    return model(**dict(zip(names, tensors))) if names else model(*tensors)


def as_given(
    model: Any, inputs: Sequence[Any] | Mapping[str, Any], train: bool = False
) -> tuple[Any, list[str], list[list[torch.Tensor]]]:
    """A copy of the model as it is, the inputs' names, and the inputs to try in turn: in their own
    types (float64 as float32), and in the model's."""
    own: torch.dtype | None = None
    if isinstance(model, torch.nn.Module):
        model = copied(model).train(train)
        tensors = [*model.parameters(), *model.buffers()]
        own = next((t.dtype for t in tensors if t.is_floating_point()), None)
    names, given = split_inputs(inputs)

    def cast(x: Any, to: torch.dtype | None) -> torch.Tensor:
        t = to_torch(x)
        if not t.is_floating_point():
            return t.to(torch.complex64) if t.is_complex() else t
        dtype = float_type(x)
        return t.to(to or getattr(torch, "float32" if dtype == "float64" else dtype))

    tries: list[torch.dtype | None] = [None] if own is None else [None, own]
    if own is torch.float64:
        tries.reverse()
    return model, names, [[cast(x, to) for x in given] for to in tries]


def float_type(x: Any) -> str:
    """The name of the type of an input's numbers, "bfloat16"."""
    dtype = x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype
    return str(dtype).removeprefix("torch.")


Pick = Callable[[Any], list[Any]]
"""Chooses the compared arrays of what a model returns; what it computes is recorded."""


def record(
    model: Any,
    inputs: Sequence[Any] | Mapping[str, Any],
    pick: Pick,
    *,
    train: bool = False,
    like: Graph | None = None,
) -> Graph:
    """Record one forward pass of `model` in float64, with the numbers and operations that depend on
    the type as they are where the model runs.

    Args:
        model: nn.Module (copied and widened, never changed) or callable of tensors.
        inputs: arrays as the model takes them, positional or by name.
        pick: chooses the compared arrays of what the model returns; what it computes is recorded.
        train: record in train mode.
        like: a recording of the model as it is, where this one and these inputs are in float64.

    Returns:
        The graph, with every value kept.
    """
    if like is not None:
        if like.own:
            return _recorded_in(like.own, model, inputs, pick)
        return _recorded(model, inputs, pick, train, like.numbers)
    own = _listened(model, inputs, pick, train)
    graph = _recorded(model, inputs, pick, train)
    if own is None:
        return graph
    try:
        others = differing(graph.heard, own)
    except Apart as reason:
        return graph if train else _recorded_as_it_runs(model, inputs, pick, str(reason)) or graph
    if not others:
        return graph
    graph = _recorded(model, inputs, pick, train, others)
    for where in dict.fromkeys(operation.where for operation in others.values()):
        graph.notes.append(
            f"a number of the reference depends on the type of what it is computed with ({where}); "
            "it was taken as the reference runs"
        )
    return graph


def _listened(
    model: Any, inputs: Sequence[Any] | Mapping[str, Any], pick: Pick, train: bool
) -> list[Heard] | None:
    """The model's operations in its own types; None if it does not run in them."""
    copy, names, tries = as_given(model, inputs, train)
    for tensors in tries:
        listener = Listener(where_in_user_code)
        try:
            with _quiet_torch(None), torch.no_grad(), _Attention(), listener:
                pick(call(copy, names, tensors))
        except Exception:
            continue
        return listener.operations
    return None


def _recorded_as_it_runs(
    model: Any, inputs: Sequence[Any] | Mapping[str, Any], pick: Pick, reason: str
) -> Graph | None:
    """The model recorded in its own types, its operations then run in float64; None if it does not
    run in them."""
    copy, _, tries = as_given(model, inputs)
    for tensors in tries:
        types = {f"input:{k}": t.dtype for k, t in enumerate(tensors)}
        if isinstance(copy, torch.nn.Module):
            types.update((n, t.dtype) for n, t in _named_tensors(copy))
        try:
            graph = _recorded_in(types, widened(model), inputs, pick)
        except Exception:
            continue
        graph.notes.append(
            f"the reference's program depends on the types that it is given ({reason}); it was "
            "recorded in its own and computed in float64"
        )
        return graph
    return None


def _recorded_in(
    types: dict[str, torch.dtype],
    model: Any,
    inputs: Sequence[Any] | Mapping[str, Any],
    pick: Pick,
) -> Graph:
    """A model in float64 recorded in these types, its operations then run in float64."""
    names, given = split_inputs(inputs)
    wide = {f"input:{k}": to_torch(x) for k, x in enumerate(given)}
    tensors = [t.to(types[name]) for name, t in wide.items()]
    own = model
    if isinstance(model, torch.nn.Module):
        wide.update((f"param:{n}", t.detach()) for n, t in _named_tensors(model))
        own = copied(model)
        for name, tensor in _named_tensors(own):
            tensor.data = tensor.data.to(types[name])
    graph = _recorded(own, dict(zip(names, tensors)) if names else tensors, pick, False, own=True)
    _compute_wide(graph, wide)
    graph.own = types
    return graph


def _named_tensors(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _compute_wide(graph: Graph, given: Mapping[str, torch.Tensor]) -> None:
    """Every operation of a graph again in float64, on these parameters and inputs."""

    def wide(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return x.to(WIDE.get(x.dtype, x.dtype))
        return WIDE.get(x, x) if isinstance(x, torch.dtype) else x

    leaves = {
        i: wide(given.get(source, graph.values[i]))
        for i, source in enumerate(graph.source)
        if source != "node"
    }
    for node in graph.nodes:
        node.args, node.kwargs = tree_map(wide, node.args), tree_map(wide, node.kwargs)
    with torch.no_grad():
        for i, value in graph.run({}, leaves, everything=True).items():
            graph.values[i] = value


def _recorded(
    model: Any,
    inputs: Sequence[Any] | Mapping[str, Any],
    pick: Pick,
    train: bool,
    numbers: Mapping[int, Heard] | None = None,
    own: bool = False,
) -> Graph:
    """One forward pass in float64, or in the model's own types, with these operations' numbers."""
    graph = Graph(numbers=dict(numbers or {}))
    wide = model if own else widened(model)
    names: dict[int, str] = {}
    hooks: list[Any] = []
    recorder = Recorder(graph, numbers, own)
    if isinstance(wide, torch.nn.Module):
        wide.train(train)
        for name, module in wide.named_modules():
            names.setdefault(id(module), name)
            graph.modules.setdefault(name, type(module).__name__)
        for name, tensor in _named_tensors(wide):
            recorder.track(tensor, graph.add_value(tensor.detach(), f"param:{name}"))

        graph.buffers = {name for name, _ in wide.named_buffers()}

        def enter(module: Any, _: Any) -> None:
            if id(module) in names:
                recorder.scopes.append(names[id(module)])

        def leave(module: Any, _: Any, __: Any) -> None:
            if id(module) in names and recorder.scopes:
                recorder.scopes.pop()

        hooks.append(torch.nn.modules.module.register_module_forward_pre_hook(enter))
        hooks.append(torch.nn.modules.module.register_module_forward_hook(leave, always_call=True))
    keys, arrays = split_inputs(inputs)
    tensors = list(arrays) if own else [to_torch(x) for x in arrays]
    for number, tensor in enumerate(tensors):
        recorder.track(tensor, graph.add_value(tensor.clone(), f"input:{number}"))
    try:
        default = None if own else torch.float64
        with _quiet_torch(default), torch.no_grad(), _Attention(), recorder:
            try:
                out = call(wide, keys, tensors)
            except PortError:
                raise
            except Exception as error:
                shapes = ", ".join(
                    f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in tensors
                )
                raise PortError(
                    f"the PyTorch model refuses its inputs ({shapes}): "
                    f"{type(error).__name__}: {error}"
                ) from error
            picked = pick(out)  # a function that picks may compute
    finally:
        for hook in hooks:
            hook.remove()
    graph.outputs += [recorder.known(tensor) for tensor in picked]
    graph.finish()
    return graph
