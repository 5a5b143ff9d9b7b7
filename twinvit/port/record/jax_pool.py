"""A JAX program with the unrounded constants of another one that is the same but for types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex_core

from twinvit.port.record.jax_types import kind, rounds_to


class _Pool:
    """The floating-point constants of a program, by their rounding."""

    def __init__(self, closed: Any) -> None:
        self.values = [np.asarray(x) for x in _constants(closed)]
        self.by_size: dict[tuple[int, ...], list[np.ndarray]] = {}
        for x in self.values:
            if kind(x.dtype) in "fc":
                self.by_size.setdefault(x.shape, []).append(x)

    def unrounded(self, value: Any) -> Any:
        """The one constant that rounds to this one; itself where there is none, or several."""
        own = np.asarray(value)
        if kind(own.dtype) not in "fc":
            return value
        found = {x.tobytes(): x for x in self.by_size.get(own.shape, []) if rounds_to(x, own)}
        return next(iter(found.values())) if len(found) == 1 else value


def _constants(closed: Any) -> Iterator[Any]:
    yield from closed.consts
    yield from _literals(closed.jaxpr)


def _literals(jaxpr: Any) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        yield from (v.val for v in eqn.invars if isinstance(v, jex_core.Literal))
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
            if hasattr(value, "consts"):
                yield from _constants(value)
            elif hasattr(value, "eqns"):
                yield from _literals(value)


def _is_jaxpr(x: Any) -> bool:
    return hasattr(x, "consts") or hasattr(x, "eqns")


def unrounded_by(wide: Any, closed: Any) -> Any:
    """A closed jaxpr with those constants of another program, `wide`, that round to its own."""
    return _unrounded(closed, _Pool(wide))


def _unrounded(closed: Any, pool: _Pool) -> Any:
    """A closed jaxpr with the constants of another program that round to its own."""
    consts = [pool.unrounded(c) for c in closed.consts]
    return closed.replace(jaxpr=_unrounded_jaxpr(closed.jaxpr, pool), consts=consts)


def _unrounded_jaxpr(jaxpr: Any, pool: _Pool) -> Any:
    def param(value: Any) -> Any:
        if hasattr(value, "consts"):
            return _unrounded(value, pool)
        if hasattr(value, "eqns"):
            return _unrounded_jaxpr(value, pool)
        if isinstance(value, tuple | list) and any(map(_is_jaxpr, value)):
            return type(value)(map(param, value))
        return value

    def literal(v: Any) -> Any:
        if not isinstance(v, jex_core.Literal):
            return v
        value = pool.unrounded(v.val)
        return v if value is v.val else jex_core.Literal(value, v.aval)

    eqns = [
        e.replace(
            invars=[literal(v) for v in e.invars], params={k: param(x) for k, x in e.params.items()}
        )
        for e in jaxpr.eqns
    ]
    return jaxpr.replace(eqns=eqns)
