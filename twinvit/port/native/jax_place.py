"""The first place of a port that makes NaN or infinity of an output as it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from twinvit.port import models
from twinvit.port.native.jax_side import Identified, named, narrow_on_cpu, numeric
from twinvit.port.pair import Pair
from twinvit.port.record import jax_equations, jax_types
from twinvit.port.record.jax_interpreter import Interpreter, Sink
from twinvit.port.record.jax_outputs import Outputs
from twinvit.port.record.jax_settings import float64_on_cpu


class Watch(Interpreter):
    """Evaluates a jaxpr in its own types, or widened, and tells of every equation's results."""

    def __init__(self, sink: Sink, narrow: bool) -> None:
        super().__init__(sink)
        self.narrow = narrow

    def held(self, value: Any) -> Any:
        if not self.narrow:
            return super().held(value)
        return np.asarray(value) if isinstance(value, jax.Array) and numeric(value) else value

    def literal(self, value: Any) -> Any:
        return np.asarray(value) if self.narrow else super().literal(value)

    def told(
        self, name: str, outs: list[Any], values: list[Any], ids: list[int], where: str
    ) -> tuple[list[Any], list[int]]:
        parents = [i for i in ids if i >= 0]
        return outs, [self.tell(o, name, where, parents) for o in outs]

    def _evaluate(
        self, eqn: Any, name: str, params: dict[str, Any], values: list[Any], where: str
    ) -> Any:
        if not self.narrow:
            return super()._evaluate(eqn, name, params, values, where)
        subfuns, bind_params = jax_equations.bind_params(eqn, params)
        return eqn.primitive.bind(*subfuns, *values, **bind_params)


def jax_place(pair: Pair, pure: models.Pure, arrays: Sequence[np.ndarray]) -> dict[str, str]:
    """The first place of the port that breaks each output; empty if it cannot be determined.

    The traced program is evaluated widened and in its own types, and a result is bad where only its
    own type makes it NaN or infinite. From an output the bad operands are followed to those
    operations that make bad results of good operands, and the first of them is the place.
    """
    leaves, inputs = pair.own_leaves(), pair.own_inputs(arrays)
    try:
        closed, names = pair.own_program(pure, arrays)
        finite = _finite_in_float64(closed, leaves, inputs)
        bad: list[bool] = []
        parents: list[list[int]] = []
        places: list[str] = []

        def sink(value: Any, name: str, where: str, operands: list[int]) -> int:
            k = len(bad)
            bad.append(_breaks(value, finite[k] if k < len(finite) else None))
            parents.append(operands)
            places.append(where)
            return k

        with narrow_on_cpu():
            values = [*leaves, *inputs]
            _, ids = Watch(sink, narrow=True).closed(closed, values, [-1] * len(values))
    except Exception:
        return {}
    outputs = named(pair, pure, Outputs([Identified(i) for i in ids], names))
    return {name: _origin(x.id, bad, parents, places) for name, x in outputs}


def _finite_in_float64(
    closed: Any, leaves: Sequence[Any], inputs: Sequence[np.ndarray]
) -> list[np.ndarray | None]:
    """For every value of the program in order: where it is finite in float64; None for
    everywhere."""
    finite: list[np.ndarray | None] = []

    def sink(value: Any, name: str, where: str, operands: list[int]) -> int:
        keep = None
        if jax_types.is_float(value):
            keep = np.isfinite(np.asarray(value))
            keep = None if keep.all() else keep
        finite.append(keep)
        return len(finite) - 1

    values = [jax_types.widen(x) for x in (*leaves, *inputs)]
    with float64_on_cpu():
        Watch(sink, narrow=False).closed(closed, values, [-1] * len(values))
    return finite


def _breaks(value: Any, finite: np.ndarray | None) -> bool:
    if not jax_types.is_float(value):
        return False
    wrong = ~np.isfinite(np.asarray(jax_types.widen(np.asarray(value))))
    if finite is not None and finite.shape == wrong.shape:
        wrong &= finite
    return bool(wrong.any())


def _origin(
    start: int, bad: Sequence[bool], parents: Sequence[Sequence[int]], places: Sequence[str]
) -> str:
    """The first place among the origins of a bad value."""
    if start < 0 or not bad[start]:
        return ""
    seen, todo, origins = {start}, [start], []
    while todo:
        value = todo.pop()
        behind = [p for p in parents[value] if bad[p]]
        if not behind:
            origins.append(value)
        new = [p for p in behind if p not in seen]
        seen.update(new)
        todo += new
    return next((places[o] for o in sorted(origins) if places[o]), "")
