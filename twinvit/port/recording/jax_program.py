"""A traced JAX program as JSON and arrays, and rebuilt from them.

All jaxprs of a recording are in one list, each once: a function that is called twice is one
jaxpr, and its variables are the same objects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex_core

from twinvit.port.errors import OtherNumbers, PortError
from twinvit.port.ops.primitives import BY_VALUE
from twinvit.port.record.jax_internals import (
    Told,
    debug_info,
    random_implementation,
    traced_within_jax,
)
from twinvit.port.record.jax_own_types import Marks
from twinvit.port.record.jax_place import frames
from twinvit.port.recording import jax_primitives
from twinvit.port.recording.alike import alike
from twinvit.port.recording.arrays import Read, Written
from twinvit.port.recording.jax_primitives import Unwritable, dtype_name, dtype_of

NUMBERS = 1 << 36  # of one value
DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError)
Run = tuple[list[Any], list[Any]]
"""Operands and results of an equation."""


class Encoder:
    """Writes jaxprs into one list.

    Attributes:
        programs: the jaxprs as JSON.
        by_value: names of the primitives that are recorded by their value, and why.
        wanted: the equations whose values are needed; `runs` gives them, by the equation's id.
    """

    def __init__(self, arrays: Written) -> None:
        self.arrays = arrays
        self.programs: list[Any] = []
        self.kinds: list[list[Any]] = []
        self.variables: dict[Any, int] = {}
        self.by_value: dict[str, None] = {}
        self.wanted: dict[int, Any] = {}
        self.runs: dict[int, list[Run]] = {}
        self._known: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no id is given to another object
        self._loops = 0

    def program(self, jaxpr: Any) -> int:
        """The number of a jaxpr, open or closed, written once. Raises Unwritable."""
        if id(jaxpr) not in self._known:
            self._kept.append(jaxpr)
            written = self._jaxpr(jaxpr)
            self._known[id(jaxpr)] = len(self.programs)
            self.programs.append(written)
        return self._known[id(jaxpr)]

    def _jaxpr(self, jaxpr: Any) -> dict[str, Any]:
        closed = hasattr(jaxpr, "consts")
        inner = jaxpr.jaxpr if closed else jaxpr
        return {
            "consts": [self.constant(c) for c in jaxpr.consts] if closed else None,
            "constvars": [self._variable(v) for v in inner.constvars],
            "invars": [self._variable(v) for v in inner.invars],
            "eqns": [self._equation(e) for e in inner.eqns if e.outvars],  # no printing
            "outvars": [self._atom(v) for v in inner.outvars],
            "within": traced_within_jax(jaxpr),
        }

    def constant(self, value: Any) -> Any:
        """An array, or an array of random keys, as JSON. Raises Unwritable."""
        dtype = getattr(value, "dtype", None)
        if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
            data = np.asarray(jax.random.key_data(value))
            name = random_implementation(dtype._impl)
            return {"key": name, "array": self.arrays.add(data)}
        try:
            return {"array": self.arrays.add(np.asarray(value))}
        except TypeError as error:
            raise Unwritable(str(error)) from error

    def _variable(self, v: Any) -> int:
        if v not in self.variables:
            aval = v.aval
            if type(aval) is not jax.core.ShapedArray:
                raise Unwritable(f"a value of kind {type(aval).__name__}")
            kind = [dtype_name(aval.dtype), [int(n) for n in aval.shape]]
            self.kinds.append([*kind, bool(getattr(aval, "weak_type", False))])
            self.variables[v] = len(self.kinds) - 1
        return self.variables[v]

    def _atom(self, v: Any) -> Any:
        if not isinstance(v, jex_core.Literal):
            return self._variable(v)
        value = np.asarray(v.val)
        weak = bool(getattr(v.aval, "weak_type", False))
        number = self.arrays.add(value) if value.size > 1 else value.tobytes().hex()
        return [dtype_name(value.dtype), list(value.shape), number, weak]

    def _equation(self, eqn: Any) -> list[Any]:
        name = eqn.primitive.name
        loop = name in ("scan", "while", "cond")
        self._loops += loop
        try:
            params = self._params(eqn)
        except Unwritable as reason:
            # Within a loop a value is another one in each step: the loop is recorded by its own.
            if self._loops > loop:
                raise
            self.by_value[f"{name} ({reason})"] = None
            self.wanted[id(eqn)] = eqn
            self._kept.append(eqn)
            params = self._values(eqn)
            name = BY_VALUE + name
        finally:
            self._loops -= loop
        return [
            name,
            [self._atom(v) for v in eqn.invars],
            [self._variable(v) for v in eqn.outvars],
            params,
            list(frames(eqn.source_info)),
        ]

    def _params(self, eqn: Any) -> dict[str, Any]:
        name = eqn.primitive.name
        flow = name in jax_primitives.FLOW
        if not flow and name not in jax_primitives.LEAVES:
            raise Unwritable(f"{name} is not of the list")
        if eqn.effects and name not in ("while", "scan", "cond"):
            raise Unwritable(f"{name} has effects")
        if name == "shard_map":
            if eqn.params["mesh"].size != 1:
                raise Unwritable("a mesh of several devices")
            return {"jaxpr": {"j": self.program(eqn.params["jaxpr"])}}
        found = {}
        for key, value in eqn.params.items():
            try:
                found[key] = jax_primitives.encoded(value, self.arrays, self.program)
            except Unwritable:
                needed = "jaxpr" in key or "branches" in key
                if needed and flow and "fun" not in key and "thunk" not in key:
                    raise
                if not flow and not jax_primitives.unsaid(key):
                    raise
                found[key] = None
        return found

    def _values(self, eqn: Any) -> dict[str, Any]:
        """What an equation was run with and returned, each time that it was."""
        runs = [
            {
                "operands": [self.constant(x) for x in operands],
                "results": [self.constant(x) for x in results],
            }
            for operands, results in self.runs.get(id(eqn), ())
        ]
        return {"runs": {"m": runs}}

    def marks(self, marks: Marks | None) -> Any:
        """The types of variables that have been written, as JSON."""
        if marks is None:
            return None
        known = self.variables
        return {
            "held": [[known[v], sorted(t)] for v, t in marks.held.items() if v in known],
            "rounded": [
                [known[v], [[*frames(eqn.source_info), dtype] for eqn, dtype in rounded]]
                for v, rounded in marks.rounded.items()
                if v in known
            ],
        }


class Decoder:
    """Makes the jaxprs of a recording again. Raises PortError where they are damaged."""

    def __init__(self, found: Mapping[str, Any], arrays: Read) -> None:
        self.arrays = arrays
        self._programs: list[Any] = []
        try:
            self.variables = [self._made(*kind) for kind in found["kinds"]]
            for program in found["programs"]:
                self._programs.append(self._jaxpr(program))
        except DAMAGED as error:
            raise PortError(
                f"{arrays.path} is damaged: its program cannot be read ({error}); record it again"
            ) from error

    def program(self, number: Any) -> Any:
        """A jaxpr by its number."""
        if type(number) is not int or not 0 <= number < len(self._programs):
            raise ValueError(f"no program {number}")
        return self._programs[number]

    def _made(self, dtype: Any, shape: Any, weak: Any) -> Any:
        if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) > NUMBERS:
            raise ValueError(shape)
        aval = jax.core.ShapedArray(tuple(shape), dtype_of(dtype), weak_type=bool(weak))
        return jex_core.Var(aval)

    def _variable(self, number: Any) -> Any:
        if type(number) is not int or number < 0:
            raise ValueError(number)
        return self.variables[number]

    def _jaxpr(self, found: Mapping[str, Any]) -> Any:
        constvars = [self._variable(v) for v in found["constvars"]]
        invars = [self._variable(v) for v in found["invars"]]
        ready = {*constvars, *invars}
        eqns = []
        for row in found["eqns"]:
            eqn = self._equation(row)
            if any(not isinstance(v, jex_core.Literal) and v not in ready for v in eqn.invars):
                raise ValueError("an operation takes what is not there yet")
            ready.update(eqn.outvars)
            eqns.append(eqn)
        outvars = [self._atom(v) for v in found["outvars"]]
        if any(not isinstance(v, jex_core.Literal) and v not in ready for v in outvars):
            raise ValueError("a result that nothing computes")
        jaxpr = jex_core.Jaxpr(
            constvars, invars, outvars, eqns, debug_info=debug_info(bool(found["within"]))
        )
        if found["consts"] is None:
            return jaxpr
        consts = [self.constant(c) for c in found["consts"]]
        if len(consts) != len(constvars):
            raise ValueError("other constants than are named")
        return jex_core.ClosedJaxpr(jaxpr, consts)

    def constant(self, found: Mapping[str, Any]) -> Any:
        """An array, or an array of random keys."""
        array = self.arrays[found["array"]]
        if "key" in found:
            return jax.random.wrap_key_data(jax.numpy.asarray(array), impl=found["key"])
        return array

    def _atom(self, found: Any) -> Any:
        if not isinstance(found, list):
            return self._variable(found)
        name, shape, number, weak = found
        dtype = dtype_of(name)
        if isinstance(number, str):
            value = np.frombuffer(bytes.fromhex(number), dtype).reshape(shape)
        else:
            value = self.arrays[number]
        aval = jax.core.ShapedArray(value.shape, value.dtype, weak_type=bool(weak))
        return jex_core.Literal(value, aval)

    def _equation(self, row: Sequence[Any]) -> Any:
        name, operands, results, params, (user, inner) = row
        invars = [self._atom(v) for v in operands]
        outvars = [self._variable(v) for v in results]
        source = Told(str(user), str(inner))
        if name.startswith(BY_VALUE):
            made: Any = ByValue(name, [self._run(r) for r in params["runs"]["m"]])
            return jex_core.JaxprEqn(invars, outvars, made, {}, frozenset(), source, None)
        made = jax_primitives.primitive(name)
        decoded = {
            str(k): jax_primitives.decoded(v, self.arrays, self.program) for k, v in params.items()
        }
        if name == "shard_map":
            decoded["mesh"] = OneDevice()
        return jex_core.JaxprEqn(invars, outvars, made, decoded, frozenset(), source, None)

    def _run(self, found: Mapping[str, Any]) -> Run:
        operands = [_numbers(self.constant(x)) for x in found["operands"]]
        return operands, [self.constant(r) for r in found["results"]]

    def marks(self, found: Any) -> Marks | None:
        """The types of variables."""
        if found is None:
            return None
        marks = Marks()
        for v, names in found["held"]:
            marks.held[self._variable(v)] = frozenset(map(str, names))
        for v, rounded in found["rounded"]:
            marks.rounded[self._variable(v)] = tuple(
                (_Placed(Told(str(user), str(inner))), str(dtype)) for user, inner, dtype in rounded
            )
        return marks


class OneDevice:
    """A mesh of one device."""

    size = 1
    shape: Mapping[str, int] = {}


class _Placed:
    """Stands for an equation of which the location alone is needed."""

    def __init__(self, source_info: Told) -> None:
        self.source_info = source_info


def _numbers(x: Any) -> np.ndarray:
    """An array in NumPy, in a wide type; of random keys their data."""
    if jax.dtypes.issubdtype(getattr(x, "dtype", None), jax.dtypes.extended):
        x = jax.random.key_data(x)
    array = np.asarray(x)
    return array if array.dtype.kind in "biufc" else array.astype(np.float64)


class ByValue:
    """A primitive that was recorded by its value: it returns its results for the operands that it
    was recorded with, and no others."""

    multiple_results = True

    def __init__(self, name: str, runs: Sequence[Run]) -> None:
        self.name = name
        self.runs = runs

    def get_bind_params(self, params: Any) -> tuple[list[Any], dict[str, Any]]:
        """As a primitive's."""
        return [], dict(params)

    def bind(self, *values: Any) -> list[Any]:
        """The results. Raises PortError for other operands."""
        if not any(isinstance(v, jax.core.Tracer) for v in values):
            given = [_numbers(v) for v in values]
            for operands, results in self.runs:
                if len(operands) == len(given) and all(map(alike, given, operands)):
                    return list(results)
        raise OtherNumbers(
            f"{self.name.removeprefix(BY_VALUE)} was recorded by its value, for the numbers that "
            "were recorded alone"
        )
