"""Record a PyTorch model as a graph of ATen operations that can be edited and run again."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils._pytree import tree_map

from twinvit.port.errors import PortError
from twinvit.port.record.draft import Draft
from twinvit.port.record.graph import Graph
from twinvit.port.record.graph_values import Values
from twinvit.port.record.live_edits import LiveEdits
from twinvit.port.record.torch_attention import ROWS, Attention, Rows, attention
from twinvit.port.record.torch_gradients import functions_told
from twinvit.port.record.torch_own_types import as_recorded, own_types
from twinvit.port.record.torch_place import where_in_user_code
from twinvit.port.record.torch_recorder import Recorder
from twinvit.port.record.torch_types import Apart, Heard, Listener, differing
from twinvit.port.record.torch_values import (
    WIDE,
    as_given,
    call,
    copied,
    split_inputs,
    to_torch,
    widened,
)


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


Pick = Callable[[Any], list[Any]]
"""Chooses the compared arrays of what a model returns; what it computes is recorded."""


def record(
    model: Any,
    inputs: Sequence[Any] | Mapping[str, Any],
    pick: Pick,
    *,
    train: bool = False,
    like: Graph | None = None,
    live: LiveEdits | None = None,
    copy: bool = True,
) -> Graph:
    """Record one forward pass of `model` in float64, with the numbers and operations that depend on
    the type as they are where the model runs.

    Args:
        model: nn.Module (copied and widened, never changed) or callable of tensors.
        inputs: arrays as the model takes them, positional or by name.
        pick: chooses the compared arrays of what the model returns; what it computes is recorded.
        train: record in train mode.
        like: a recording of the model as it is, where this one and these inputs are in float64.
        live: edits that are made while it is recorded.
        copy: record a copy of the model, in float64; without, it is in float64 and recorded
            itself, and changed by that as by a call.

    Returns:
        The graph, with every value stored.
    """
    replayed = getattr(model, "replayed", None)  # the model is a recording
    if replayed is not None:
        graph: Graph = replayed(inputs, pick, train)
        return graph
    if like is not None:
        if like.own:
            if live:
                raise PortError("no edits can be made while a model is recorded in its own types")
            return _recorded_in(like.own, model, inputs, pick, like.rows)
        placed = _placed(like) if live else None
        numbers, zeroed = like.numbers, like.rows
        return _recorded(
            model, inputs, pick, train, numbers, False, zeroed, live=live, placed=placed, copy=copy
        )
    own = _listened(model, inputs, pick, train)
    graph = _recorded(model, inputs, pick, train)
    if own is None:
        return graph
    try:
        others = differing(graph.heard, own.operations)
    except Apart as reason:
        return graph if train else _recorded_as_it_runs(model, inputs, pick, str(reason)) or graph
    if not others:
        return replace(graph, types=own_types(graph, own))
    graph = _recorded(model, inputs, pick, train, others)
    notes = [
        f"a number of the reference depends on the type of what it is computed with ({where}); "
        "it was taken as the reference runs"
        for where in dict.fromkeys(operation.where for operation in others.values())
    ]
    return replace(graph, notes=(*graph.notes, *notes), types=own_types(graph, own))


def _placed(graph: Graph) -> dict[tuple[str, str, int], Heard]:
    """The numbers that a recording took of the program that runs, by the name and the line of an
    operation and the count of such before it."""
    seen: Counter[tuple[str, str]] = Counter()
    found = {}
    for place, operation in enumerate(graph.heard):
        key = operation.name, operation.where
        if place in graph.numbers:
            found[*key, seen[key]] = graph.numbers[place]
        seen[key] += 1
    return found


def record_native(
    model: Any, inputs: Sequence[Any] | Mapping[str, Any], pick: Pick, train: bool
) -> Graph | None:
    """One forward pass of the model as it runs, in its own types; None if it does not run in
    them."""
    copy, names, tries = as_given(model, inputs, train)
    for tensors in tries:
        given = dict(zip(names, tensors)) if names else tensors
        try:
            return _recorded(copy, given, pick, train, own=True)
        except Exception:
            continue
    return None


def _listened(
    model: Any, inputs: Sequence[Any] | Mapping[str, Any], pick: Pick, train: bool
) -> Listener | None:
    """The operations of the model in its own dtypes; None if it does not run in them."""
    copy, names, tries = as_given(model, inputs, train)
    for tensors in tries:
        listener = Listener(where_in_user_code)
        if isinstance(copy, torch.nn.Module):
            for name, tensor in _named_tensors(copy):
                listener.give(f"param:{name}", tensor)
        for k, tensor in enumerate(tensors):
            listener.give(f"input:{k}", tensor)
        try:
            with _quiet_torch(None), torch.no_grad(), Attention(), listener:
                pick(call(copy, names, tensors))
        except Exception:
            continue
        return listener
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
        note = (
            f"the reference's program depends on the types that it is given ({reason}); it was "
            "recorded in its own and computed in float64"
        )
        return replace(graph, notes=(*graph.notes, note))
    return None


def _recorded_in(
    types: Mapping[str, torch.dtype],
    model: Any,
    inputs: Sequence[Any] | Mapping[str, Any],
    pick: Pick,
    rows: Sequence[bool] = (),
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
    given_ = dict(zip(names, tensors)) if names else tensors
    graph = _recorded(own, given_, pick, False, own=True, rows=rows)
    return replace(_computed_wide(graph, wide), own=types, types=as_recorded(graph))


def _named_tensors(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _computed_wide(graph: Graph, given: Mapping[str, torch.Tensor]) -> Graph:
    """A graph with every operation run in float64, on these parameters and inputs."""

    def wide(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return x.to(WIDE.get(x.dtype, x.dtype))
        return WIDE.get(x, x) if isinstance(x, torch.dtype) else x

    leaves = {
        i: wide(given.get(source, graph.values[i]))
        for i, source in enumerate(graph.source)
        if source != "node"
    }
    nodes = [
        replace(node, args=tree_map(wide, node.args), kwargs=tree_map(wide, node.kwargs))
        for node in graph.nodes
    ]
    graph = replace(graph, nodes=tuple(nodes))
    with torch.no_grad():
        values = graph.run({}, leaves, everything=True)
    return replace(graph, values=Values([values.get(i, v) for i, v in enumerate(graph.values)]))


def _recorded(
    model: Any,
    inputs: Sequence[Any] | Mapping[str, Any],
    pick: Pick,
    train: bool,
    numbers: Mapping[int, Heard] | None = None,
    own: bool = False,
    rows: Sequence[bool] = (),
    live: LiveEdits | None = None,
    placed: Mapping[tuple[str, str, int], Heard] | None = None,
    copy: bool = True,
) -> Graph:
    """One forward pass in float64, or in the model's own types, with these operations' numbers.
    `rows`: which attentions zero rows that are completely masked, as in an earlier recording.
    `copy`: of a copy of the model, in float64."""
    graph = Draft(dict(numbers or {}), live=live)
    wide = widened(model) if copy and not own else model
    recorder = Recorder(graph, numbers, own, placed)
    hooks: list[Any] = []
    if isinstance(wide, torch.nn.Module):
        wide.train(train)
        for name, tensor in _named_tensors(wide):
            recorder.tracked.track(tensor, graph.add_value(tensor.detach(), f"param:{name}"))
        graph.buffers = frozenset(name for name, _ in wide.named_buffers())
        recorder.tracked.trained = {recorder.tracked.id_of(p) for p in wide.parameters()}
        hooks = _follow_modules(wide, graph, recorder.tracked.scopes)
    keys, arrays = split_inputs(inputs)
    tensors = list(arrays) if own else [to_torch(x) for x in arrays]
    for number, tensor in enumerate(tensors):
        recorder.tracked.track(tensor, graph.add_value(tensor.clone(), f"input:{number}"))
    zeroed = Rows(rows)
    token = ROWS.set(zeroed)
    blocks = recorder.tracked.blocks
    try:
        default = None if own else torch.float64
        with (
            _quiet_torch(default),
            torch.no_grad(),
            blocks.followed(),
            functions_told(recorder.function_told, blocks),
            Attention(),
            recorder,
        ):
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
        ROWS.reset(token)
        for hook in hooks:
            hook.remove()
    graph.rows = zeroed.now
    finished = graph.finished([recorder.tracked.known(tensor) for tensor in picked])
    return kept_narrow(finished, model) if copy and not own else finished


def kept_narrow(graph: Graph, model: Any) -> Graph:
    """A graph in float64 with those parameters kept in a model's types that are the model's."""
    if not isinstance(model, torch.nn.Module):
        return graph
    names = {i: name for name, i in graph.params().items()}
    return replace(graph, values=graph.values.narrowed(names, dict(_named_tensors(model))))


def recorded_wide(function: Callable[..., list[Any]], tensors: Sequence[torch.Tensor]) -> Graph:
    """A function of tensors as operations, recorded on these in float64."""
    return _recorded(function, list(tensors), list, False)


def _follow_modules(model: torch.nn.Module, graph: Draft, scopes: list[str]) -> list[Any]:
    """Have the name of the module that runs at the end of `scopes`; returns the hooks."""
    names: dict[int, str] = {}
    for name, module in model.named_modules():
        names.setdefault(id(module), name)
        graph.modules.setdefault(name, type(module).__name__)

    def enter(module: Any, _: Any) -> None:
        if id(module) in names:
            scopes.append(names[id(module)])

    def leave(module: Any, _: Any, __: Any) -> None:
        if id(module) in names and scopes:
            scopes.pop()

    hooks = torch.nn.modules.module
    return [
        hooks.register_module_forward_pre_hook(enter),
        hooks.register_module_forward_hook(leave, always_call=True),
    ]
