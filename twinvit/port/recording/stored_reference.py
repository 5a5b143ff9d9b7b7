"""A recorded PyTorch model, used like the model itself: its parameters, and its program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from twinvit.port.errors import PortError
from twinvit.port.record.given import split_inputs
from twinvit.port.record.graph import Graph
from twinvit.port.record.torch_values import WIDE, to_torch
from twinvit.port.recording.arrays import Read
from twinvit.port.recording.folder import Recorded
from twinvit.port.recording.torch_graph import StoredGraph

_BASES: dict[str, type] = {
    "": torch.nn.Module,
    "linear": torch.nn.Linear,
    "conv": torch.nn.modules.conv._ConvNd,
}


class Mode:
    """A program in one mode.

    Attributes:
        wide: in float64.
        own: as it runs, in its own types; None if it does not run in them.
        ran: what it returned in those, or why it did not.
    """

    def __init__(self, found: Mapping[str, Any], arrays: Read) -> None:
        self.wide = StoredGraph(found["wide"], arrays)
        self.own = None if found["own"] is None else StoredGraph(found["own"], arrays)
        ran = found["ran"]
        self.error = str(ran["error"]) if "error" in ran else ""
        self.ran = [_tensor(arrays[k]) for k in ran.get("arrays", ())]

    def __deepcopy__(self, memo: Any) -> Mode:
        return self  # nothing changes it


class StoredReference(torch.nn.Module):
    """A recorded PyTorch model: a module with its parameters, that runs its recorded program.

    Raises PortError where the recording is damaged.
    """

    def __init__(self, recorded: Recorded) -> None:
        super().__init__()
        program, arrays = recorded.program, recorded.arrays
        try:
            for name, kind, layer in program["modules"]:
                _submodule(self, name, kind, layer)
            for name, number, trained, grad, saved in program["tensors"]:
                _register(self, name, _tensor(arrays[number]), trained, grad, saved)
            for name, other in program["aliases"]:
                _alias(self, name, other)
            self.__qualname__ = str(program["model"])
            self.is_module = bool(program["module"])
            self.stored_notes = [str(n) for n in program["notes"]]
            self._stored_modes = {str(k): Mode(v, arrays) for k, v in program["modes"].items()}
            names, given = program["inputs"]["names"], program["inputs"]["arrays"]
            values = [arrays[k] for k in given]
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise PortError(f"{recorded.path} is damaged ({error}); record it again") from error
        self.stored_inputs: Any = dict(zip(map(str, names), values)) if names else tuple(values)
        self._stored_tensors = [t.detach().clone() for t in self._tensors().values()]
        self.eval()
        for mode in self._stored_modes.values():
            if mode.wide.by_value:  # they hold for the operands of this run
                mode.wide.run(self._leaves(values))
            if mode.own is not None and mode.own.by_value:
                mode.own.run(self._own_leaves(mode.own, [to_torch(x) for x in values]))

    @property
    def by_value(self) -> list[str]:
        """Operations that were recorded by their value."""
        return sorted({n for mode in self._stored_modes.values() for n in mode.wide.by_value})

    def _tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.named_parameters()) | dict(self.named_buffers())

    def check(self, kinds: Sequence[str]) -> None:
        """Raises PortError where one of "forward", "grad", "train" was not recorded."""
        if "train" in kinds:
            self._mode(train=True)

    def _mode(self, train: bool) -> Mode:
        name = "train" if train else "eval"
        if name not in self._stored_modes:
            raise PortError("the reference was recorded without train mode; record it with --train")
        return self._stored_modes[name]

    def _leaves(self, given: Any) -> dict[str, torch.Tensor]:
        found = {
            f"param:{n}": t.detach().to(WIDE.get(t.dtype, t.dtype))
            for n, t in self._tensors().items()
        }
        return found | {f"input:{k}": to_torch(x) for k, x in enumerate(given)}

    def replayed(self, inputs: Any, pick: Callable[[Any], list[Any]], train: bool) -> Graph:
        """The recorded program in float64, run on these inputs and on the module's parameters.

        Raises:
            PortError: it does not run on them, or was recorded without this mode.
        """
        stored = self._mode(train).wide
        graph = stored.run(self._leaves(split_inputs(inputs)[1]))
        out, values = _outputs(stored, graph)
        picked = pick(out)
        places = [values.get(id(t)) for t in picked]
        if any(p is None for p in places):
            raise PortError(
                "output= is a function that computes, and a recording holds what the model "
                "returned: give it where the model is recorded"
            )
        return replace(graph, outputs=tuple(p for p in places if p is not None))

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> Any:
        """What the recorded program returns in its own types."""
        mode = self._mode(self.training)
        if mode.own is None:
            raise RuntimeError(mode.error or "it does not run in its own types")
        given = (
            dict(zip(self.stored_inputs, args))
            if isinstance(self.stored_inputs, dict) and args
            else kwargs
        )
        tensors = list(given.values()) if given else list(args)
        return _outputs(mode.own, mode.own.run(self._own_leaves(mode.own, tensors)))[0]

    def _own_leaves(
        self, program: StoredGraph, tensors: list[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Parameters and inputs in the types of a program that runs in its own."""
        kinds = dict(zip(program.graph.source, program.kinds))
        leaves = {f"param:{n}": t.detach() for n, t in self._tensors().items()}
        leaves |= {f"input:{k}": t for k, t in enumerate(tensors)}
        return {s: t.to(kinds[s][0]) for s, t in leaves.items() if s in kinds}

    def as_it_ran(self, train: bool) -> Any:
        """What the model returned where it was recorded; None if its parameters are others now."""
        mode = self._mode(train)
        now = self._tensors().values()
        if not all(torch.equal(a, b) for a, b in zip(now, self._stored_tensors)):
            return None
        if mode.error:
            raise RuntimeError(mode.error)
        return _structure(mode.wide.names, mode.ran)


