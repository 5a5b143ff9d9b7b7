"""What of a PyTorch program depends on the dtypes that it is given.

The model is run once as it is and recorded. Its operations and their values are compared with
those of the recording in float64: `finfo(x.dtype).min` or `nn.RMSNorm(eps=None)` give other values
there, and those of the program that runs are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.weak import WeakIdKeyDictionary

from twinvit.port.ops import UNCOUNTED
from twinvit.port.record.torch_calls import aten_name

aten = torch.ops.aten
_Made = tuple[int | str, int]
_NUMBERS = (float, int, complex)  # and no types, devices or generators
_READ = 0.02  # bfloat16 rounds by 0.004; what depends on the type is seldom as near
_CONSTANT = 4096  # tensors of so many elements are compared element by element


class Apart(Exception):
    """The program in float64 has other operations; the message says which, and where."""


@dataclass(frozen=True)
class Heard:
    """One operation as it was called: its name, its numbers (arguments that are no tensors), the
    constants among its tensors, and the line."""

    name: str
    numbers: tuple[Any, ...]
    constants: tuple[torch.Tensor, ...]
    where: str


def heard(func: Any, args: Any, kwargs: dict[str, Any], where: str) -> Heard | None:
    """An operation to compare; None for one that only changes the width of a floating-point type,
    or none at all."""
    if aten_name(func) in UNCOUNTED or _converts(func, args, kwargs):
        return None
    flat = tree_flatten((args, {k: v for k, v in kwargs.items() if k != "dtype"}))[0]
    constants = []
    if func.overloadpacket is aten.lift_fresh and args[0].numel() <= _CONSTANT:
        constants.append(args[0].detach().clone())
    return Heard(
        func._schema.name, tuple(None if _tensor(x) else x for x in flat), tuple(constants), where
    )


def differing(wide: Sequence[Heard], own: Sequence[Heard]) -> dict[int, Heard]:
    """Of the operations in float64, by their place in order, those with other values as the model
    runs. Raises Apart where the operations are others."""
    found = {}
    for k, (a, b) in enumerate(zip(wide, own)):
        if a.name != b.name or len(a.numbers) != len(b.numbers):
            raise Apart(f"{_short(b)} as it runs, {_short(a)} in float64, {b.where}")
        if not _same_numbers(a, b):
            # Sizes are those of the inputs, also of other inputs than these.
            pairs = zip(a.numbers, b.numbers)
            found[k] = replace(
                b, numbers=tuple(None if _same_number(x, y) else y for x, y in pairs)
            )
    if len(wide) != len(own):
        longer = wide if len(wide) > len(own) else own
        rest = longer[min(len(wide), len(own))]
        raise Apart(f"{_short(rest)} in one of them alone, {rest.where}")
    return found


def _same_numbers(a: Heard, b: Heard) -> bool:
    return all(map(_same_number, a.numbers, b.numbers)) and all(
        x.shape == y.shape and torch.allclose(x.to(y.dtype), y, rtol=0, atol=0, equal_nan=True)
        for x, y in zip(a.constants, b.constants)
    )


def _same_number(x: Any, y: Any) -> bool:
    if isinstance(x, float) and isinstance(y, float):
        return _near(x, y) or x != x and y != y
    return not isinstance(x, _NUMBERS) or x == y


def _near(x: float, y: float) -> bool:
    """True if two numbers may be one, which the model has read from its values (`.item()`) and
    which rounding changed."""
    size = max(abs(x), abs(y))
    return x == y or (math.isfinite(size) and abs(x - y) <= _READ * size)


def with_numbers(args: Any, kwargs: dict[str, Any], own: Heard) -> tuple[Any, dict[str, Any]]:
    """An operation's arguments with the numbers of the program that runs, None for one that is
    kept, and with its constants."""
    dtype = {"dtype": kwargs["dtype"]} if "dtype" in kwargs else {}
    flat, spec = tree_flatten((args, {k: v for k, v in kwargs.items() if k != "dtype"}))
    constants = iter(own.constants)
    new = []
    for old, number in zip(flat, own.numbers):
        if number is not None:
            new.append(number)
        elif own.constants and _tensor(old):
            new.append(next(constants).to(old.dtype))
        else:
            new.append(old)
    args, kwargs = tree_unflatten(new, spec)
    return args, kwargs | dtype


@dataclass
class Conversion:
    """A value that a model converts to another floating-point type.

    Attributes:
        made: where the value comes from, as in `Listener.held`.
        before, dtype: the two types, "bfloat16".
        where: the line.
        users: places in `Listener.operations` of those that take the result.
    """

    made: _Made
    before: str
    dtype: str
    where: str
    users: list[int] = field(default_factory=list)


class Listener(TorchDispatchMode):
    """Writes down what a model's operations are called with, and the types of what they make.

    Attributes:
        operations: what was called, in order.
        conversions: from one floating-point type to another, in order.
        held: the types that a value is held in, by the place of its operation in `operations` and
            its own among the results, or by its name ("param:NAME", "input:K").
    """

    def __init__(self, where: Callable[[], str]) -> None:
        super().__init__()
        self.where = where
        self.operations: list[Heard] = []
        self.conversions: list[Conversion] = []
        self.held: dict[_Made, set[str]] = {}
        self._made: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._converted: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def give(self, name: str, tensor: torch.Tensor) -> None:
        """A tensor that the model has or is called with."""
        self._made[tensor] = (name, 0)
        self._hold((name, 0), tensor)

    def _hold(self, made: _Made, tensor: torch.Tensor) -> None:
        if tensor.is_floating_point() or tensor.is_complex():
            self.held.setdefault(made, set()).add(_named(tensor.dtype))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        where = self.where()
        operation = heard(func, args, kwargs or {}, where)
        if operation is not None:
            self.operations.append(operation)
            for x in filter(_tensor, tree_flatten((args, kwargs))[0]):
                if x in self._converted:
                    self._converted[x].users.append(len(self.operations) - 1)
        out = func(*args, **(kwargs or {}))
        if operation is None:
            self._same(func, args, out, where)
            return out
        for k, tensor in enumerate(tree_flatten(out)[0]):
            if _tensor(tensor):
                self._made[tensor] = (len(self.operations) - 1, k)
                self._hold(self._made[tensor], tensor)
                self._converted.pop(tensor, None)
        return out

    def _same(self, func: Any, args: Any, out: Any, where: str) -> None:
        """Follow a value through an operation that is none: a conversion, a detached tensor."""
        if not (args and _tensor(args[0]) and _tensor(out)) or args[0] not in self._made:
            return
        before, made = args[0], self._made[args[0]]
        self._made[out] = made
        self._hold(made, out)
        if before in self._converted:
            self._converted[out] = self._converted[before]
        if _converts(func, args, {"dtype": out.dtype}) and out.dtype != before.dtype:
            conversion = Conversion(made, _named(before.dtype), _named(out.dtype), where)
            self.conversions.append(conversion)
            self._converted[out] = conversion


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tensor(x: Any) -> bool:
    return isinstance(x, torch.Tensor)


def _converts(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """True for a copy of floating-point or complex numbers to another width, or the same."""
    if func.overloadpacket is not aten._to_copy:
        return False
    before, after = args[0].dtype, kwargs.get("dtype") or args[0].dtype
    if before.is_floating_point and after.is_floating_point:
        return True
    return before.is_complex and after.is_complex


def _short(operation: Heard) -> str:
    return operation.name.split("::")[-1]
