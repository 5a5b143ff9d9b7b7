"""Evaluate a jaxpr equation by equation in float64.

Calls are entered, `scan` is unrolled, `cond` and `while` are followed. Every downcast of a
floating-point type is ignored and written down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex_core

from twinvit.port.errors import PortError
from twinvit.port.ops.primitives import CALLS, COLLECTIVES, COMPARISONS, LAYOUT
from twinvit.port.record.jax_collectives import alone
from twinvit.port.record.jax_equations import SCATTERS, bind_params, scattered
from twinvit.port.record.jax_internals import traced_within_jax
from twinvit.port.record.jax_own_types import Marks
from twinvit.port.record.jax_place import Place, frames
from twinvit.port.record.jax_rules import RULES
from twinvit.port.record.jax_types import is_float, is_narrow, literal, wide, widen
from twinvit.port.record.own_types import OwnTypes, Rounding

Sink = Callable[[Any, str, str, list[int]], int]
"""Told of each value: (array, primitive, where, ids of its operands); returns the value's id."""


class Deferred:
    """An argument that is made each time that an equation reads it, and not stored."""

    def __init__(self, make: Callable[[], np.ndarray]) -> None:
        self.make = make


class Interpreter:
    """Evaluates a closed jaxpr on NumPy arrays in float64, telling `sink` of every value.

    Downcasts are ignored but for `round_at`, one of a trace's (place, type) pairs. With `marks`,
    `types` says in which types values are held as the program runs.
    """

    def __init__(self, sink: Sink | None = None, round_at: Place | None = None) -> None:
        self.sink = sink
        self.round_at = round_at
        self.narrowings: dict[Place, None] = {}
        self.marks: Marks | None = None
        self.types = OwnTypes()
        self.branches: dict[str, None] = {}
        self.sides: dict[tuple[str, str], set[bool]] = {}
        self._where: dict[int, tuple[str, str]] = {}
        self._outer: tuple[str, str] | None = None

    def where(self, eqn: Any) -> tuple[str, str]:
        key = id(eqn)
        if key not in self._where:
            self._where[key] = frames(eqn.source_info)
        return self._where[key]

    def held(self, value: Any) -> Any:
        """A value in the type that it is held in: float64, if it is a floating-point value."""
        return widen(value)

    def literal(self, value: Any) -> Any:
        """A literal in the type that it is held in."""
        return literal(value)

    def one_sided(self) -> list[str]:
        """Comparisons of floating-point values with one result throughout, in words."""
        return [
            f"{where}: the port's comparison ({name}) is {str(*seen).lower()} for every number; "
            "what the other side leads to is not compared"
            for (where, name), seen in self.sides.items()
            if len(seen) == 1 and where
        ]

    def tell(self, value: Any, name: str, where: str, parents: list[int]) -> int:
        return self.sink(value, name, where, parents) if self.sink is not None else -1

    def closed(
        self, closed: Any, args: Sequence[Any], ids: Sequence[int]
    ) -> tuple[list[Any], list[int]]:
        consts = [self.held(c) for c in closed.consts]
        const_ids = [self.tell(c, "constant", "", []) for c in consts]
        return self.jaxpr(closed.jaxpr, consts, const_ids, args, ids)

    def jaxpr(
        self,
        jaxpr: Any,
        consts: Sequence[Any],
        const_ids: Sequence[int],
        args: Sequence[Any],
        ids: Sequence[int],
    ) -> tuple[list[Any], list[int]]:
        env: dict[Any, tuple[Any, int]] = {}
        for var, value, i in zip(
            [*jaxpr.constvars, *jaxpr.invars], [*consts, *args], [*const_ids, *ids]
        ):
            env[var] = (value, i)
            self.mark(var, i)
        last: dict[Any, int] = {}
        for n, eqn in enumerate(jaxpr.eqns):
            for v in eqn.invars:
                if not isinstance(v, jex_core.Literal):
                    last[v] = n
        kept = {v for v in jaxpr.outvars if not isinstance(v, jex_core.Literal)}

        def read(v: Any, made: bool = True) -> tuple[Any, int]:
            if isinstance(v, jex_core.Literal):
                return self.literal(v.val), -1
            value, i = env[v]
            return (value.make() if made and isinstance(value, Deferred) else value), i

        for n, eqn in enumerate(jaxpr.eqns):
            pairs = [read(v, made=_inner(eqn) is None) for v in eqn.invars]
            outs, out_ids = self.equation(eqn, [p[0] for p in pairs], [p[1] for p in pairs])
            for v, value, i in zip(eqn.outvars, outs, out_ids):
                env[v] = (value, i)
                self.mark(v, i)
            for v in eqn.invars:
                if not isinstance(v, jex_core.Literal) and last[v] == n and v not in kept:
                    env.pop(v, None)
        results = [read(v) for v in jaxpr.outvars]
        return [r[0] for r in results], [r[1] for r in results]

    def equation(self, eqn: Any, values: list[Any], ids: list[int]) -> tuple[list[Any], list[int]]:
        name = eqn.primitive.name
        params = eqn.params
        inner = _inner(eqn)
        if inner is not None:
            outer = self._outer
            if outer is None and traced_within_jax(
                inner
            ):  # its lines are those of whoever traced it first
                self._outer = self.where(eqn)
            try:
                if hasattr(inner, "consts"):
                    return self.closed(inner, values, ids)
                return self.jaxpr(inner, [], [], values, ids)
            finally:
                self._outer = outer
        if name == "shard_map":
            return self._sharded(eqn, values, ids)
        if name == "scan":
            return self._scan(params, values, ids)
        if name == "while":
            return self._while(params, values, ids)
        if name == "cond":
            branches = params["branches"]
            choice = int(np.clip(int(values[0]), 0, len(branches) - 1))
            self.branches[f"{self.where(eqn)[0]}: branch {choice} of {len(branches)} was taken"] = (
                None
            )
            return self.closed(branches[choice], values[1:], ids[1:])
        where, inner_where = self._outer if self._outer is not None else self.where(eqn)
        out = self._evaluate(eqn, name, params, values, inner_where)
        outs = list(out) if eqn.primitive.multiple_results else [out]
        if name in COMPARISONS and any(is_float(v) for v in values):
            self.sides.setdefault((where, name), set()).update(np.unique(outs[0]).tolist())
        return self.told(name, [self.held(o) for o in outs], values, ids, where)

    def told(
        self, name: str, outs: list[Any], values: list[Any], ids: list[int], where: str
    ) -> tuple[list[Any], list[int]]:
        """An equation's results with their ids; a layout operation's keep that of its operand."""
        if (
            (name in LAYOUT or name in COLLECTIVES or name == "convert_element_type")
            and len(values) >= 1
            and is_float(values[0])
        ):
            if len(outs) == len(ids):
                return outs, list(ids)
            return outs, [ids[0]]
        if name == "broadcast_in_dim" and np.size(outs[0]) == np.size(values[0]):
            return outs, [ids[0]]
        parents = [i for i in ids if i >= 0]
        return outs, [self.tell(o, name, where, parents) for o in outs]

    def mark(self, var: Any, value: int) -> None:
        """Write down in which types a variable's value is held as the program runs."""
        if self.marks is None or value < 0:
            return
        held = self.marks.held.get(var)
        if held:
            self.types.add(value, held)
        for eqn, dtype in self.marks.rounded.get(var, ()):
            where, inner = self._outer if self._outer is not None else self.where(eqn)
            self.types.roundings.append(Rounding(value, dtype, inner, where))

    def _evaluate(
        self, eqn: Any, name: str, params: dict[str, Any], values: list[Any], where: str
    ) -> Any:
        params = dict(params)
        rounded: np.dtype | None = None
        for key in ("new_dtype", "dtype", "preferred_element_type"):
            if (
                key in params
                and params[key] is not None
                and is_narrow(params[key])
                and name != "bitcast_convert_type"
            ):
                narrow = np.dtype(params[key])
                if any(is_float(v) for v in values):
                    self.narrowings[(where, narrow.name)] = None
                    if self.round_at == (where, narrow.name):
                        rounded = narrow
                params[key] = wide(narrow)
        out = self._compute(eqn, name, params, values, where)
        if rounded is None:
            return out
        with np.errstate(over="ignore"):  # what is beyond the type is infinite in it
            return jax.tree.map(
                lambda x: np.asarray(x).astype(rounded).astype(wide(rounded)) if is_float(x) else x,
                out,
            )

    def _compute(
        self, eqn: Any, name: str, params: dict[str, Any], values: list[Any], where: str
    ) -> Any:
        if name == "reduce_precision":
            place = (where, f"reduce_precision {params.get('mantissa_bits')} bits")
            self.narrowings[place] = None
            if self.round_at != place:
                return values[0]
        if name == "bitcast_convert_type":
            narrow = np.dtype(params["new_dtype"])
            return jax.lax.bitcast_convert_type(values[0], narrow)
        if name in COLLECTIVES:
            return alone(eqn, values)
        if name in SCATTERS:
            return scattered(name, params, values)
        rule = RULES.get(name)
        if rule is not None:
            result = rule(params, *values)
            if result is not NotImplemented:
                return result
        subfuns, given = bind_params(eqn, params)
        return eqn.primitive.bind(*subfuns, *values, **given)

    def _sharded(self, eqn: Any, values: list[Any], ids: list[int]) -> tuple[list[Any], list[int]]:
        """The function within `shard_map`, on a mesh of one device."""
        mesh = eqn.params["mesh"]
        if mesh.size != 1:
            raise PortError(
                f"the port maps over {mesh.size} devices ({self.where(eqn)[0]}, shard_map over "
                f"{dict(mesh.shape)}), and values are compared on one; give it a mesh of one device"
            )
        return self.jaxpr(eqn.params["jaxpr"], [], [], values, ids)

    def _scan(
        self, params: dict[str, Any], values: list[Any], ids: list[int]
    ) -> tuple[list[Any], list[int]]:
        n_consts, n_carry, length = params["num_consts"], params["num_carry"], params["length"]
        consts, carry, xs = (
            values[:n_consts],
            values[n_consts : n_consts + n_carry],
            values[n_consts + n_carry :],
        )
        const_ids, carry_ids, xs_ids = (
            ids[:n_consts],
            ids[n_consts : n_consts + n_carry],
            ids[n_consts + n_carry :],
        )
        steps = range(length - 1, -1, -1) if params["reverse"] else range(length)
        ys: list[list[Any]] = []
        for step in steps:
            slices = [x[step] for x in xs]
            slice_ids = [
                self.tell(s, "slice", "", [i] if i >= 0 else []) for s, i in zip(slices, xs_ids)
            ]
            outs, out_ids = self.closed(
                params["jaxpr"], [*consts, *carry, *slices], [*const_ids, *carry_ids, *slice_ids]
            )
            carry, carry_ids = outs[:n_carry], out_ids[:n_carry]
            ys.append(outs[n_carry:])
        if params["reverse"]:
            ys.reverse()
        stacked = (
            [np.stack([np.asarray(y[k]) for y in ys]) for k in range(len(ys[0]))]
            if ys and ys[0]
            else []
        )
        return [*carry, *stacked], [*carry_ids, *(self.tell(s, "stack", "", []) for s in stacked)]

    def _while(
        self, params: dict[str, Any], values: list[Any], ids: list[int]
    ) -> tuple[list[Any], list[int]]:
        nc, nb = params["cond_nconsts"], params["body_nconsts"]
        cond_consts, body_consts, carry = values[:nc], values[nc : nc + nb], values[nc + nb :]
        cond_ids, body_ids, carry_ids = ids[:nc], ids[nc : nc + nb], ids[nc + nb :]
        while True:
            go, _ = self.closed(
                params["cond_jaxpr"], [*cond_consts, *carry], [*cond_ids, *carry_ids]
            )
            if not bool(go[0]):
                return carry, list(carry_ids)
            carry, carry_ids = self.closed(
                params["body_jaxpr"], [*body_consts, *carry], [*body_ids, *carry_ids]
            )


def _inner(eqn: Any) -> Any:
    """The program that an equation calls once with its operands; None where it calls none."""
    name = eqn.primitive.name
    if name in CALLS or (name.startswith("custom_") and "call_jaxpr" in eqn.params):
        return eqn.params[CALLS.get(name, "call_jaxpr")]
    return None
