"""Common names of expressions: a name only where both formulas show it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from twinvit.port.search.folding import Expression, is_leaf, number, operands


def alias_of(mine: Expression, theirs: Expression) -> str:
    """The name of what a port computes (`theirs`) for what the reference does (`mine`), an
    identifier of the catalogue; "" for what has none."""
    return _softcap(mine, theirs) or _weight_norm(mine, theirs)


def _softcap(mine: Expression, theirs: Expression) -> str:
    own, ported = _capped(mine), _capped(theirs)
    if own is None and ported is not None and ported[0] == mine:
        return "softcap_added"
    if own is None or own[1] == 1:
        return ""
    if ported is None:
        return "softcap_missing" if own[0] == theirs else ""
    return "softcap_value" if own[0] == ported[0] and own[1] != ported[1] else ""


def _capped(x: Expression) -> tuple[Expression, float] | None:
    """What a soft cap c * tanh(x / c) takes, and c; None for another expression."""
    for factor, rest in _factors(x):
        if rest[0] != "tanh":
            continue
        inner = rest[1]
        if inner[0] == "div" and number(inner[2]) is not None:
            below = number(inner[2]) or 0.0
            if math.isclose(below, factor, rel_tol=1e-9):
                return inner[1], factor
        for scale, value in _factors(inner):
            if math.isclose(scale * factor, 1.0, rel_tol=1e-9):
                return value, factor
    return None


def _factors(x: Expression) -> Iterator[tuple[float, Expression]]:
    """A number and the one other factor of a product of two."""
    if x[0] in ("product", "mul") and len(x) == 3:
        for a, b in (x[1:], x[:0:-1]):
            n = number(a)
            if n is not None and number(b) is None:
                yield n, b


def _weight_norm(mine: Expression, theirs: Expression) -> str:
    """Weight normalisation, g * v / |v|, and something else that is made of g and v alone."""
    own = _normed(mine)
    if own is None or mine == theirs:
        return ""
    leaves = {x for x in _leaves(theirs) if x[0] == "value"}
    if not leaves or not leaves <= set(own):
        return ""
    return "weight_norm"


def _normed(x: Expression) -> tuple[Expression, ...] | None:
    """v and g of a weight g * v / |v|."""
    if x[0] == "_weight_norm_interface":
        return tuple(a for a in operands(x) if is_leaf(a))
    if x[0] != "div" or x[2][0] != "linalg_vector_norm" or x[1][0] not in ("mul", "product"):
        return None
    v = x[2][1]
    others = [a for a in x[1][1:] if a != v]
    if len(x[1]) != 3 or len(others) != 1 or not is_leaf(others[0]) or not is_leaf(v):
        return None
    return v, others[0]


def _leaves(x: Expression) -> Iterator[Expression]:
    if is_leaf(x):
        yield x
    for part in operands(x):
        yield from _leaves(part)
