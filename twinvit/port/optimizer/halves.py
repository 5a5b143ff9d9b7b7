"""16-bit types within optimizers, which are left out while formulas are compared.

`torch.optim.Muon` iterates in bfloat16, and a port may do the same or not: neither is a formula.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from twinvit.port.record import jax_trace
from twinvit.port.record.jax_interpreter import Interpreter

HALVES = (torch.bfloat16, torch.float16)


class _Wide(TorchDispatchMode):
    """float64 wherever a 16-bit type is requested."""

    def __init__(self) -> None:
        super().__init__()
        self.rounded: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = dict(kwargs or {})
        for name, value in given.items():
            if isinstance(value, torch.dtype) and value in HALVES:
                self.rounded.add(str(value).removeprefix("torch."))
                given[name] = torch.float64
        return func(*args, **given)


@contextlib.contextmanager
def halves_as_they_come() -> Iterator[set[str]]:
    """Run PyTorch with conversions to 16-bit types left out; gives the types that were asked
    for."""
    mode = _Wide()
    with mode:
        yield mode.rounded


def widened(update: Callable[..., Any], params: Any, state: Any) -> Callable[..., Any] | None:
    """An Optax step `update(params, state, gradients)` that asks for 16-bit types, without these;
    None for one that asks for none."""
    if not re.search(r"\b(bf16|f16)\b", str(jax.make_jaxpr(update)(params, state, params))):
        return None
    leaves, tree = jax.tree.flatten((params, state, params))
    out = jax.tree.structure(jax.eval_shape(update, params, state, params))
    leaves = [_wide(x) for x in leaves]
    traced = jax_trace.trace(
        lambda given: jax.tree.leaves(update(*jax.tree.unflatten(tree, given))), leaves, ()
    )

    def step(*args: Any) -> Any:
        given = [_wide(x) for x in jax.tree.leaves(args)]
        values, _ = jax_trace.evaluate(traced, given, [-1] * len(given), Interpreter())
        return jax.tree.unflatten(out, [np.asarray(v) for v in values])

    return step


def _wide(x: Any) -> np.ndarray:
    """An array in float64, if its elements are floating-point ones."""
    array = np.asarray(x)
    return array.astype(np.float64) if jax.numpy.issubdtype(array.dtype, np.floating) else array
