"""Where a port's integers overflow: int32 as it runs, int64 in the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from twinvit.port.ops.primitives import ARITHMETIC
from twinvit.port.record import jax_equations, jax_types
from twinvit.port.record.jax_interpreter import Interpreter

_DTYPES = ("new_dtype", "dtype", "preferred_element_type")


class Watch(Interpreter):
    """Evaluates a jaxpr in its own types, and keeps the results that left their integer type.

    Every operation is computed once more of the same operands in int64.

    Attributes:
        parents: the operands of each value, by its id.
        found: value and place of each operation whose result is not that of int64.
    """

    def __init__(self) -> None:
        super().__init__(self._keep)
        self.parents: list[list[int]] = []
        self.found: list[tuple[int, str]] = []
        self._left = False

    def _keep(self, value: Any, name: str, where: str, operands: list[int]) -> int:
        k = len(self.parents)
        # what is stacked has no operands of its own: all before it
        self.parents.append([*operands, *([k - 1] if name == "stack" and k else [])])
        return k

    def held(self, value: Any) -> Any:
        extended = jax_types.extended(getattr(value, "dtype", None))
        return np.asarray(value) if isinstance(value, jax.Array) and not extended else value

    def literal(self, value: Any) -> Any:
        return np.asarray(value)

    def told(
        self, name: str, outs: list[Any], values: list[Any], ids: list[int], where: str
    ) -> tuple[list[Any], list[int]]:
        parents = [i for i in ids if i >= 0]
        told = [self.tell(o, name, where, parents) for o in outs]
        if self._left:
            self.found += [(k, where) for k in told]
        return outs, told

    def _evaluate(
        self, eqn: Any, name: str, params: dict[str, Any], values: list[Any], where: str
    ) -> Any:
        subfuns, bind_params = jax_equations.bind_params(eqn, params)
        out = eqn.primitive.bind(*subfuns, *values, **bind_params)
        self._left = name in ARITHMETIC and _left(eqn, name, params, values, out)
        return out

    def first(self, output: int, known: frozenset[str] = frozenset()) -> str | None:
        """The first place but the known ones behind an output; None where there is none."""
        behind, todo = {output}, [output]
        while todo:
            k = todo.pop()
            new = {p for p in self.parents[k] if p >= 0} - behind if k >= 0 else set()
            behind |= new
            todo += new
        return next((w for k, w in self.found if k in behind and w not in known), None)


def _left(eqn: Any, name: str, params: dict[str, Any], values: list[Any], out: Any) -> bool:
    """True if this result is not what int64 makes of the same operands."""
    if eqn.primitive.multiple_results or np.asarray(out).dtype.kind != "i":
        return False
    operands = [np.asarray(v) for v in values]
    out = np.asarray(out)
    if name == "convert_element_type":
        x = operands[0]
        if x.dtype.kind in "iu":
            return not np.array_equal(x, out)
        if not jax_types.is_float(x):
            return False
        whole = np.trunc(x.astype(np.float64))
        limits = np.iinfo(out.dtype)
        return bool(((whole < limits.min) | (whole > limits.max)).any())  # NaN is neither
    if any(x.dtype.kind not in "ib" for x in operands):
        return False
    wide = {
        k: np.dtype(np.int64) if k in _DTYPES and v is not None else v for k, v in params.items()
    }
    try:
        with jax.enable_x64(True):
            subfuns, bind_params = jax_equations.bind_params(eqn, wide)
            exact = eqn.primitive.bind(
                *subfuns,
                *(x.astype(np.int64) if x.dtype.kind == "i" else x for x in operands),
                **bind_params,
            )
            return not np.array_equal(np.asarray(exact), out)
    except Exception:  # an operation that does not take int64
        return False


def watched(closed: Any, values: Sequence[Any], leaves: int) -> tuple[Watch, list[int]]:
    """A jaxpr evaluated in its own types, under the setting of 64-bit types in force; the ids of
    its outputs. An integer input beyond its type is found, too. The first `leaves` values are
    parameters."""
    watch = Watch()
    ids = []
    given = []
    for k, value in enumerate(values):
        own = value
        if isinstance(value, np.ndarray) and value.dtype.kind == "i":
            own = value.astype(jax.dtypes.canonicalize_dtype(value.dtype))
        ids.append(watch.tell(own, "input", "", []))
        if own is not value and not np.array_equal(own, value):
            watch.found.append((ids[-1], f"input {k - leaves}" if k >= leaves else "a parameter"))
        given.append(own)
    return watch, watch.closed(closed, given, ids)[1]
