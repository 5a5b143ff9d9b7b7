"""The JAX model that `explain` is given: incomplete ones, and ones without values."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from twinvit.port.errors import PortError, article
from twinvit.port.models import Function, equinox

_COLLECTIONS = ("params", "batch_stats", "cache", "intermediates", "constants", "state")


def checked_jax(model: Any, notes: list[str]) -> Any:
    """The port as a pair, an nnx.Module, a callable pytree or a `Function`.

    Raises:
        PortError: it is a part of a model, or its arrays hold no values.
    """
    if isinstance(model, type):
        raise PortError(f"jax_model is the class {model.__name__}; give an instance of it")
    if isinstance(model, list) and len(model) == 2:
        model = tuple(model)
    model = _merged(model)
    _check_jax(model)
    scope = getattr(model, "scope", None)
    if kind_of(model) == "a Linen module" and scope is not None:
        model = model.unbind()  # (module, variables)
    if kind_of(model) == "a Linen module":
        raise PortError(
            f"jax_model is the Linen module {type(model).__name__} without its variables; give "
            "(module, variables)"
        )
    if isinstance(model, tuple) and len(model) == 2 and not equinox.accepts(model):
        _check_pair(*model)
    return _with_generators(model, notes)


def _with_generators(model: Any, notes: list[str]) -> Any:
    """The port with random generators that hold no values started at 0: a converter that makes a
    model by `eval_shape` and loads its weights leaves them so. Other arrays must hold some."""
    tree = model.params if isinstance(model, Function) else model
    found, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves, started = [], []
    for path, leaf in found:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            name = jax.tree_util.keystr(path)
            value = _generator(leaf)
            if value is None:
                raise PortError(
                    f"the port's {name} is a ShapeDtypeStruct and holds no "
                    "numbers; load its weights before it is compared"
                )
            leaf = value
            started.append(name)
        leaves.append(leaf)
    if not started:
        return model
    notes.append(
        f"{len(started)} states of the port's random generators hold no numbers ({started[0]} "
        "first); they were started at 0"
    )
    tree = jax.tree_util.tree_unflatten(structure, leaves)
    return Function(model.fn, tree) if isinstance(model, Function) else tree


def _generator(leaf: jax.ShapeDtypeStruct) -> Any:
    """A key or a count of draws, for an array of their kind; else None."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        keys = jax.random.split(jax.random.key(0), leaf.shape) if leaf.shape else None
        return jax.random.key(0) if keys is None else keys
    if leaf.shape == () and leaf.dtype == np.uint32:
        return np.zeros((), np.uint32)
    return None


def _check_jax(model: Any) -> None:
    if isinstance(model, Mapping):
        raise PortError(
            f"jax_model is a dict ({len(model)} entries), which does not compute anything; give "
            "(linen_module, variables) or port.Function(fn, params)"
        )
    if hasattr(model, "apply_fn") and hasattr(model, "params"):
        raise PortError(
            f"jax_model is {article(type(model).__name__)}, a training state; give "
            '(linen_module, {"params": state.params})'
        )
    if not callable(model) and hasattr(model, "init") and hasattr(model, "apply"):
        raise PortError(
            f"jax_model is {article(type(model).__name__)} without its parameters; give "
            "(transformed, params)"
        )
    pair = isinstance(model, tuple) and len(model) == 2
    if not callable(model) and not isinstance(model, Function) and not pair:
        raise PortError(
            f"jax_model is {article(type(model).__name__)}, which cannot be called; give an "
            "nnx.Module, (linen_module, variables), a callable pytree or port.Function(fn, params)"
        )


def _check_pair(module: Any, variables: Any) -> None:
    if not hasattr(module, "apply"):
        if hasattr(variables, "apply"):
            raise PortError("jax_model is (variables, module); give (module, variables)")
        raise PortError(
            f"jax_model is a pair of {article(type(module).__name__)} and "
            f"{article(type(variables).__name__)}; give (linen_module, variables), or "
            "port.Function(fn, params) for a function"
        )
    if isinstance(module, type):
        raise PortError(f"jax_model holds the class {module.__name__}; give an instance of it")
    if kind_of(module) != "a Linen module" or not isinstance(variables, Mapping) or not variables:
        return
    if not any(name in variables for name in _COLLECTIONS):
        raise PortError(
            'the Linen variables have no collection "params" (they have '
            f'{", ".join(map(str, list(variables)[:6]))}); give (module, {{"params": params}})'
        )


def _merged(model: Any) -> Any:
    """The nnx.Module of what `nnx.split` returned; anything else as it is."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None or not isinstance(model, tuple) or not model:
        return model
    return nnx.merge(*model) if isinstance(model[0], nnx.GraphDef) else model


def kind_of(model: Any) -> str:
    """The library that a module's class, or a class itself, is of."""
    cls = model if isinstance(model, type) else type(model)
    for base in cls.__mro__:
        for start, kind in (
            ("flax.nnx.module", "an nnx.Module"),
            ("flax.linen.module", "a Linen module"),
            ("equinox._module", "an Equinox module"),
            ("keras.", "a Keras model"),
        ):
            if base.__module__.startswith(start) and base.__name__ in ("Module", "Model"):
                return kind
    return ""
