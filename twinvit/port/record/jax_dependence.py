"""What of a JAX program depends on the dtypes that it is given.

A port is traced in its own types and in float64. Where the two programs are the same but for types,
the one in float64 has the constants unrounded: `eps = 1e-6`, a table of NumPy's. A constant whose
rounding is not that of the program in its own types depends on the type (finfo(x.dtype).min,
`1e-6 if x.dtype == float32 else 1e-12`): it is taken as the port runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.extend import core as jex_core

from twinvit.port.record.closed_forms import unrounded
from twinvit.port.record.jax_own_types import Marks, converts, sources
from twinvit.port.record.jax_pool import unrounded_by
from twinvit.port.record.jax_types import rounds_to

_UNSAID = frozenset(
    "name debug_info jaxpr_debug_info sharding out_sharding weak_type "
    "dtype new_dtype preferred_element_type index_dtype "
    "jvp_jaxpr_fun jvp_fun fwd_jaxpr_thunk fwd bwd out_trees".split()  # derivatives
)


@dataclass
class Dependence:
    """What depends on the types.

    Attributes:
        constants: places of constants that do.
        apart: why the two programs could not be laid side by side; "" where they could.
        marks: the types that the returned jaxpr's variables have as the program runs.
    """

    constants: dict[str, None] = field(default_factory=dict)
    apart: str = ""
    marks: Marks = field(default_factory=Marks)


class _Apart(Exception):
    """The two programs differ by more than types and constants."""


def as_it_runs(wide: Any, own: Any, place: Callable[[Any], str]) -> tuple[Any, Dependence]:
    """A closed jaxpr in float64 with the constants of the one in the port's own types where those
    are no rounding of it.

    Args:
        wide: the port's jaxpr, traced in float64.
        own: the same, traced in its own types.
        place: the place of an equation, in words.

    Returns:
        The jaxpr, and what depends on the types. Where the programs are apart, it is `own` with the
        constants of `wide` that round to its own.
    """
    found = Dependence()
    try:
        return _closed(wide, own, place, found), found
    except _Apart as reason:
        found.apart = str(reason)
        found.constants.clear()
        found.marks = Marks.of(own)
    return unrounded_by(wide, own), found


def _closed(wide: Any, own: Any, place: Callable[[Any], str], found: Dependence) -> Any:
    """Constants are laid side by side where they are used: they are hoisted by type, too."""
    given = dict(zip(own.jaxpr.constvars, own.consts))
    consts = list(wide.consts)
    position = {v: i for i, v in enumerate(wide.jaxpr.constvars)}
    values = dict(zip(wide.jaxpr.constvars, wide.consts))
    walk = _Walk(place, found, values, given)
    jaxpr = walk.jaxpr(wide.jaxpr, own.jaxpr)
    if jaxpr is wide.jaxpr and not walk.replaced:
        return wide
    for var, value in walk.replaced.items():
        consts[position[var]] = value
    return wide.replace(jaxpr=jaxpr, consts=consts)


class _Walk:
    """Two jaxprs side by side, equation by equation, without conversions between floats."""

    def __init__(
        self,
        place: Callable[[Any], str],
        found: Dependence,
        wide_consts: Mapping[Any, Any],
        own_consts: Mapping[Any, Any],
    ) -> None:
        self.place = place
        self.found = found
        self.wide_consts = wide_consts
        self.own_consts = own_consts
        self.replaced: dict[Any, Any] = {}
        """Constant variables of the wide jaxpr, with the values of the other."""

    def jaxpr(self, wide: Any, own: Any) -> Any:
        """The wide jaxpr with the other's constants where they depend on the type."""
        if len(wide.invars) != len(own.invars):
            raise _Apart("a function of other arguments")
        same: dict[Any, Any] = dict(zip(wide.invars, own.invars))
        first, second = sources(wide), sources(own)
        mine, theirs = _compared(wide.eqns), _compared(own.eqns)
        eqns = {id(e): e for e in wide.eqns}  # the same variables in each, so none is compared
        for a, b in zip(mine, theirs):
            if a.primitive.name != b.primitive.name or len(a.invars) != len(b.invars):
                raise _Apart(f"{a.primitive.name} for {b.primitive.name}, {self.place(b)}")
            if [v.aval.shape for v in a.outvars] != [v.aval.shape for v in b.outvars]:
                raise _Apart(f"{b.primitive.name} of another shape, {self.place(b)}")
            invars = [
                self.operand(first(u), second(v), same, b) for u, v in zip(a.invars, b.invars)
            ]
            params = self.params(a, b)
            if any(new is not None for new in invars) or params is not a.params:
                invars = [old if new is None else new for old, new in zip(a.invars, invars)]
                eqns[id(a)] = a.replace(invars=invars, params=params)
            same.update(zip(a.outvars, b.outvars))
        if len(mine) != len(theirs):
            rest = (mine if len(mine) > len(theirs) else theirs)[min(len(mine), len(theirs))]
            raise _Apart(f"{rest.primitive.name} on one side alone, {self.place(rest)}")
        outvars = []
        for u, v in zip(wide.outvars, own.outvars):
            new = self.operand(first(u), second(v), same, None)
            outvars.append(u if new is None else new)
        self.found.marks.add(wide, own, same)
        new = [eqns[id(e)] for e in wide.eqns]
        if _same_objects(new, wide.eqns) and _same_objects(outvars, wide.outvars):
            return wide
        return wide.replace(eqns=new, outvars=outvars)

    def operand(self, u: Any, v: Any, same: Mapping[Any, Any], eqn: Any) -> Any:
        """What stands for the wide jaxpr's operand: None for itself, or another literal."""
        mine, theirs = self.constant(u, self.wide_consts), self.constant(v, self.own_consts)
        if mine is None and theirs is None:
            if u not in same or same[u] is not v:
                raise _Apart(f"another operand, {self.place(eqn) if eqn is not None else ''}")
            return None
        if mine is None or theirs is None or np.shape(mine) != np.shape(theirs):
            raise _Apart(f"a constant on one side, {self.place(eqn) if eqn is not None else ''}")
        if rounds_to(mine, theirs):
            return None
        self.found.constants[self.place(eqn) if eqn is not None else ""] = None
        value = np.asarray(theirs)
        if value.dtype == np.float32 and value.ndim == 0 and np.isfinite(value):
            value = np.asarray(unrounded(value[()]))
        if isinstance(u, jex_core.Literal):
            return jex_core.Literal(value.astype(np.asarray(mine).dtype), u.aval)
        self.replaced[u] = value
        return None

    def constant(self, v: Any, consts: Mapping[Any, Any]) -> Any:
        return v.val if isinstance(v, jex_core.Literal) else consts.get(v)

    def params(self, a: Any, b: Any) -> dict[str, Any]:
        """The wide equation's parameters, its inner jaxprs laid beside the other's."""
        changed = {}
        for key, mine in a.params.items():
            theirs = b.params.get(key)
            new = self.param(mine, theirs, key, b)
            if new is not mine:
                changed[key] = new
        return {**a.params, **changed} if changed else a.params

    def param(self, mine: Any, theirs: Any, key: str, eqn: Any) -> Any:
        if hasattr(mine, "jaxpr") and hasattr(mine, "consts") and hasattr(theirs, "consts"):
            return _closed(mine, theirs, self.place, self.found)
        if hasattr(mine, "eqns") and hasattr(theirs, "eqns"):
            inner = _Walk(self.place, self.found, {}, {})
            return inner.jaxpr(mine, theirs)
        if isinstance(mine, tuple | list) and isinstance(theirs, tuple | list):
            if len(mine) != len(theirs):
                raise _Apart(f"{key} of {eqn.primitive.name}, {self.place(eqn)}")
            parts = [self.param(x, y, key, eqn) for x, y in zip(mine, theirs)]
            return mine if _same_objects(parts, mine) else type(mine)(parts)
        if not _unsaid(key) and not _same_setting(mine, theirs):
            raise _Apart(f"{key} of {eqn.primitive.name}, {self.place(eqn)}")
        return mine


def _same_objects(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return all(x is y for x, y in zip(a, b))


def _compared(eqns: Sequence[Any]) -> list[Any]:
    return [e for e in eqns if not converts(e)]


def _unsaid(key: str) -> bool:
    """True for a parameter that says nothing of what is computed, or says it as a function."""
    return key in _UNSAID or any(part in key for part in ("fun", "jvp", "fwd", "bwd", "thunk"))


def _same_setting(mine: Any, theirs: Any) -> bool:
    """Whether two parameters of an equation are the same but for types."""
    if callable(mine) or callable(theirs) or _is_dtype(mine) and _is_dtype(theirs):
        return True
    try:
        # NaN is what `jnp.take` fills with, and equals nothing
        return bool(mine == theirs) or bool(mine != mine and theirs != theirs)
    except Exception:
        return repr(mine) == repr(theirs)


def _is_dtype(x: Any) -> bool:
    return isinstance(x, np.dtype) or isinstance(x, type) and issubclass(x, np.generic)
