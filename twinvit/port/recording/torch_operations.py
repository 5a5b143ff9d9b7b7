"""Operations of a recorded PyTorch program and their arguments, as names and data.

An operation is an overload of ATen, which writes to nothing it is given, or one of the recorder's
own. What is neither cannot be written down, and is recorded by its value.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from twinvit.port.errors import OtherNumbers, PortError
from twinvit.port.record.graph import Ref, flat_tensors
from twinvit.port.record.torch_calls import by_wide_default, copy_into, restride, scatter
from twinvit.port.record.torch_gradients import CustomBackward, written_over
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.recording.alike import alike


def custom_backward(out: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
    """What a torch.autograd.Function returned; its own backward is not recorded.

    Raises:
        PortError: a gradient would pass through it.
    """
    if out.requires_grad or any(t.requires_grad for t in given):
        raise PortError(
            "the PyTorch model was recorded with a torch.autograd.Function, whose backward is "
            "not recorded, so that no gradient passes through it; compare gradients by explain "
            "on the models themselves"
        )
    return out


_OWN: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (restride, scatter, copy_into, written_over, custom_backward)
}
_ARGUMENTS = frozenset("Tensor number int float complex bool str Device Generator".split())
_NAME = re.compile(r"[A-Za-z0-9_]{1,80}")


class Unwritable(Exception):
    """What has no name and no codec; the message says what."""


def allowed(op: Any) -> bool:
    """True for an overload of ATen that takes and returns numbers and tensors alone, and writes to
    none of them."""
    if not isinstance(op, torch._ops.OpOverload) or op.namespace != "aten":
        return False
    kinds = set()
    for argument in op._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            return False
        kinds.add(str(argument.type).replace("Optional[", "").replace("List[", "").rstrip("]"))
    if not kinds <= _ARGUMENTS or ("str" in kinds and "Tensor" not in kinds):  # a file's name
        return False
    return all("Tensor" in str(r.type) for r in op._schema.returns) and bool(op._schema.returns)


def operation_name(op: Any) -> str:
    """The name that an operation is written by. Raises Unwritable."""
    if isinstance(op, functools.partial) and op.func is by_wide_default and not op.keywords:
        return f"wide {operation_name(*op.args)}"
    if isinstance(op, CustomBackward) and op.results == 1:
        return f"own {custom_backward.__name__}"
    if op in _OWN.values():
        return f"own {op.__name__}"
    if not allowed(op):
        raise Unwritable(str(getattr(op, "_schema", op)).split("(")[0])
    return f"{op._schema.name.removeprefix('aten::')} {op._overloadname}"


def named_operation(name: str) -> Callable[..., Any]:
    """The operation of a name. Raises PortError for one that is not of the list."""
    if name.startswith("wide "):
        return functools.partial(by_wide_default, named_operation(name.removeprefix("wide ")))
    packet, _, overload = name.partition(" ")
    if packet == "own" and overload in _OWN:
        return _OWN[overload]
    op: Any = None
    if _NAME.fullmatch(packet) and _NAME.fullmatch(overload):
        op = getattr(getattr(torch.ops.aten, packet, None), overload, None)
    if op is None or not allowed(op):
        raise PortError(f"{name!r} is no operation of this PyTorch ({torch.__version__})")
    found: Callable[..., Any] = op
    return found


def encoded(x: Any) -> Any:
    """An argument as JSON. Raises Unwritable."""
    if x is None or isinstance(x, bool | str) or type(x) is int:
        return x
    if isinstance(x, Ref):
        return {"r": x.id}
    if isinstance(x, np.integer):
        return int(x)
    if isinstance(x, float):
        return {"f": float(x).hex()}
    if isinstance(x, complex):
        return {"c": [x.real.hex(), x.imag.hex()]}
    if isinstance(x, tuple):
        return {"t": [encoded(v) for v in x]}
    if isinstance(x, list):
        return [encoded(v) for v in x]
    if isinstance(x, torch.dtype):
        return {"d": str(x).removeprefix("torch.")}
    if isinstance(x, torch.memory_format):
        return {"m": str(x).removeprefix("torch.")}
    if isinstance(x, torch.layout) and x is torch.strided:
        return {"l": "strided"}
    if isinstance(x, torch.device) and x.type == "cpu":
        return {"v": "cpu"}
    raise Unwritable(f"an argument of type {type(x).__name__}")


def decoded(x: Any) -> Any:
    """An argument of its JSON. Raises ValueError for what is none."""
    if x is None or isinstance(x, bool | int | str):
        return x
    if isinstance(x, list):
        return [decoded(v) for v in x]
    if not isinstance(x, dict) or len(x) != 1:
        raise ValueError(x)
    ((tag, value),) = x.items()
    if tag == "r" and type(value) is int:
        return Ref(value)
    if tag == "f":
        return float.fromhex(value)
    if tag == "c":
        return complex(*map(float.fromhex, value))
    if tag == "t":
        return tuple(decoded(v) for v in value)
    if tag == "d":
        return dtype_of(value)
    if tag == "m" and isinstance(getattr(torch, value, None), torch.memory_format):
        return getattr(torch, value)
    if tag == "l":
        return torch.strided
    if tag == "v":
        return torch.device("cpu")
    raise ValueError(x)


def dtype_of(name: Any) -> torch.dtype:
    """A type of its name, "float32". Raises ValueError."""
    found = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(found, torch.dtype):
        raise ValueError(name)
    return found


class ByValue:
    """An operation that was recorded by its value: it returns its results for the operands that it
    was recorded with, and no others."""

    def __init__(self, name: str, operands: Sequence[Any], results: Sequence[Any]) -> None:
        self.name = name
        self.operands = [x for x in operands if isinstance(x, torch.Tensor)]
        self.results = list(results)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = [t for t in flat_tensors([list(args), list(kwargs.values())]) if t is not None]
        if any(t.requires_grad for t in given):
            raise PortError(
                f"{self.name} was recorded by its value, so that no gradient passes through it"
            )
        if len(given) != len(self.operands) or not all(map(_alike, given, self.operands)):
            raise OtherNumbers(
                f"{self.name} was recorded by its value, for the numbers that were recorded alone"
            )
        return self.results[0] if len(self.results) == 1 else tuple(self.results)


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype:
        return False
    return alike(*(to_numpy(t.double() if t.is_floating_point() else t) for t in (a, b)))
