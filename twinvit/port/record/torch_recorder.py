"""The dispatch mode below autograd that records a PyTorch program.

An operation in place becomes its functional form, and the other views of the same storage are
derived again.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from twinvit.port.ops import (
    ASKED,
    DRAWN_IN_PLACE,
    FRESH_DRAWS,
    MOVED_IN_PLACE,
    READS,
    UNFILLED,
    UNSHARED,
)
from twinvit.port.record.draft import Draft
from twinvit.port.record.graph import flat_tensors
from twinvit.port.record.torch_calls import (
    aten_name,
    by_wide_default,
    copies_only,
    copy_into,
    functional,
    makes_from_nothing,
    op_name,
    replayable,
    takes_the_default,
)
from twinvit.port.record.torch_place import where_in_user_code
from twinvit.port.record.torch_tracking import Tracked
from twinvit.port.record.torch_types import Heard, heard, with_numbers
from twinvit.port.record.torch_values import WIDE

aten = torch.ops.aten


class Recorder(TorchDispatchMode):
    """Records operations; widens every floating-point value to float64 on the way.

    `numbers` are taken instead of those that operations, by their place in order, are called with.
    With `own` nothing is widened. `placed` are the numbers by the operations' names, lines and
    counts, instead of `numbers`.
    """

    def __init__(
        self,
        graph: Draft,
        numbers: Mapping[int, Heard] | None = None,
        own: bool = False,
        placed: Mapping[tuple[str, str, int], Heard] | None = None,
    ) -> None:
        super().__init__()
        self.placed = placed
        self.counted: Counter[tuple[str, str]] = Counter()
        self.graph = graph
        self.numbers = numbers or {}
        self.own = own
        self.tracked = Tracked(graph)
        self.seen: set[tuple[str, str]] = set()
        self.paused = False  # what the recorder computes is not recorded
        self.native = torch.get_default_dtype()  # before recording makes it float64

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if self.paused:
            return func(*args, **kwargs)
        where = where_in_user_code()
        operation = heard(func, args, kwargs, where)
        if operation is not None:
            other = self._numbers_of(operation)
            self.graph.heard.append(operation)
            self.graph.heard_at.append(len(self.graph.nodes))
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
        name = aten_name(func)
        if name in UNFILLED:
            out = func(*args, **kwargs)
            self.tracked.track(out, self.graph.add_value(out.detach(), "const"))  # filled later
            return out
        if name in ("native_batch_norm", "cudnn_batch_norm") and args[5] and args[3] is not None:
            return self._batch_norm(args, kwargs, where)
        if name in FRESH_DRAWS:
            if self.own:
                return self._draw(func, args, kwargs, kwargs.get("dtype"), where)
            native = narrowed or self.native
            if kwargs.get("dtype") in (None, torch.float64) and native in WIDE:
                return self._draw(func, args, kwargs, native, where)
        if name == "_to_copy" and narrowed is None and copies_only(args, kwargs):
            out = args[0].clone()
        else:
            out = func(*args, **kwargs)
        if makes_from_nothing(func, args, kwargs) and isinstance(out, torch.Tensor):
            kwargs["dtype"] = out.dtype  # the default type is another one when it is run again
        if name in UNSHARED:
            out = [t.clone() for t in out]  # its results are promised not to be written through
        if name in READS | ASKED:
            if name in READS:
                self.graph.reads += [
                    (self.tracked.known(t), where) for t in args if isinstance(t, torch.Tensor)
                ]
            return out
        op = replayable(func)
        if takes_the_default(args, kwargs, out):
            op = functools.partial(by_wide_default, op)
        return self.tracked.record(op, op_name(func), args, kwargs, out, where, narrowed)

    def function_told(self, kind: Any, args: tuple[Any, ...], out: Any) -> Any:
        """What a torch.autograd.Function returned, with its own backward."""
        where = where_in_user_code()
        self.paused = True
        try:
            return self.tracked.ruled(kind, args, out, where)
        finally:
            self.paused = False

    def _numbers_of(self, operation: Heard) -> Heard | None:
        """What an operation takes its numbers from; None for its own. Where edits change what the
        model's control flow follows, it is known by its line and the count of such before it."""
        place = len(self.graph.heard)
        if self.placed is None:
            return self.numbers.get(place)
        key = operation.name, operation.where
        self.counted[key] += 1
        return self.placed.get((*key, self.counted[key] - 1))

    def _batch_norm(self, args: Any, kwargs: dict[str, Any], where: str) -> Any:
        """Batch norm in train mode writes its running statistics, which its schema does not say."""
        func = aten._native_batch_norm_legit_functional.default
        x, weight, bias, mean, var, training, momentum, eps = args
        out = func(x, weight, bias, mean, var, training, momentum, eps)
        self.tracked.record(func, "native_batch_norm", args, kwargs, out, where)
        for target, new in ((mean, out[3]), (var, out[4])):
            value_id = self.tracked.known(target)
            self.graph.values[value_id] = target.detach().clone()
            target.copy_(new)
            self.tracked.points(target, self.tracked.id_of(new))
        return out[0], out[1], out[2]

    def _widen(self, x: Any) -> Any:
        if self.own:
            return x
        if isinstance(x, torch.Tensor) and x.dtype in WIDE and not x.is_sparse:
            if self.tracked.holds(x):  # an operation insists on a narrow type: use the wide copy
                return self.graph_wide(x)
            wide = x.detach().to(WIDE[x.dtype])
            self.tracked.track(wide, self.graph.add_value(wide, "const"))
            self.tracked.points(x, self.tracked.id_of(wide))
            return wide
        return x

    def graph_wide(self, x: torch.Tensor) -> torch.Tensor:
        value_id = self.tracked.id_of(x)
        value = self.graph.values[value_id]
        if value.dtype in WIDE:
            value = value.to(WIDE[value.dtype])
            self.graph.values[value_id] = value
        if not self.tracked.holds(value):
            self.tracked.track(value, value_id)
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
            self.tracked.keep_written(target)
        pure = functional(func)
        if pure is not None and len(targets) == 1:
            wide_args, wide_kwargs = tree_map(self._widen, args), tree_map(self._widen, kwargs)
            target = targets[0]
            if func.overloadpacket is aten.zero_:
                wide_args, wide_kwargs = wide_args[:1], {}
            if func.overloadpacket is aten.copy_ and target.is_floating_point():
                new = wide_args[1].to(target.dtype).expand(target.shape).clone()
                pure = copy_into
                wide_args, wide_kwargs = (wide_args[1], list(target.shape)), {}
            else:
                new = pure(*wide_args, **wide_kwargs)
            name = op_name(func).rstrip("_")
            old = self.tracked.known(target)
            kept = self.tracked.record(pure, name, wide_args, wide_kwargs, new, where, written=True)
            result = func(*args, **kwargs)
            if kept is not new:  # an edit was made
                new = kept
                target.copy_(new)
            if aten_name(func) in MOVED_IN_PLACE:
                self.tracked.points(target, self.tracked.id_of(new))
            else:
                made = self.tracked.without_gradient(self.tracked.id_of(new), old, where)
                self.tracked.derive(target, made, where)
            return result
        result = self._drawn_into(func, args, kwargs)
        for target in targets:  # e.g. random numbers: what was written is a constant
            new = self.graph.add_value(target.detach().clone(), "const")
            if aten_name(func) in DRAWN_IN_PLACE:
                self.graph.drawn.add(new)
            self.tracked.derive(target, new, where)
        return result

    def _drawn_into(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation in place; one that draws draws in the model's own type, whose random
        numbers are others than those of float64."""
        target: Any = args[0] if args else None
        if (
            aten_name(func) not in DRAWN_IN_PLACE
            or target.dtype != torch.float64
            or self.native not in WIDE
        ):
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
        return self.tracked.record(
            lambda: value.to(torch.float64), op_name(func), (), {}, value, where
        )
