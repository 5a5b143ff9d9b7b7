"""The dispatch mode below autograd that records a PyTorch program.

An operation in place becomes its functional form, and the other views of the same storage are
derived again.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from twinvit.port.record.graph import Graph, Node, Ref, flat_tensors
from twinvit.port.record.torch_calls import (
    DRAWN,
    FRESH_DRAWS,
    SHAPE_ONLY,
    by_wide_default,
    copies_only,
    copy_into,
    functional,
    makes_from_nothing,
    op_name,
    replayable,
    restride,
    scatter,
    takes_the_default,
)
from twinvit.port.record.torch_place import where_in_user_code
from twinvit.port.record.torch_types import Heard, heard, with_numbers
from twinvit.port.record.torch_values import WIDE

aten = torch.ops.aten


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
                        restride,
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
        if packet in FRESH_DRAWS:
            if self.own:
                return self._draw(func, args, kwargs, kwargs.get("dtype"), where)
            native = narrowed or self.native
            if kwargs.get("dtype") in (None, torch.float64) and native in WIDE:
                return self._draw(func, args, kwargs, native, where)
        if packet is aten._to_copy and narrowed is None and copies_only(args, kwargs):
            out = args[0].clone()
        else:
            out = func(*args, **kwargs)
        if makes_from_nothing(func, args, kwargs) and isinstance(out, torch.Tensor):
            kwargs["dtype"] = out.dtype  # the default type is another one when it is run again
        if packet in (aten.unsafe_split, aten.unsafe_chunk, aten.unsafe_split_with_sizes):
            out = [t.clone() for t in out]  # its results are promised not to be written through
        if packet in (aten._local_scalar_dense, aten.is_pinned, aten.equal, aten.sym_size):
            if packet in (aten._local_scalar_dense, aten.equal):
                self.graph.reads += [
                    (self.known(t), where) for t in args if isinstance(t, torch.Tensor)
                ]
            return out
        op = replayable(func)
        if takes_the_default(args, kwargs, out):
            op = functools.partial(by_wide_default, op)
        return self._record(op, op_name(func), args, kwargs, out, where, narrowed)

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
        pure = functional(func)
        if pure is not None and len(targets) == 1:
            wide_args, wide_kwargs = tree_map(self._widen, args), tree_map(self._widen, kwargs)
            target = targets[0]
            if func.overloadpacket is aten.zero_:
                wide_args, wide_kwargs = wide_args[:1], {}
            if func.overloadpacket is aten.copy_ and target.is_floating_point():
                new = wide_args[1].to(target.dtype).expand(target.shape).clone()
                pure, wide_args, wide_kwargs = (
                    copy_into,
                    (wide_args[1], list(target.shape)),
                    {},
                )
            else:
                new = pure(*wide_args, **wide_kwargs)
            name = op_name(func).rstrip("_")
            self._record(pure, name, wide_args, wide_kwargs, new, where)
            result = func(*args, **kwargs)
            if func.overloadpacket in SHAPE_ONLY:
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
        if name not in DRAWN or target.dtype != torch.float64 or self.native not in WIDE:
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
        return self._record(lambda: value.to(torch.float64), op_name(func), (), {}, value, where)

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
            base_id = emit(restride, (Ref(new_id), *geometry(base)), base)
        else:
            base_id = emit(scatter, (Ref(old_ids[id(base)]), Ref(new_id), *geometry(target)), base)
        self.ids[id(base)] = (base, base_id)
        for t in group:
            if t is not target and t is not base:
                self.ids[id(t)] = (t, emit(restride, (Ref(base_id), *geometry(t)), t))
