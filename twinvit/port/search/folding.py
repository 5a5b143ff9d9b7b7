"""Expressions made readable: what spells out a library function is written as that function.

An expression is a tuple (name, operands...); a leaf is ("value", name) or ("number", x). Products
and quotients are folded as one product of factors, so that a normalisation is seen in each of the
forms that it is written in.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

Expression = tuple[Any, ...]

_LEAVES = ("value", "number")


def is_leaf(x: Any) -> bool:
    return isinstance(x, tuple) and bool(x) and x[0] in _LEAVES


def operands(x: Expression) -> list[Expression]:
    """An expression's operands that are expressions."""
    return [] if is_leaf(x) else [a for a in x[1:] if isinstance(a, tuple) and a and _named(a)]


def _named(x: tuple[Any, ...]) -> bool:
    return isinstance(x[0], str)


def parts(x: Expression) -> Iterator[Expression]:
    """An expression and all of its subexpressions, each once."""
    seen: set[Expression] = set()
    rest = [x]
    while rest:
        part = rest.pop()
        if part in seen:
            continue
        seen.add(part)
        yield part
        rest += operands(part)


def count(x: Expression) -> int:
    """How many operations an expression has; one that occurs twice is counted once."""
    total = 0
    for part in parts(x):
        if is_leaf(part) or part[0] in ("reshape", "transpose", "part"):
            continue
        total += max(1, len(operands(part)) - 1) if part[0] == "product" else 1
    return total


def fold(x: Expression) -> Expression:
    """The expression with mean, variance, norms, softmax, GELU's forms, silu, clip and one_hot."""
    known: dict[Expression, Expression] = {}

    def folded(part: Expression) -> Expression:
        if is_leaf(part):
            return part
        if part not in known:
            inner = tuple(
                folded(a) if isinstance(a, tuple) and a and _named(a) else a for a in part
            )
            known[part] = _folded(inner)
        return known[part]

    return folded(x)


def _folded(x: Expression) -> Expression:
    for rule in _RULES:
        new = rule(x)
        if new is not None and new != x:
            return _folded(new)
    return x


def number(x: Expression) -> float | None:
    return float(x[1]) if x[0] == "number" else None


def _near(x: Expression, value: float) -> bool:
    n = number(x)
    return n is not None and math.isclose(n, value, rel_tol=1e-6)


def _factors(x: Expression) -> list[Expression] | None:
    """The factors of a product or quotient; None for other expressions."""
    if x[0] == "product":
        return list(x[1:])
    if x[0] == "mul":
        return [f for a in x[1:] for f in _factors(a) or [a]]
    if x[0] == "div":
        below = _inverse(x[2])
        return None if below is None else [*(_factors(x[1]) or [x[1]]), below]
    return None


def _inverse(x: Expression) -> Expression | None:
    """1 / x as a factor, where it is the inverse of a root."""
    if x[0] == "sqrt":
        return ("rsqrt", x[1])
    return None


def _product(x: Expression) -> Expression | None:
    """Nested products as one; its constant factors are multiplied and come first."""
    if x[0] not in ("mul", "div", "product"):
        return None
    found = _factors(x)
    if found is None:
        return None
    numbers = [f for f in found if number(f) is not None]
    if len(numbers) > 1:
        total = math.prod(float(f[1]) for f in numbers)
        found = [("number", total), *(f for f in found if number(f) is None)]
    found = [f for f in found if number(f) != 1.0] or [("number", 1.0)]
    found.sort(key=lambda f: f[0] != "number")
    rest = _within(found)
    return rest[0] if len(rest) == 1 else ("product", *rest)


def _within(factors: list[Expression]) -> list[Expression]:
    """Factors with norms, silu and GELU's forms folded."""
    for k, f in enumerate(factors):
        rest = factors[:k] + factors[k + 1 :]
        for rule in (_norm, _silu, _gelu):
            new = rule(f, rest)
            if new is not None:
                return new
    return factors


def _norm(f: Expression, rest: list[Expression]) -> list[Expression] | None:
    if f[0] != "rsqrt":
        return None
    inside, eps = f[1], 0.0
    if inside[0] == "add":
        terms = [(a, number(b)) for a, b in (inside[1:], inside[:0:-1]) if number(b) is not None]
        if terms:
            inside, eps = terms[0][0], terms[0][1] or 0.0
    for k, g in enumerate(rest):
        others = rest[:k] + rest[k + 1 :]
        if inside[0] == "variance" and g == ("sub", inside[1], ("mean", *inside[1:])):
            return [("norm", inside[1], eps), *others]
        if inside[0] == "mean" and _square_of(inside[1]) == g:
            return [("rms_norm", g, eps), *others]
    return None