def _outputs(stored: StoredGraph, graph: Graph) -> tuple[Any, dict[int, int]]:
    """What the program returns, by its names, and which value each tensor is."""
    tensors = [graph.values[o].detach() for o in graph.outputs]
    places = {id(t): o for t, o in zip(tensors, graph.outputs)}
    return _structure(stored.names, tensors), places


def _structure(names: Any, tensors: list[torch.Tensor]) -> Any:
    if list(names) == [""]:
        return tensors[0]
    return dict(zip(names, tensors))


def _tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    if array.dtype.name.startswith("float8"):
        return torch.from_numpy(array.view(np.uint8).copy()).view(getattr(torch, array.dtype.name))
    return torch.from_numpy(array.copy())


def _submodule(root: torch.nn.Module, name: str, kind: str, layer: str) -> None:
    """A module of a class of this name, which holds parameters and is never called."""
    made = type(kind, (_BASES[layer],), {"__init__": torch.nn.Module.__init__})
    parent, _, last = name.rpartition(".")
    root.get_submodule(parent).add_module(last, made())


def _register(
    root: torch.nn.Module, name: str, tensor: torch.Tensor, trained: bool, grad: bool, saved: bool
) -> None:
    parent, _, last = name.rpartition(".")
    module = root.get_submodule(parent)
    if trained:
        module.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=bool(grad)))
    else:
        module.register_buffer(last, tensor, persistent=bool(saved))


def _alias(root: torch.nn.Module, name: str, other: str) -> None:
    parent, _, last = other.rpartition(".")
    tensor = getattr(root.get_submodule(parent), last)
    parent, _, last = name.rpartition(".")
    module = root.get_submodule(parent)
    if isinstance(tensor, torch.nn.Parameter):
        module.register_parameter(last, tensor)
    else:
        module.register_buffer(last, tensor)
