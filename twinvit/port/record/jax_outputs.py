"""What a port returns, as a list of arrays with names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from twinvit.port.models.base import path_name


def ordered_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Names ("logits", "aux.0"; "" for an array alone) and arrays of what a port returned,
    mappings in their own order, which JAX's flattening sorts."""
    if isinstance(tree, Mapping):
        found = [(f"{k}.{n}", x) for k, v in tree.items() for n, x in ordered_leaves(v)]
    elif isinstance(tree, tuple | list):
        keys = getattr(tree, "_fields", range(len(tree)))
        found = [(f"{k}.{n}", x) for k, v in zip(keys, tree) for n, x in ordered_leaves(v)]
    else:
        return [(path_name(p), x) for p, x in jax.tree_util.tree_flatten_with_path(tree)[0]]
    return [(n.rstrip("."), x) for n, x in found]


@dataclasses.dataclass
class Outputs:
    """Arrays that a port returns, and their names, which a trace keeps with the shapes."""

    arrays: list[Any]
    names: tuple[str, ...]


jax.tree_util.register_dataclass(Outputs, ["arrays"], ["names"])


def flattened(fn: Callable[..., Any]) -> Callable[..., Outputs]:
    """`fn` as a function that returns a list of arrays with their names."""

    def flat(*args: Any) -> Outputs:
        found = [
            (name, x)
            for name, x in ordered_leaves(_plain(fn(*args)))
            if not isinstance(x, str | bytes) and not callable(x)
        ]
        return Outputs([x for _, x in found], tuple(name for name, _ in found))

    return flat


def _plain(out: Any) -> Any:
    """An output with data classes that JAX does not know as dicts, each in its own order.

    `jax.tree.map` would sort the keys of dicts, and outputs are paired by their places, too.
    """
    if dataclasses.is_dataclass(out) and not isinstance(out, type) and _is_leaf(out):
        return {f.name: _plain(getattr(out, f.name)) for f in dataclasses.fields(out)}
    if type(out) is dict:
        return {k: _plain(v) for k, v in out.items()}
    if isinstance(out, tuple) and hasattr(out, "_fields"):
        return type(out)(*map(_plain, out))
    return type(out)(map(_plain, out)) if type(out) in (list, tuple) else out


def _is_leaf(x: Any) -> bool:
    return jax.tree_util.all_leaves([x])
