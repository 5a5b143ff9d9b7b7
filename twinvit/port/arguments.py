"""Checks of `explain`'s arguments before any long work: one sentence for each mistake."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twinvit.port.errors import PortError
from twinvit.port.given_inputs import checked_inputs
from twinvit.port.given_jax import checked_jax
from twinvit.port.given_models import check_not_exchanged
from twinvit.port.given_torch import checked_torch

WHAT = ("forward", "grad", "train")


@dataclass
class Arguments:
    """What `explain` was given, as it goes on with it.

    Attributes:
        torch_model: the module without wrappers, or the function.
        jax_model: the port as `models.pure` takes it.
        inputs: a mapping or a tuple of arrays.
        jax_inputs: the same for the port; None where it takes those.
        what: of "forward", "grad", "train"; at least one.
        notes: what was done to the arguments, in words.
    """

    torch_model: Any
    jax_model: Any
    inputs: Any
    jax_inputs: Any
    what: tuple[str, ...]
    notes: list[str] = field(default_factory=list)


def checked(
    torch_model: Any,
    jax_model: Any,
    inputs: Any,
    *,
    jax_inputs: Any = None,
    weights: Any = "as_is",
    what: Any = ("forward",),
    reference: Any = "torch",
) -> Arguments:
    """The arguments of `explain` without what does not matter to it.

    Raises:
        PortError: one of them cannot be what is meant; one sentence that says why.
    """
    kinds = _what(what)
    _one_of("reference", reference, ("torch", "jax"))
    _weights(weights)
    notes: list[str] = []
    check_not_exchanged(torch_model, jax_model)
    torch_model = checked_torch(torch_model, kinds, notes)
    jax_model = checked_jax(jax_model, notes)
    inputs = checked_inputs("inputs", inputs, torch_model, notes)
    if jax_inputs is not None:
        jax_inputs = checked_inputs("jax_inputs", jax_inputs, None, notes)
    return Arguments(torch_model, jax_model, inputs, jax_inputs, kinds, notes)


def hint(message: str, inputs: Any) -> str:
    """What to do about a refusal of the inputs, where their types or shapes say so; else ""."""
    arrays = list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)
    for k, x in enumerate(arrays):
        dtype = str(getattr(x, "dtype", "")).removeprefix("torch.")
        if len(getattr(x, "shape", ())) < 3 or not dtype.startswith(("uint", "int")):
            continue
        if any(word in message for word in ("type", "Float", "Double", "Byte", "Char")):
            return (
                f"; input {k} holds whole numbers ({dtype}) and the model computes with "
                'floating-point ones: convert images first, e.g. x.astype("float32") / 255'
            )
    return ""


def _what(what: Any) -> tuple[str, ...]:
    kinds = (what,) if isinstance(what, str) else what
    if not isinstance(kinds, Sequence | set | frozenset):
        raise PortError(f'what={what!r} is none of "forward", "grad", "train", nor several of them')
    for kind in kinds:
        _one_of("what", kind, WHAT)
    if not kinds:
        raise PortError('what= is empty; give some of "forward", "grad", "train"')
    return tuple(kinds)


def _one_of(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        listed = ", ".join(f'"{k}"' for k in known)
        raise PortError(f"{name}={value!r} is none of {listed}{_meant(value, known)}")


def _weights(weights: Any) -> None:
    if not isinstance(weights, str) or weights in ("as_is", "transfer"):
        return
    if not os.path.exists(weights):
        raise PortError(
            f'weights={weights!r} is neither "as_is" nor "transfer", and there is no file of that '
            f"name{_meant(weights, ('as_is', 'transfer'))}"
        )


def _meant(value: Any, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(value).lower(), known, n=1, cutoff=0.5)
    return f'; did you mean "{near[0]}"?' if near else ""
