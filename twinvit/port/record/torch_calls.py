"""What is read from a call of an ATen operation: its name, its functional form, its dtypes."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_flatten

from twinvit.port.ops import DRAWN_IN_PLACE, recorded_as

aten = torch.ops.aten


def restride(base: torch.Tensor, size: Any, stride: Any, offset: int) -> torch.Tensor:
    return base.contiguous().as_strided(size, stride, offset)


def scatter(
    base: torch.Tensor, part: torch.Tensor, size: Any, stride: Any, offset: int
) -> torch.Tensor:
    return torch.as_strided_scatter(base.contiguous(), part, size, stride, offset)


def functional(func: Any) -> Any:
    """The functional form of an operation in place; None where there is none."""
    name = func._schema.name.split("::")[1]
    if name.endswith("_") and name not in DRAWN_IN_PLACE:
        packet = getattr(aten, {"zero_": "zeros_like", "copy_": "copy"}.get(name, name[:-1]), None)
        if packet is not None:
            for overload in (func._overloadname, "default", "int"):
                if overload in packet.overloads():
                    return getattr(packet, overload)
    return None


def copy_into(value: torch.Tensor, shape: list[int]) -> torch.Tensor:
    return value.expand(shape).clone()


def makes_from_nothing(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """True for a factory call that leaves the type to PyTorch's default."""
    return (
        kwargs.get("dtype") is None
        and any(a.name == "dtype" for a in func._schema.arguments)
        and not any(isinstance(x, torch.Tensor) for x in tree_flatten((args, kwargs))[0])
    )


def copies_only(args: Any, kwargs: dict[str, Any]) -> bool:
    return (
        isinstance(args[0], torch.Tensor)
        and kwargs.get("dtype") in (None, args[0].dtype)
        and args[0].is_floating_point()
    )


def aten_name(func: Any) -> str:
    """The name of an ATen operation, "add"; of another library's with the library, "mine::add"."""
    return func._schema.name.removeprefix("aten::")


def op_name(func: Any) -> str:
    """The name that an operation is recorded by."""
    name = func._schema.name.split("::")[1]
    return recorded_as(name)


def replayable(func: Any) -> Any:
    """The operation as it is run again: a substituted value may have other strides than the
    recorded one."""
    if func.overloadpacket in (aten.view, aten._unsafe_view) and func._overloadname != "dtype":
        return aten.reshape.default
    return func


def takes_the_default(args: Any, kwargs: dict[str, Any], out: Any) -> bool:
    """True for an operation that makes floats of integers (a division, a root): of the default
    type, which is another one when it is run again."""
    if not isinstance(out, torch.Tensor) or not out.is_floating_point() or kwargs.get("dtype"):
        return False
    tensors = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, torch.Tensor)]
    return bool(tensors) and not any(t.is_floating_point() or t.is_complex() for t in tensors)


def by_wide_default(op: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation run with float64 as the default type, as it was recorded."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return op(*args, **kwargs)
    finally:
        torch.set_default_dtype(default)
