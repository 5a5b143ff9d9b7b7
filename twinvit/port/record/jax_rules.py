"""Common primitives on NumPy arrays, so that evaluating a jaxpr once compiles little.

A rule returns NotImplemented where it does not apply; the primitive itself is run then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Rule = Callable[..., Any]


def _float(x: Any) -> bool:
    return np.asarray(x).dtype == np.float64


def _elementwise(fn: Callable[..., Any]) -> Rule:
    def rule(params: dict[str, Any], *values: Any) -> Any:
        if not all(
            isinstance(v, np.ndarray | np.generic) and v.dtype == np.float64 for v in values
        ):
            return NotImplemented
        with np.errstate(all="ignore"):
            return fn(*values)

    return rule


def _any_type(fn: Callable[..., Any]) -> Rule:
    def rule(params: dict[str, Any], *values: Any) -> Any:
        if not all(isinstance(v, np.ndarray | np.generic) for v in values):
            return NotImplemented
        with np.errstate(all="ignore"):
            return fn(params, *values)

    return rule


def _reduce(fn: Callable[..., Any]) -> Rule:
    def rule(params: dict[str, Any], x: Any) -> Any:
        if not _float(x):
            return NotImplemented
        return fn(x, axis=tuple(params["axes"])) if params["axes"] else x

    return rule


def _broadcast(params: dict[str, Any], x: Any, *dynamic: Any) -> Any:
    if dynamic:
        return NotImplemented
    shape = [1] * len(params["shape"])
    for axis, size in zip(params["broadcast_dimensions"], np.shape(x)):
        shape[axis] = size
    return np.broadcast_to(np.reshape(x, shape), params["shape"])


def _reshape(params: dict[str, Any], x: Any, *dynamic: Any) -> Any:
    if dynamic or params.get("dimensions") is not None:
        return NotImplemented
    return np.reshape(x, params["new_sizes"])


def _slice(params: dict[str, Any], x: Any) -> Any:
    strides = params["strides"] or [1] * x.ndim
    return x[
        tuple(
            slice(a, b, s)
            for a, b, s in zip(params["start_indices"], params["limit_indices"], strides)
        )
    ]


def _select(params: dict[str, Any], which: Any, *cases: Any) -> Any:
    if len(cases) != 2 or which.dtype != np.bool_:
        return NotImplemented
    return np.where(which, cases[1], cases[0])


def _convert(params: dict[str, Any], x: Any) -> Any:
    new = params["new_dtype"]
    try:
        new = np.dtype(new)
    except TypeError:
        return NotImplemented
    if x.dtype.kind == "f" and new.kind in "iu":
        return NotImplemented
    return x if x.dtype == new else x.astype(new)


def _dot(params: dict[str, Any], a: Any, b: Any) -> Any:
    if not (_float(a) and _float(b)):
        return NotImplemented
    (ca, cb), (ba, bb) = params["dimension_numbers"]
    fa = [i for i in range(a.ndim) if i not in ca and i not in ba]
    fb = [i for i in range(b.ndim) if i not in cb and i not in bb]
    batch = [a.shape[i] for i in ba]
    inner = int(np.prod([a.shape[i] for i in ca]))
    rows, columns = (int(np.prod([x.shape[i] for i in f])) for x, f in ((a, fa), (b, fb)))
    left = a.transpose([*ba, *fa, *ca]).reshape([*batch, rows, inner])
    right = b.transpose([*bb, *cb, *fb]).reshape([*batch, inner, columns])
    return np.matmul(left, right).reshape(
        [*batch, *(a.shape[i] for i in fa), *(b.shape[i] for i in fb)]
    )


def _integer_pow(params: dict[str, Any], x: Any) -> Any:
    if not _float(x):
        return NotImplemented
    y = params["y"]
    if y == 2:
        return x * x
    if y == 3:
        return x * x * x
    return x ** float(y)


def _iota(params: dict[str, Any], *dynamic: Any) -> Any:
    if dynamic:
        return NotImplemented
    shape, axis = params["shape"], params["dimension"]
    line = np.arange(shape[axis]).astype(params["dtype"])
    return np.broadcast_to(line.reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape)


def _compare(fn: Callable[..., Any]) -> Rule:
    return _any_type(lambda params, a, b: fn(a, b))


RULES: dict[str, Rule] = {
    "add": _elementwise(np.add),
    "add_any": _elementwise(np.add),
    "sub": _elementwise(np.subtract),
    "mul": _elementwise(np.multiply),
    "div": _elementwise(np.divide),
    "neg": _elementwise(np.negative),
    "exp": _elementwise(np.exp),
    "log": _elementwise(np.log),
    "log1p": _elementwise(np.log1p),
    "expm1": _elementwise(np.expm1),
    "tanh": _elementwise(np.tanh),
    "sin": _elementwise(np.sin),
    "cos": _elementwise(np.cos),
    "sqrt": _elementwise(np.sqrt),
    "rsqrt": _elementwise(lambda x: 1 / np.sqrt(x)),
    "abs": _elementwise(np.abs),
    "sign": _elementwise(np.sign),
    "square": _elementwise(np.square),
    "max": _elementwise(np.maximum),
    "min": _elementwise(np.minimum),
    "integer_pow": _integer_pow,
    "reduce_sum": _reduce(np.sum),
    "reduce_max": _reduce(np.max),
    "reduce_min": _reduce(np.min),
    "broadcast_in_dim": _any_type(_broadcast),
    "reshape": _any_type(_reshape),
    "squeeze": _any_type(
        lambda p, x: np.reshape(x, [s for i, s in enumerate(x.shape) if i not in p["dimensions"]])
    ),
    "transpose": _any_type(lambda p, x: np.transpose(x, p["permutation"])),
    "slice": _any_type(_slice),
    "rev": _any_type(lambda p, x: np.flip(x, p["dimensions"])),
    "concatenate": _any_type(lambda p, *xs: np.concatenate(xs, axis=p["dimension"])),
    "split": _any_type(lambda p, x: np.split(x, np.cumsum(p["sizes"])[:-1], axis=p["axis"])),
    "select_n": _any_type(_select),
    "convert_element_type": _any_type(_convert),
    "stop_gradient": _any_type(lambda p, x: x),
    "optimization_barrier": lambda p, *xs: list(xs),
    "copy": _any_type(lambda p, x: x),
    "dot_general": _any_type(_dot),
    "iota": _iota,
    "lt": _compare(np.less),
    "le": _compare(np.less_equal),
    "gt": _compare(np.greater),
    "ge": _compare(np.greater_equal),
    "eq": _compare(np.equal),
    "ne": _compare(np.not_equal),
}
