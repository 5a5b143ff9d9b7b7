"""PyTorch models and inputs as they are recorded: copies, in float64 or in their own dtypes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
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
