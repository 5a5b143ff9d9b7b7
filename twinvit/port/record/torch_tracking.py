"""Which recorded value each tensor of a running model holds, and the views of each storage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from twinvit.port.ops import UNTRACKED
from twinvit.port.record.draft import Draft
from twinvit.port.record.graph import Node, Ref, flat_tensors
from twinvit.port.record.live_edits import edited
from twinvit.port.record.torch_calls import restride, scatter
from twinvit.port.record.torch_gradients import Blocks, CustomBackward, written_over

aten = torch.ops.aten


class Tracked:
    """The tensors of a model that is recorded, and their values' ids in its graph.

    Attributes:
        graph: what is recorded into.
        scopes: names of the modules that run now, outermost first.
        blocks: those of the model without gradients.
        trained: ids of the values that a gradient may flow from to a parameter.
    """

    def __init__(self, graph: Draft) -> None:
        self.graph = graph
        self.scopes: list[str] = []
        self.blocks = Blocks()
        self.trained: set[int] = set()
        # A tensor and its value by the tensor's `id`, which is used again when a tensor no longer
        # exists.
        self._ids: dict[int, tuple[torch.Tensor, int]] = {}
        self._by_storage: dict[int, list[torch.Tensor]] = {}
        self._storages: dict[int, int] = {}

    def holds(self, tensor: torch.Tensor) -> bool:
        """True for a tensor with a value."""
        return id(tensor) in self._ids

    def id_of(self, tensor: torch.Tensor) -> int:
        """The id of a tensor's value, which is tracked."""
        return self._ids[id(tensor)][1]

    def points(self, tensor: torch.Tensor, value_id: int) -> None:
        """A tensor holds another value from now on."""
        self._ids[id(tensor)] = (tensor, value_id)

    def add(
        self,
        op: Any,
        name: str,
        args: tuple[Any, ...],
        value: torch.Tensor,
        where: str,
    ) -> int:
        """Add an operation with one result to the graph; returns the result's id."""
        index = len(self.graph.nodes)
        out = self.graph.add_value(value, "node", index)
        scope = self.scopes[-1] if self.scopes else ""
        self.graph.key(scope, name, where)
        node = Node(index, op, name, args, {}, (out,), scope, where)
        self.graph.nodes.append(node)
        if name not in UNTRACKED and self._passes(node):
            self.trained.add(out)
        return out

    def _passes(self, node: Node) -> bool:
        return any(r in self.trained for r in node.refs)

    def track(self, tensor: torch.Tensor, value_id: int) -> None:
        """A tensor that was not known holds this value."""
        self.points(tensor, value_id)
        storage = tensor.untyped_storage()._cdata
        self._storages[id(tensor)] = storage
        self._by_storage.setdefault(storage, []).append(tensor)

    def known(self, tensor: torch.Tensor) -> int:
        """The id of a tensor; one that no operation made is a constant."""
        held = self._storages.get(id(tensor))
        if held is not None and held != tensor.untyped_storage()._cdata:
            # `tensor.data = other` happened: no operation says so.
            self._by_storage[held] = [t for t in self._by_storage[held] if t is not tensor]
            del self._ids[id(tensor)], self._storages[id(tensor)]
        if not self.holds(tensor):
            alias = self._alias(tensor)
            if alias is not None:
                self.points(tensor, alias)
                return alias
            self.track(tensor, self.graph.add_value(tensor.detach(), "const"))
        return self.id_of(tensor)

    def _alias(self, tensor: torch.Tensor) -> int | None:
        """The id of a tensor that uses a recorded one's storage (a view that C++ made without an
        operation)."""
        group = self._by_storage.get(tensor.untyped_storage()._cdata, [])
        geometry = (list(tensor.shape), list(tensor.stride()), int(tensor.storage_offset()))
        for other in reversed(group):
            value_id = self.id_of(other)
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
                return self.add(
                    restride, "restride", (Ref(value_id), *geometry), tensor.detach(), ""
                )
        return None

    def record(
        self,
        op: Any,
        name: str,
        args: Any,
        kwargs: Any,
        out: Any,
        where: str,
        narrowed: torch.dtype | None = None,
        written: bool = False,
    ) -> Any:
        """Add an operation with its operands and results to the graph; returns `out`, or what
        stands in its place where an edit is made while the model is recorded. `written`: its
        results are written over a tensor."""
        graph = self.graph
        args, kwargs = self._refs(args), self._refs(kwargs)
        index = len(graph.nodes)
        scope = self.scopes[-1] if self.scopes else ""
        node = Node(index, op, name, tuple(args), kwargs, (), scope, where, narrowed)
        node, out = edited(graph, graph.key(scope, name, where), node, out)
        outs: list[int | None] = []
        for tensor in flat_tensors(out):
            if tensor is None:
                outs.append(None)
                continue
            value_id = graph.add_value(tensor.detach(), "node", index)
            self.track(tensor, value_id)
            outs.append(value_id)
        graph.nodes.append(replace(node, outs=tuple(outs)))
        if name not in UNTRACKED and self._passes(node):
            self.trained.update(o for o in outs if o is not None)
            if self.blocks.off and not written:
                self._cut(out, where)
        return out

    def _cut(self, out: Any, where: str) -> None:
        """No gradient flows through these results of an operation."""
        for tensor in flat_tensors(out):
            if tensor is not None and tensor.is_floating_point() and self.holds(tensor):
                refs = (Ref(self.id_of(tensor)),)
                cut = self.add(aten.detach.default, "detach", refs, tensor.detach(), where)
                self.points(tensor, cut)

    def without_gradient(self, new: int, old: int, where: str) -> int:
        """The id of a value that was written over another one, where the model runs without
        gradients: what flows to it goes on to the other one."""
        if not self.blocks.off or not {new, old} & self.trained:
            return new
        value = self.graph.values[new]
        self.trained.discard(new)
        return self.add(written_over, "written_over", (Ref(new), Ref(old)), value, where)

    def ruled(self, kind: Any, args: tuple[Any, ...], out: Any, where: str) -> Any:
        """What a torch.autograd.Function returned, with its own backward."""
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        outs = [t for t in flat_tensors(out) if t is not None]
        if any(o is t for o in outs for t in tensors):
            return out  # it writes over what it was called with, which is gone
        given = [self.known(t) for t in tensors]
        moves = any(i in self.trained and t.is_floating_point() for i, t in zip(given, tensors))
        if not outs or not moves or self.blocks.off:
            return out
        graph = self.graph
        name = "custom_backward" if len(outs) == 1 else "custom_backwards"
        refs = tuple(Ref(i) for i in (*map(self.known, outs), *given))
        index = len(graph.nodes)
        made = tuple(graph.add_value(t.detach(), "node", index) for t in outs)
        scope = self.scopes[-1] if self.scopes else ""
        graph.key(scope, name, where)
        rule = CustomBackward(kind, args, len(outs))
        graph.nodes.append(Node(index, rule, name, refs, {}, made, scope, where))
        for tensor, value in zip(outs, made):
            self.points(tensor, value)
        self.trained.update(made)
        return out

    def _refs(self, tree: Any) -> Any:
        """Arguments with the tensors among them as references. (A method: a function that calls
        itself would hold all that is tracked until the collector runs.)"""
        if isinstance(tree, torch.Tensor):
            return Ref(self.known(tree))
        if isinstance(tree, tuple | list):
            made = map(self._refs, tree)
            return type(tree)(made) if type(tree) in (tuple, list) else list(made)
        if isinstance(tree, dict):
            return {k: self._refs(v) for k, v in tree.items()}
        return tree

    def keep_written(self, target: torch.Tensor) -> None:
        """Copy the recorded values of a storage that is about to be written to."""
        self.known(target)
        storage = target.untyped_storage()._cdata
        for tensor in self._by_storage.get(storage, []):
            value_id = self.id_of(tensor)
            value = self.graph.values[value_id]
            if value.untyped_storage()._cdata == storage:
                self.graph.values[value_id] = value.clone()

    def derive(self, target: torch.Tensor, new_id: int, where: str) -> None:
        """Give `target`, which was written to, and all its views their new values."""
        group = self._by_storage[target.untyped_storage()._cdata]
        total = target.untyped_storage().nbytes() // target.element_size()

        def full(t: torch.Tensor) -> bool:
            return t.is_contiguous() and t.numel() == total

        base = next((t for t in group if full(t)), None)
        old_ids = {id(t): self.id_of(t) for t in group}
        self.points(target, new_id)
        if base is None or not target.is_floating_point():
            for t in group:
                if t is not target:
                    self.points(t, self.graph.add_value(t.detach().clone(), "const"))
            return

        def emit(op: Any, args: tuple[Any, ...], value: torch.Tensor) -> int:
            return self.add(op, op.__name__, args, value.detach().clone(), where)

        def geometry(t: torch.Tensor) -> tuple[list[int], list[int], int]:
            return list(t.shape), list(t.stride()), int(t.storage_offset())

        if base is target:
            base_id = new_id
        elif full(target):
            base_id = emit(restride, (Ref(new_id), *geometry(base)), base)
        else:
            base_id = emit(scatter, (Ref(old_ids[id(base)]), Ref(new_id), *geometry(target)), base)
        self.points(base, base_id)
        for t in group:
            if t is not target and t is not base:
                self.points(t, emit(restride, (Ref(base_id), *geometry(t)), t))
