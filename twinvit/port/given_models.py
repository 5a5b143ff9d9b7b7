"""The two models that `explain` is given: exchanged, half given, wrapped, without numbers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch

from twinvit.port.errors import PortError
from twinvit.port.models import Function, equinox

_COLLECTIONS = ("params", "batch_stats", "cache", "intermediates", "constants", "state")


def check_not_exchanged(torch_model: Any, jax_model: Any) -> None:
    """Raises PortError where a side holds the other framework's model."""
    mine, theirs = _jax_kind(torch_model), _torch_kind(jax_model)
    if mine and (theirs or callable(jax_model) and not _jax_kind(jax_model)):
        raise PortError(
            f"the models are exchanged: torch_model is {mine}, jax_model is "
            f"{theirs or 'a function'}; give the PyTorch model first"
        )
    if theirs and callable(torch_model) and not _torch_kind(torch_model):
        raise PortError(
            f"the models are exchanged: torch_model is a function, jax_model is {theirs}; "
            "give the PyTorch model first"
        )
    if mine:
        raise PortError(f"torch_model is {mine}, a JAX model; give the PyTorch model first")
    if theirs:
        raise PortError(f"jax_model is {theirs}, a PyTorch model; give the port in its place")


def checked_torch(model: Any, kinds: tuple[str, ...], notes: list[str]) -> Any:
    """The PyTorch model without wrappers.

    Raises:
        PortError: it is no model, or its parameters hold no numbers.
    """
    if isinstance(model, type):
        raise PortError(f"torch_model is the class {model.__name__}; give an instance of it")
    if isinstance(model, Mapping):
        raise PortError(
            f"torch_model is a state_dict or another mapping ({len(model)} entries), which does "
            "not compute anything; build the module and load_state_dict it"
        )
    if not callable(model):
        raise PortError(
            f"torch_model is {_article(type(model).__name__)}, which cannot be called; give an "
            "nn.Module or a function of tensors"
        )
    if not isinstance(model, torch.nn.Module):
        return model
    model = _unwrapped(model, notes)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    meta = [name for name, t in tensors if t.is_meta]
    if meta:
        raise PortError(
            f"{len(meta)} parameters of the PyTorch model are on the meta device and hold no "
            f"numbers ({meta[0]} first); load its weights before it is compared"
        )
    devices = {str(t.device) for _, t in tensors} - {"cpu"}
    if devices:
        notes.append(f"the PyTorch model was copied from {', '.join(sorted(devices))} to the CPU")
    if model.training and "train" not in kinds:
        notes.append(
            "the PyTorch model is in train mode; it was run in evaluation mode "
            '(what="train" compares train mode)'
        )
    return model


def checked_jax(model: Any, notes: list[str]) -> Any:
    """The port as a pair, an nnx.Module, a callable pytree or a `Function`.

    Raises:
        PortError: it is half of a model, or its arrays hold no numbers.
    """
    if isinstance(model, type):
        raise PortError(f"jax_model is the class {model.__name__}; give an instance of it")
    if isinstance(model, list) and len(model) == 2:
        model = tuple(model)
    model = _merged(model)
    _check_jax(model)
    scope = getattr(model, "scope", None)
    if _kind(model) == "a Linen module" and scope is not None:
        model = model.unbind()  # (module, variables)
    if _kind(model) == "a Linen module":
        raise PortError(
            f"jax_model is the Linen module {type(model).__name__} without its variables; give "
            "(module, variables)"
        )
    if isinstance(model, tuple) and len(model) == 2 and not equinox.accepts(model):
        _check_pair(*model)
    return _with_generators(model, notes)


def _with_generators(model: Any, notes: list[str]) -> Any:
    """The port with random generators that hold no numbers started at 0: a converter that makes a
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
            f"jax_model is {_article(type(model).__name__)}, a training state; give "
            '(linen_module, {"params": state.params})'
        )
    if not callable(model) and hasattr(model, "init") and hasattr(model, "apply"):
        raise PortError(
            f"jax_model is {_article(type(model).__name__)} without its parameters; give "
            "(transformed, params)"
        )
    pair = isinstance(model, tuple) and len(model) == 2
    if not callable(model) and not isinstance(model, Function) and not pair:
        raise PortError(
            f"jax_model is {_article(type(model).__name__)}, which cannot be called; give an "
            "nnx.Module, (linen_module, variables), a callable pytree or port.Function(fn, params)"
        )


def _check_pair(module: Any, variables: Any) -> None:
    if not hasattr(module, "apply"):
        if hasattr(variables, "apply"):
            raise PortError("jax_model is (variables, module); give (module, variables)")
        raise PortError(
            f"jax_model is a pair of {_article(type(module).__name__)} and "
            f"{_article(type(variables).__name__)}; give (linen_module, variables), or "
            "port.Function(fn, params) for a function"
        )
    if isinstance(module, type):
        raise PortError(f"jax_model holds the class {module.__name__}; give an instance of it")
    if _kind(module) != "a Linen module" or not isinstance(variables, Mapping) or not variables:
        return
    if not any(name in variables for name in _COLLECTIONS):
        raise PortError(
            'the Linen variables have no collection "params" (they have '
            f'{", ".join(map(str, list(variables)[:6]))}); give (module, {{"params": params}})'
        )


def _unwrapped(model: Any, notes: list[str]) -> Any:
    """The module within torch.compile, DataParallel and DistributedDataParallel."""
    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(getattr(model, "_orig_mod", None), torch.nn.Module):
            inner = model._orig_mod
        elif isinstance(model, parallel):
            inner = model.module
        else:
            return model
        notes.append(
            f"the PyTorch model is wrapped in {type(model).__name__}; the {type(inner).__name__} "
            "within was compared"
        )
        model = inner


def _merged(model: Any) -> Any:
    """The nnx.Module of what `nnx.split` returned; anything else as it is."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None or not isinstance(model, tuple) or not model:
        return model
    return nnx.merge(*model) if isinstance(model[0], nnx.GraphDef) else model


def _torch_kind(model: Any) -> str:
    """What a PyTorch model is, in words; "" for anything else."""
    cls = model if isinstance(model, type) else type(model)
    if not issubclass(cls, torch.nn.Module):
        return ""
    return f"the class {cls.__name__}" if cls is model else f"the nn.Module {cls.__name__}"


def _jax_kind(model: Any) -> str:
    """What a JAX model is, in words; "" for anything else."""
    if isinstance(model, Function):
        return "a port.Function"
    if isinstance(model, tuple | list) and len(model) == 2:
        kinds = [_kind(part) for part in model]
        return f"a pair with {''.join(kinds)}" if any(kinds) else ""
    if type(model).__name__ == "PjitFunction":
        return "a function of jax.jit"
    kind = _kind(model)
    name = getattr(model, "__name__", None) or type(model).__name__
    return f"{kind} ({name})" if kind else ""


def _kind(model: Any) -> str:
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


def _article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
