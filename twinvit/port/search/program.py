"""A part of the port's program in the reference's place: run in float64, with its derivative."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import torch

from twinvit.port.record.graph import Edit, Node, Ref, _map_refs, flat_tensors
from twinvit.port.record.jax_equations import bind_params
from twinvit.port.record.jax_interpreter import Interpreter
from twinvit.port.record.jax_rules import RULES
from twinvit.port.record.jax_settings import float64_on_cpu
from twinvit.port.record.jax_tape import Step, Tape
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.search.noise import NUDGE
from twinvit.port.search.region import Order, Region

STEPS = frozenset({"ceil", "floor", "is_finite", "rem", "round", "sign"})
"""Primitives whose results jump: rounding does not change them."""


@dataclass(frozen=True)
class Piece:
    """A part of the port's program, as a function of values of the reference.

    Attributes:
        steps: its equations, in order.
        inputs: the slots that it reads, and the order of axes that makes each of a value.
        constants: numbers that are written in it, by slot.
        out: the slot that it computes.
        order: the order of axes that makes the reference's value of it.
    """

    steps: tuple[Step, ...]
    inputs: tuple[tuple[int, Order], ...]
    constants: Mapping[int, np.ndarray]
    out: int
    order: Order

    def __call__(self, *values: torch.Tensor) -> torch.Tensor:
        """The result for values of the reference, in the order of `inputs`."""
        result: torch.Tensor = _Run.apply(self, *values)
        return result

    def run(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The same of arrays."""
        env: dict[int, Any] = dict(self.constants)
        for (slot, order), x in zip(self.inputs, arrays):
            env[slot] = order.apply(x)
        nudge = NUDGE.get()
        with float64_on_cpu(), np.errstate(all="ignore"):
            done = self._computed(env)
            if nudge is not None:  # each result is rounded; what is no number in between stays
                done = self._computed(env, partial(_moved, nudge), done)
        return self.order.apply(np.asarray(done[self.out]))

    def _computed(
        self,
        given: Mapping[int, Any],
        moved: Callable[[Step, Any], Any] | None = None,
        before: Mapping[int, Any] | None = None,
    ) -> dict[int, Any]:
        """All slots. With `moved` each result goes through it, but for those that it returns None
        for: these are as they were `before`."""
        env, interpreter = dict(given), Interpreter()
        for step in self.steps:
            results = _results(interpreter, step, [env[i] for i in step.operands])
            for out, result in zip(step.outs, results):
                other = result if moved is None else moved(step, result)
                env[out] = before[out] if other is None and before is not None else other
        return env

    def gradients(self, arrays: Sequence[np.ndarray], cotangent: np.ndarray) -> list[Any]:
        """The cotangents of the floating-point values; None for the others."""
        places = [k for k, x in enumerate(arrays) if x.dtype.kind == "f"]

        def function(*floats: Any) -> Any:
            env: dict[int, Any] = dict(self.constants)
            given = dict(zip(places, floats))
            for k, (slot, order) in enumerate(self.inputs):
                env[slot] = order.apply(given.get(k, arrays[k]))
            for step in self.steps:
                results = _traced(step, [env[i] for i in step.operands])
                env.update(zip(step.outs, results))
            return self.order.apply(env[self.out])

        with float64_on_cpu():
            _, pull = jax.vjp(function, *(arrays[k] for k in places))
            found = dict(zip(places, pull(cotangent)))
        return [np.array(found[k]) if k in found else None for k in range(len(arrays))]


class _Run(torch.autograd.Function):
    """A piece under autograd."""

    @staticmethod
    def forward(ctx: Any, piece: Piece, *values: torch.Tensor) -> torch.Tensor:
        ctx.piece, ctx.arrays = piece, [to_numpy(v) for v in values]
        return torch.from_numpy(np.array(piece.run(ctx.arrays), order="C"))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        found = ctx.piece.gradients(ctx.arrays, to_numpy(grads[0]))
        return None, *(None if g is None else torch.from_numpy(g) for g in found)


def _moved(nudge: Callable[..., torch.Tensor], step: Step, result: Any) -> Any:
    """A result with its rounding; None for one that rounding does not change."""
    array = np.asarray(result)
    if array.dtype != np.float64 or step.name in STEPS:
        return None
    if step.layout:
        return result
    return nudge(torch.from_numpy(np.array(array, order="C"))).numpy()


