"""The PyTorch model that `explain` is given: wrapped ones, incomplete ones, ones without values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from twinvit.port.errors import PortError, article


def checked_torch(model: Any, kinds: tuple[str, ...], notes: list[str]) -> Any:
    """The PyTorch model without wrappers.

    Raises:
        PortError: it is no model, or its parameters hold no values.
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
            f"torch_model is {article(type(model).__name__)}, which cannot be called; give an "
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
