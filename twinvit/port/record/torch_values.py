"""PyTorch models and inputs as they are recorded: copies, in float64 or in their own dtypes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from twinvit.port.errors import PortError
from twinvit.port.record.given import float_type, split_inputs

WIDE = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}
"""Narrow types, and those that their values are computed in."""


def widened(model: Any) -> Any:
    """A copy of a module in float64 on the CPU; a function is returned as it is."""
    if not isinstance(model, torch.nn.Module):
        return model
    # Parameters are widened as they are copied: a copy in both types is never held.
    wide = {id(p): _wide_parameter(p) for p in model.parameters() if _is_plain(p)}
    return copied(model, wide).double()


def _is_plain(p: torch.nn.Parameter) -> bool:
    """True for a parameter of which nothing but its numbers is copied."""
    plain = type(p) is torch.nn.Parameter and p.layout == torch.strided and not vars(p)
    return plain and p.is_floating_point() and p.dtype in WIDE


def _wide_parameter(p: torch.nn.Parameter) -> torch.nn.Parameter:
    return torch.nn.Parameter(p.detach().cpu().double(), requires_grad=p.requires_grad)


def copied(
    model: torch.nn.Module, instead: Mapping[int, torch.nn.Parameter] | None = None
) -> torch.nn.Module:
    """A copy of a module on the CPU, with other parameters in place of those of these ids. Raises
    PortError if it cannot be copied."""
    computed: dict[int, Any] = dict(instead or {})
    # And attributes with a gradient (weight norm's), which refuse.
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


class WideTensors(Mapping[str, np.ndarray]):
    """Tensors by name, each in float64 when it is asked for, and not kept."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> np.ndarray:
        found: np.ndarray = self._tensors[name].detach().cpu().double().numpy()
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __len__(self) -> int:
        return len(self._tensors)


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


def to_numpy(t: torch.Tensor) -> np.ndarray:
    """A tensor's elements as a contiguous array."""
    return np.ascontiguousarray(t.detach().numpy())


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