def _results(interpreter: Interpreter, step: Step, values: list[Any]) -> list[Any]:
    if step.eqn is None:
        return [values[0][step.part]]
    values = [_typed(v, x) for v, x in zip(values, step.eqn.invars)]
    out = interpreter._evaluate(step.eqn, step.name, step.eqn.params, values, "")
    outs = list(out) if step.eqn.primitive.multiple_results else [out]
    return [interpreter.held(o) for o in outs]


def _typed(value: Any, var: Any) -> Any:
    """Integers in the type that the equation was traced with; the reference's are of 64
    bits."""
    dtype = getattr(value, "dtype", None)
    traced = var.aval.dtype
    kinds = getattr(dtype, "kind", ""), getattr(traced, "kind", "")
    if kinds[0] in "iu" and kinds[1] in "iu" and all(kinds) and dtype != traced:
        return np.asarray(value).astype(traced)
    return value


def _traced(step: Step, values: list[Any]) -> list[Any]:
    """One equation under JAX's derivatives."""
    if step.eqn is None:
        return [values[0][step.part]]
    interpreter = _Differentiated()
    values = [
        _typed(v, x) if isinstance(v, np.ndarray) else v for v, x in zip(values, step.eqn.invars)
    ]
    out = interpreter._evaluate(step.eqn, step.name, step.eqn.params, values, "")
    return list(out) if step.eqn.primitive.multiple_results else [out]


class _Differentiated(Interpreter):
    """The same equations on traced values."""

    def _compute(
        self, eqn: Any, name: str, params: dict[str, Any], values: list[Any], where: str
    ) -> Any:
        if name in RULES and any(isinstance(v, jax.core.Tracer) for v in values):
            subfuns, given = bind_params(eqn, params)  # the rules are of NumPy
            return eqn.primitive.bind(*subfuns, *values, **given)
        return super()._compute(eqn, name, params, values, where)


def piece_of(tape: Tape, region: Region, order: Order) -> Piece:
    """A region as a function of the reference's values, in the order of its inputs."""
    constants: dict[int, np.ndarray] = {}
    for slot in region.constants:
        value = tape.value(slot)
        assert value is not None  # a region has no others
        held = Interpreter()
        constants[slot] = held.literal(value) if tape.slots[slot].kind == "literal" else value
    return Piece(
        tuple(tape.steps[k] for k in region.steps),
        tuple((slot, order_) for slot, (_, order_) in region.inputs.items()),
        constants,
        region.out,
        order,
    )


def result_edit(node: Node, out: int, refs: Sequence[int], piece: Callable[..., Any]) -> Edit:
    """An operation with one of its results computed by a piece of these values. The result itself
    may be among them: then the operation is run first."""
    position = node.outs.index(out)
    alone = len([o for o in node.outs if o is not None]) == 1 and out not in refs
    own = () if alone else tuple(node.refs)
    reads = tuple(dict.fromkeys([*own, *(r for r in refs if r != out)]))

    def fn(*values: torch.Tensor) -> Any:
        known = dict(zip(reads, values))
        made: list[Any] = []
        if not alone:
            made = flat_tensors(_called(node, known))
            known[out] = made[position]
        new = piece(*(known[r] for r in refs))
        if len(node.outs) == 1:
            return new
        made[position] = new
        return tuple(made)

    return Edit(fn, reads)


def operand_edit(node: Node, operand: int, refs: Sequence[int], piece: Callable[..., Any]) -> Edit:
    """An operation that reads the result of a piece of these values instead of an operand."""
    reads = tuple(dict.fromkeys([*node.refs, *refs]))

    def fn(*values: torch.Tensor) -> Any:
        known = dict(zip(reads, values))
        known[operand] = piece(*(known[r] for r in refs))
        return _called(node, known)

    return Edit(fn, reads)


def _called(node: Node, known: Mapping[int, torch.Tensor]) -> Any:
    def get(x: Any) -> Any:
        return known[x.id] if isinstance(x, Ref) else x

    return node.op(*_map_refs(node.args, get), **_map_refs(node.kwargs, get))