def _square_of(x: Expression) -> Expression | None:
    """What x is the square of; None."""
    if x[0] == "square" or (x[0] == "pow" and _near(x[2], 2)):
        inner: Expression = x[1]
        return inner[1] if inner[0] == "abs" else inner
    if x[0] in ("mul", "product") and len(x) == 3 and x[1] == x[2]:
        same: Expression = x[1]
        return same
    return None


def _silu(f: Expression, rest: list[Expression]) -> list[Expression] | None:
    if f[0] != "sigmoid":
        return None
    for k, g in enumerate(rest):
        others = rest[:k] + rest[k + 1 :]
        if g == f[1]:
            return [("silu", g), *others]
        if f[1][0] == "product" and len(f[1]) == 3 and f[1][2] == g and _near(f[1][1], 1.702):
            return [("quick_gelu", g), *others]
    return None


def _gelu(f: Expression, rest: list[Expression]) -> list[Expression] | None:
    halves = [k for k, g in enumerate(rest) if _near(g, 0.5)]
    if not halves:
        return None
    others = [g for k, g in enumerate(rest) if k != halves[0]]
    inner = None
    if f[0] == "erfc":
        inner, name, scale = f[1], "gelu", -math.sqrt(0.5)
    elif f[0] == "add":
        term = next((b for a, b in (f[1:], f[:0:-1]) if _near(a, 1.0)), None)
        if term is not None and term[0] == "erf":
            inner, name, scale = term[1], "gelu", math.sqrt(0.5)
        elif term is not None and term[0] == "tanh":
            inner, name, scale = term[1], "gelu_tanh", math.sqrt(2 / math.pi)
    if inner is None:
        return None
    for k, g in enumerate(others):
        if _is_scaled(inner, g, scale, cubic=name == "gelu_tanh"):
            return [(name, g), *(h for j, h in enumerate(others) if j != k)]
    return None


def _is_scaled(inner: Expression, x: Expression, scale: float, cubic: bool) -> bool:
    """True for scale * x, or scale * (x + 0.044715 x^3)."""
    if inner[0] == "neg":
        return _is_scaled(inner[1], x, -scale, cubic)
    if inner[0] == "div" and len(inner) == 3 and number(inner[2]):
        return inner[1] == x and math.isclose(1 / float(inner[2][1]), scale, rel_tol=1e-6)
    if inner[0] != "product" or not _near(inner[1], scale):
        return inner[0] == "product" and _negated(inner, x, scale)
    if not cubic:
        return inner[2:] == (x,)
    return len(inner) == 3 and inner[2][0] == "add" and x in inner[2][1:]


def _negated(inner: Expression, x: Expression, scale: float) -> bool:
    """True for (-x) * -scale."""
    return len(inner) == 3 and inner[2] == ("neg", x) and _near(inner[1], -scale)


def _mean(x: Expression) -> Expression | None:
    """A mean, from sum / n with n the number of summed elements (the sum's last operand)."""
    if x[0] not in ("div", "mul", "product") or len(x) != 3:
        return None
    for total, n in ((x[1], x[2]), (x[2], x[1])):
        if total[0] == "sum" and len(total) == 4 and number(n):
            size = float(n[1])
            if x[0] == "div" and n is x[1]:
                continue
            if math.isclose(size if x[0] == "div" else 1 / size, total[3], rel_tol=1e-6):
                return ("mean", total[1], total[2])
    return None


def _variance(x: Expression) -> Expression | None:
    if x[0] == "mean":
        inner = _square_of(x[1])
        if inner is not None and inner[0] == "sub" and inner[2] == ("mean", inner[1], x[2]):
            return ("variance", inner[1], x[2])
    if x[0] == "maximum" and any(_near(a, 0.0) or number(a) == 0 for a in x[1:]):
        inner = next((a for a in x[1:] if a[0] == "sub"), None)
        if inner is not None and inner[1][0] == "mean":  # E[x^2] - E[x]^2
            first, second = _square_of(inner[1][1]), _square_of(inner[2])
            if first is not None and second == ("mean", first, inner[1][2]):
                return ("variance", first, inner[1][2])
    return None


def _softmax(x: Expression) -> Expression | None:
    if x[0] != "div" or x[1][0] != "exp" or x[2][0] != "sum" or x[2][1] != x[1]:
        return None
    if len(x[2]) < 3:
        return None
    inner = x[1][1]
    if inner[0] == "sub" and _is_max(inner[2], inner[1]):
        inner = inner[1]
    return ("softmax", inner, x[2][2])


