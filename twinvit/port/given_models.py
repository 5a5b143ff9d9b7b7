"""The two models that `explain` is given: are they exchanged?"""

from __future__ import annotations

from typing import Any

import torch

from twinvit.port.errors import PortError
from twinvit.port.given_jax import kind_of
from twinvit.port.models import Function


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
        kinds = [kind_of(part) for part in model]
        return f"a pair with {''.join(kinds)}" if any(kinds) else ""
    if type(model).__name__ == "PjitFunction":
        return "a function of jax.jit"
    kind = kind_of(model)
    name = getattr(model, "__name__", None) or type(model).__name__
    return f"{kind} ({name})" if kind else ""
