"""The reference as it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from twinvit.port.native.result import Named
from twinvit.port.outputs import pick_torch
from twinvit.port.pair import Pair
from twinvit.port.record import torch_values
from twinvit.port.record.graph import flat_tensors
from twinvit.port.record.torch_place import where_in_user_code


@contextlib.contextmanager
def _eager() -> Iterator[None]:
    stance = getattr(torch.compiler, "set_stance", None)
    with stance("force_eager") if stance is not None else contextlib.nullcontext(), torch.no_grad():
        yield


def torch_outputs(pair: Pair, train: bool) -> Named:
    """The reference's compared outputs as it runs; of a recording those that it returned."""
    recorded = getattr(pair.torch_model, "as_it_ran", None)
    found = None if recorded is None else recorded(train)
    if found is not None:
        return pick_torch(found, pair.output)
    model, names, tries = torch_values.as_given(pair.torch_model, pair.inputs, train)
    with _eager():
        for k, tensors in enumerate(tries):
            try:
                return pick_torch(torch_values.call(model, names, tensors), pair.output)
            except Exception:
                if k == len(tries) - 1:
                    raise
    raise AssertionError


class _FirstBroken(TorchDispatchMode):
    """Remembers which operation first made infinity or NaN of finite values, for each tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.origin: dict[int, tuple[torch.Tensor, str]] = {}  # the tensor is kept: ids are reused

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        where = where_in_user_code()
        out = func(*args, **kwargs)
        leaves = tree_flatten((args, kwargs))[0]
        known = [
            self.origin[id(t)][1]
            for t in leaves
            if isinstance(t, torch.Tensor) and id(t) in self.origin
        ]
        told = any(isinstance(x, float) and not np.isfinite(x) for x in leaves)
        for t in flat_tensors(out):
            if t is None or not (t.is_floating_point() or t.is_complex()) or not t.numel():
                continue
            if not bool(torch.isfinite(t).all()):
                # an infinity that was requested is no fault until it makes NaN
                fresh = "" if told and not bool(t.isnan().any()) else where
                kept = next((k for k in known if k), fresh)
                self.origin[id(t)] = (t, kept)
        return out


def torch_place(pair: Pair, train: bool) -> dict[str, str]:
    """The reference's first place that breaks each output; empty if it cannot be determined."""
    try:
        model, names, tries = torch_values.as_given(pair.torch_model, pair.inputs, train)
        watch = _FirstBroken()
        for tensors in tries:
            try:
                with _eager(), watch:
                    out = torch_values.call(model, names, tensors)
            except Exception:
                continue
            return {
                name: watch.origin.get(id(t), (t, ""))[1]
                for name, t in pick_torch(out, pair.output)
            }
    except Exception:
        pass
    return {}