def _logsumexp(x: Expression) -> Expression | None:
    """log(sum(exp(x - m))) + m with m the maximum, and x minus that."""
    if x[0] == "add" and len(x) == 3:
        for a, m in (x[1:], x[:0:-1]):
            if a[0] != "log":
                continue
            total = a[1][1] if a[1][0] == "abs" else a[1]
            if total[0] == "sum" and total[1][0] == "exp" and total[1][1][0] == "sub":
                inner = total[1][1]
                if inner[2] == m and _is_max(m, inner[1]):
                    return ("logsumexp", inner[1], total[2])
    if x[0] == "sub" and x[2][0] == "logsumexp" and x[2][1] == x[1]:
        return ("log_softmax", x[1], x[2][2])
    if x[0] == "sub" and x[1][0] == "sub" and x[2][0] == "log":  # (x - m) - log(sum(exp(x - m)))
        if x[2][1][0] == "sum" and x[2][1][1] == ("exp", x[1]) and _is_max(x[1][2], x[1][1]):
            return ("log_softmax", x[1][1], x[2][1][2])
    return None


def _is_max(x: Expression, of: Expression) -> bool:
    if x[0] == "maximum":
        return any(_is_max(a, of) for a in x[1:] if not is_leaf(a))
    if x[0] == "where" and len(x) == 4 and x[1] == ("is_finite", x[2]):  # an infinite one is none
        return _is_max(x[2], of)
    return x[0] == "max" and x[1] == of


def _sigmoid(x: Expression) -> Expression | None:
    if x[0] == "div" and _near(x[1], 1.0) and x[2][0] == "add":
        for a, b in (x[2][1:], x[2][:0:-1]):
            if _near(a, 1.0) and b[0] == "exp" and b[1][0] == "neg":
                return ("sigmoid", b[1][1])
    return None


def _clip(x: Expression) -> Expression | None:
    if x[0] == "minimum":
        for a, b in (x[1:], x[:0:-1]):
            if number(a) is not None and b[0] == "relu":
                return ("clip", b[1], ("number", 0.0), a)
            if number(a) is not None and b[0] == "maximum":
                for low, inner in (b[1:], b[:0:-1]):
                    if number(low) is not None:
                        return ("clip", inner, low, a)
    if x[0] == "maximum":
        for a, b in (x[1:], x[:0:-1]):
            if number(a) == 0:
                return ("relu", b)
    return None


def _arithmetic(x: Expression) -> Expression | None:
    """The result of an operation on constants."""
    if x[0] == "where" and len(x) == 4 and number(x[1]) is not None:
        chosen: Expression = x[2] if number(x[1]) else x[3]
        return chosen
    function = _WRITTEN.get(x[0])
    if function is None or len(x) != 3:
        return None
    a, b = number(x[1]), number(x[2])
    return None if a is None or b is None or (x[0] == "div" and not b) else (
        "number", float(function(a, b))
    )  # fmt: skip


_WRITTEN: dict[str, Callable[[float, float], float]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv,
    "greater": operator.gt, "less": operator.lt,
}  # fmt: skip


def _neutral(x: Expression) -> Expression | None:
    """x + 0 and max(x, -inf) are x."""
    if x[0] in ("add", "maximum") and len(x) == 3:
        nothing = 0.0 if x[0] == "add" else -math.inf
        for a, b in (x[1:], x[:0:-1]):
            if number(a) == nothing:
                return b
    return None


def _one_hot(x: Expression) -> Expression | None:
    if x[0] == "equal" and len(x) == 3:
        for a, b in (x[1:], x[:0:-1]):
            if a[0] == "arange" and b[0] != "arange":
                return ("one_hot", b)
    return None


def _index(x: Expression) -> Expression | None:
    """Indices from the end: where(i < 0, i + n, i) is i."""
    if x[0] != "where" or len(x) != 4:
        return None
    condition, yes, no = x[1:]
    if condition[0] == "less" and condition[1] == no and number(condition[2]) == 0:
        if yes[0] == "add" and no in yes[1:] and any(number(a) is not None for a in yes[1:]):
            return no
    return None


_RULES: tuple[Callable[[Expression], Expression | None], ...] = (
    _arithmetic,
    _mean,
    _variance,
    _softmax,
    _logsumexp,
    _sigmoid,
    _clip,
    _neutral,
    _one_hot,
    _index,
    _product,
)
