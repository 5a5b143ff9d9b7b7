"""What every adapter makes of a port: a pure function of its arrays."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax


@dataclass(frozen=True)
class Function:
    """A port that is a plain function: `fn(params, *inputs)`; `params` is any pytree of arrays,
    passed as one argument."""

    fn: Callable[..., Any]
    params: Any


class Mode(NamedTuple):
    """Train mode, or evaluation; with neither a module runs in its present mode."""

    train: bool = False
    evaluate: bool = False


@dataclass
class Pure:
    """A port as a pure function of its leaves.

    Attributes:
        call: `call(leaves, *inputs)`; a stateful one returns the output and the new state.
        leaves: the port's arrays, in their own dtypes.
        names: their names, "layers.0.kernel".
        kind: the library: "function", "nnx", "linen", "haiku", "pytree" or "keras".
        stateful: whether it returns a new state in addition to the output.
        batched: the same call for a batch, of a model of single examples; None where there is no
            such model.
    """

    call: Callable[..., Any]
    leaves: list[Any]
    names: list[str]
    kind: str
    stateful: bool = False
    batched: Callable[..., Any] | None = None


def called(fn: Callable[..., Any], mode: Mode, *args: Any) -> Any:
    """What `fn` returns, given the mode by the argument that it has for that."""
    return fn(*args, **mode_arguments(fn, mode))


def mode_arguments(fn: Callable[..., Any], mode: Mode) -> dict[str, Any]:
    """Arguments that choose between training and inference, by the names that libraries use."""
    try:
        parameters = inspect.signature(fn).parameters
    except (TypeError, ValueError):
        return {}
    train = mode.train
    values = {
        "train": train,
        "training": train,
        "is_training": train,
        "deterministic": not train,
        "inference": not train,
    }
    return {
        k: v
        for k, v in values.items()
        if k in parameters and parameters[k].default in (inspect.Parameter.empty, True, False, None)
    }


def path_name(path: Any) -> str:
    """The name of a leaf, "layers.0.kernel", from its path in a pytree."""
    parts = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
    return ".".join(parts)


def flattened(tree: Any) -> tuple[list[Any], list[str], Any]:
    """A pytree's leaves, their names and its structure."""
    found, structure = jax.tree_util.tree_flatten_with_path(tree)
    return [x for _, x in found], [path_name(p) for p, _ in found], structure


def is_of(value: Any, *packages: str) -> bool:
    """Whether the value's class, or one that it inherits, is defined in one of these packages;
    imports none of them."""
    return any(c.__module__.split(".")[0] in packages for c in type(value).__mro__)
