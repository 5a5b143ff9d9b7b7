"""Equations of a jaxpr bound again, in other dtypes than they were traced in."""

from __future__ import annotations

from typing import Any

import jax

SCATTERS = {
    f"scatter{mark}{kind}": getattr(jax.lax, f"scatter_{kind}")
    for kind in ("add", "sub", "mul", "min", "max")
    for mark in "-_"
} | {"scatter": jax.lax.scatter}
"""Primitives that scatter, and the functions that make them."""


def scattered(name: str, params: dict[str, Any], values: list[Any]) -> Any:
    """A scatter in the types of its operands: the function that combines numbers was traced in
    those of the program."""
    kept = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
    return SCATTERS[name](*values, **{k: params[k] for k in kept})


def bind_params(eqn: Any, params: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Functions and parameters that an equation's primitive is bound with."""
    result = eqn.primitive.get_bind_params(params)  # (subfuns, params) or params, by version
    if isinstance(result, tuple) and len(result) == 2:
        return list(result[0]), result[1]
    return [], result
