"""Trace a JAX port in float64 and in its own types, and evaluate what was traced.

One recorder serves Flax NNX, Linen, Equinox, Haiku and plain functions, because it needs only a
pure function of (parameters, inputs).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from twinvit.port.record.jax_integers import known_integers
from twinvit.port.record.jax_internals import Conversion, conversions, draws, present
from twinvit.port.record.jax_interpreter import Interpreter
from twinvit.port.record.jax_outputs import Outputs, flattened
from twinvit.port.record.jax_own_types import Marks
from twinvit.port.record.jax_place import Place, frames
from twinvit.port.record.jax_settings import float64_on_cpu, on_cpu
from twinvit.port.record.jax_types import extended, is_float, is_narrow, wide


def _wide_tracing(
    narrowings: dict[Place, None], round_at: Place | None
) -> contextlib.AbstractContextManager[None]:
    """Trace with conversions to narrow types replaced by float64. One at `round_at` is kept, and
    its result widened."""

    def instead(original: Conversion) -> Conversion:
        def convert(operand: Any, new_dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
            narrow = new_dtype is not None and not extended(new_dtype) and is_narrow(new_dtype)
            if not narrow or draws():
                return original(operand, new_dtype, *args, **kwargs)
            if is_float(operand) and isinstance(operand, jax.core.Tracer):
                _, inner = frames(present())
                place = (inner, np.dtype(new_dtype).name)
                narrowings[place] = None
                if place == round_at:
                    operand = original(operand, new_dtype, *args, **kwargs)
            return original(operand, wide(new_dtype), *args, **kwargs)

        return convert

    return conversions(instead, _widened, ("wide", round_at))


def _widened(operands: Sequence[Any], dtype: Any) -> Any:
    """The type of numbers that are made of no floating-point number, as `arange` and `eye` make
    them: float64, too, as of another type than the rest they would be refused."""
    narrow = dtype is not None and not extended(dtype) and is_narrow(dtype)
    return wide(dtype) if narrow and not any(map(is_float, operands)) and not draws() else dtype


@dataclass
class Traced:
    """A port's jaxpr with the order of its outputs.

    Attributes:
        labels: names of each output leaf.
        narrowings: places that ask for a narrow type.
        marks: the types of its variables as the port runs; None where they are not known.
        own: the jaxpr of the port as it runs; None where it was not traced.
    """

    closed: Any
    labels: Sequence[str]
    narrowings: dict[Place, None]
    marks: Marks | None = None
    own: Any = None


def trace_as_it_runs(
    fn: Callable[..., Any], leaves: Sequence[Any], inputs: Sequence[Any]
) -> Traced:
    """The jaxpr of `fn(leaves, *inputs)` without 64-bit types, as JAX runs it."""
    with on_cpu(x64=False):
        closed, outputs = _jaxpr(flattened(fn), leaves, inputs)
    return Traced(closed, outputs.names, {})


def _jaxpr(
    flat: Callable[..., Outputs], leaves: Sequence[Any], inputs: Sequence[Any]
) -> tuple[Any, Outputs]:
    """The jaxpr of a call, and its outputs' names; integers that depend on no input are computed
    on the way if it asks for their values, as `int(positions.max())` does in a port that is run
    without `jax.jit`."""
    traced = jax.make_jaxpr(flat, return_shape=True)
    try:
        return traced(list(leaves), *inputs)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        with known_integers():
            return traced(list(leaves), *inputs)


def trace(
    fn: Callable[..., Any],
    leaves: Sequence[Any],
    inputs: Sequence[Any],
    round_at: Place | None = None,
) -> Traced:
    """The jaxpr of `fn(leaves, *inputs)`, traced with float64 arguments and no rounding of
    constants; `round_at` is that of the interpreter that is to evaluate it."""
    narrowings: dict[Place, None] = {}
    flat = flattened(fn)
    with float64_on_cpu():
        try:
            with _wide_tracing(narrowings, round_at):
                closed, outputs = _jaxpr(flat, leaves, inputs)
        except Exception:
            # a type check in the port may insist: narrowings are then ignored while evaluating
            narrowings.clear()
            closed, outputs = _jaxpr(flat, leaves, inputs)
    return Traced(closed, outputs.names, narrowings)


def evaluate(
    traced: Traced, args: Sequence[Any], ids: Sequence[int], interpreter: Interpreter
) -> tuple[list[Any], list[int]]:
    """Evaluate a traced port on float64 arguments; integers are of the types of the trace."""
    given = [_as_traced(x, var) for x, var in zip(args, traced.closed.jaxpr.invars)]
    interpreter.marks = traced.marks
    with float64_on_cpu():
        return interpreter.closed(traced.closed, given, list(ids))


def _as_traced(value: Any, var: Any) -> Any:
    dtype = getattr(value, "dtype", None)
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and var.aval.dtype != dtype:
        return value.astype(var.aval.dtype)
    return value
