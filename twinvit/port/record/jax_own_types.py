"""The dtypes that a JAX program's variables have as it runs, and where it rounds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.extend import core as jex_core

from twinvit.port.ops.primitives import CONVERSIONS
from twinvit.port.record.jax_types import kind
from twinvit.port.record.own_types import Types, digits


@dataclass
class Marks:
    """Of variables of a jaxpr in float64, what they are in the program that runs.

    Attributes:
        held: the floating-point types that each is held in.
        rounded: the equations of the program that runs that round each, with their types.
    """

    held: dict[Any, Types] = field(default_factory=dict)
    rounded: dict[Any, tuple[tuple[Any, str], ...]] = field(default_factory=dict)
    _seen: dict[int, tuple[Any, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, own: Any) -> Marks:
        """Those of a jaxpr that is evaluated as it was traced in its own types."""
        marks = cls()
        for jaxpr in _jaxprs(own):
            variables = [*jaxpr.constvars, *jaxpr.invars]
            variables += [v for e in jaxpr.eqns for v in e.outvars]
            marks.add(jaxpr, jaxpr, {v: v for v in variables})
        return marks

    def add(self, wide: Any, own: Any, same: Mapping[Any, Any]) -> None:
        """Take up a jaxpr that was laid beside that of the program that runs.

        Args:
            same: variables of `wide` with those of `own`, without conversions between floats. A
                function that is called with several types has one jaxpr in float64: what it rounds
                is left open then.
        """
        back = {v: u for u, v in same.items()}
        held = {u: {_name(v)} for u, v in same.items() if _float(v)}
        rounded: dict[Any, list[tuple[Any, str]]] = {}
        source = sources(own)
        for eqn in own.eqns:
            if converts(eqn):
                u = back.get(source(eqn.outvars[0]))
                if u not in held or not _float(eqn.outvars[0]):
                    continue
                held[u].add(_name(eqn.outvars[0]))
                if _narrows(eqn.invars[0], eqn.outvars[0]):
                    rounded.setdefault(u, []).append((eqn, _name(eqn.outvars[0])))
                continue
            for v in eqn.outvars:
                if v in back and any(_narrows(x, v) for x in eqn.invars):
                    rounded.setdefault(back[v], []).append((eqn, _name(v)))
        told = tuple((i, _name(same[u])) for i, u in enumerate(held))
        again = self._seen.setdefault(id(wide), told) != told
        for u, names in held.items():
            self.held[u] = self.held.get(u, frozenset()) | names
            self.rounded[u] = () if again else tuple(rounded.get(u, ()))


def converts(eqn: Any) -> bool:
    """True for an equation that only changes the width of a type."""
    if eqn.primitive.name not in CONVERSIONS:
        return False
    kinds = [kind(v.aval.dtype) for v in (*eqn.invars, *eqn.outvars)]
    return kinds[0] == kinds[-1]


def sources(jaxpr: Any) -> Any:
    """A function that gives of a variable the one that it is a conversion of."""
    origin = {e.outvars[0]: e.invars[0] for e in jaxpr.eqns if converts(e)}

    def source(v: Any) -> Any:
        while not isinstance(v, jex_core.Literal) and v in origin:
            v = origin[v]
        return v

    return source


def _jaxprs(closed: Any) -> Iterator[Any]:
    jaxpr = getattr(closed, "jaxpr", closed)
    yield jaxpr
    for eqn in jaxpr.eqns:
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from _jaxprs(value)


def _is_jaxpr(x: Any) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr") and hasattr(x, "consts")


def _float(v: Any) -> bool:
    dtype = getattr(v.aval, "dtype", None)
    return dtype is not None and kind(dtype) in "fc"


def _name(v: Any) -> str:
    return str(v.aval.dtype)


def _narrows(before: Any, after: Any) -> bool:
    """True if the second variable is held in a narrower type than the first."""
    if not (_float(before) and _float(after)):
        return False
    return digits(_name(after)) < digits(_name(before))
