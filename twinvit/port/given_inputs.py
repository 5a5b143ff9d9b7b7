"""The inputs that `explain` is given: arrays, lists and numbers, by position or by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import torch

from twinvit.port.errors import PortError
from twinvit.port.record.torch_values import to_torch


def checked_inputs(argument: str, inputs: Any, model: Any, notes: list[str]) -> Any:
    """Inputs as a mapping or a tuple of arrays.

    Args:
        argument: "inputs" or "jax_inputs", for messages.
        inputs: what was given.
        model: the PyTorch model that takes them by its own signature; None where nothing is known.
        notes: called with what was done to them.

    Raises:
        PortError: one is no array, or there is nothing to compare.
    """
    if inputs is None or isinstance(inputs, str | bytes):
        what = "None" if inputs is None else f"a {type(inputs).__name__}"
        raise PortError(f"{argument}= is {what}; give a tuple of arrays")
    if isinstance(inputs, Mapping):
        named = {k: _array(f"{argument}[{k!r}]", x, notes) for k, x in inputs.items()}
        _check_some(argument, list(named.values()), model, {k: None for k in named})
        return named
    if hasattr(inputs, "shape") or not isinstance(inputs, Iterable):
        given: tuple[Any, ...] = (inputs,)
    else:
        given = tuple(inputs)
        if isinstance(inputs, list) and not _takes(model, len(given)) and _takes(model, 1):
            if given and all(_of_numbers(x) for x in given):  # an array written as a list
                given = (list(given),)
    arrays = tuple(_array(f"{argument}[{i}]", x, notes) for i, x in enumerate(given))
    if argument == "jax_inputs":
        arrays = tuple(to_torch(x).numpy() if isinstance(x, torch.Tensor) else x for x in arrays)
    _check_some(argument, arrays, model, arrays)
    return arrays


def _array(name: str, x: Any, notes: list[str]) -> Any:
    """An input that is an array: a tensor on the CPU, or a NumPy array."""
    if isinstance(x, torch.Tensor):
        if x.is_meta:
            raise PortError(f"{name} is on the meta device and holds no numbers")
        if x.device.type != "cpu":
            notes.append(f"{name} was copied from {x.device} to the CPU")
        return x.detach().cpu()
    if isinstance(x, jax.Array):
        return x
    if x is None or isinstance(x, str | bytes | Mapping):
        kind = "None" if x is None else f"a {type(x).__name__}"
        raise PortError(
            f"{name} is {kind}, and models are compared on arrays: give those only, and close "
            "over everything else (lambda x: model(x, mask=None))"
        )
    held = list(x) if isinstance(x, list | tuple) else []
    try:
        array = np.stack([_numpy(v) for v in held]) if _arrays(held) else np.asarray(x)
    except (ValueError, TypeError) as error:
        raise PortError(
            f"{name} is a {type(x).__name__} of {len(held)} values that are no one array "
            f"({_first_line(error)}); give arrays, and models that take them one by one"
        ) from error
    if array.dtype.kind in "OUSMm":
        raise PortError(f"{name} holds {array.dtype} values; give an array of numbers")
    if _arrays(held):
        notes.append(f"{name}, {len(held)} arrays, was given as one of shape {array.shape}")
    return array


def _arrays(values: list[Any]) -> bool:
    return any(hasattr(v, "shape") for v in values)


def _numpy(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _of_numbers(x: Any) -> bool:
    """True for a number, and for lists of numbers."""
    if isinstance(x, list | tuple):
        return all(_of_numbers(v) for v in x)
    return isinstance(x, bool | int | float | complex)


def _check_some(argument: str, arrays: Any, model: Any, given: Any) -> None:
    """Raises PortError where no input holds a number, though the model takes some."""
    if not arrays and not _takes(model, 0):
        takes = ", ".join(_parameters(model))
        raise PortError(
            f"{argument}= is empty, and the PyTorch model takes {takes or 'inputs'}; give a tuple "
            "of arrays"
        )
    shapes = [tuple(x.shape) for x in arrays]
    if shapes and all(0 in shape for shape in shapes):
        raise PortError(
            f"{argument}= holds no numbers (shapes {', '.join(map(str, shapes))}); give arrays of "
            "at least one"
        )


def _takes(model: Any, count: int) -> bool:
    """Whether the model can be called with so many inputs by position; True where it hides it."""
    signature = _signature(model)
    if signature is None:
        return True
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def _parameters(model: Any) -> list[str]:
    signature = _signature(model)
    if signature is None:
        return []
    return [n for n, p in signature.parameters.items() if p.default is p.empty]


def _signature(model: Any) -> inspect.Signature | None:
    if model is None:
        return None
    try:
        return inspect.signature(model.forward if isinstance(model, torch.nn.Module) else model)
    except (TypeError, ValueError):
        return None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
