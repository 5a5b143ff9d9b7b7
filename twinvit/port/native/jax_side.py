"""The port as it runs: compiled if possible, in its own dtypes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from twinvit.port import models
from twinvit.port.native import overflows
from twinvit.port.native.result import Found, Named, NativeRun, first_line
from twinvit.port.outputs import labelled, pick
from twinvit.port.port_side import PortSide
from twinvit.port.record import jax_types
from twinvit.port.record.jax_outputs import Outputs, flattened
from twinvit.port.record.jax_settings import float64_on_cpu

# What a compiler computes is the same; a small program is compiled four times as fast.
_QUICK = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 0}


@contextlib.contextmanager
def narrow_on_cpu() -> Iterator[None]:
    with float64_on_cpu(), jax.enable_x64(False):
        yield


def jax_outputs(
    pair: PortSide, pure: models.Pure, arrays: Sequence[np.ndarray], native: NativeRun
) -> Named:
    """The port's compared outputs as it runs, compiled if it can be."""
    if pair.stored is not None:
        return named(pair, pure, pair.stored.as_it_ran(pair, native))
    return named(pair, pure, run_alone(pair, pure, arrays, native))


def run_alone(
    side: PortSide, pure: models.Pure, arrays: Sequence[np.ndarray], native: NativeRun
) -> Outputs:
    """All that the port returns as it runs."""
    leaves, inputs = side.own_leaves(), side.own_inputs(arrays)
    flat = flattened(pure.call)
    with narrow_on_cpu():
        try:
            lowered = jax.jit(flat).lower(leaves, *inputs)
            try:
                program = lowered.compile(_QUICK)
            except Exception:  # another version's names of options
                program = lowered.compile()
            outs = program(leaves, *inputs)
        except Exception as error:
            native.jitted = False
            outs = flat(jax.tree.map(_on_device, leaves), *map(jax.numpy.asarray, inputs))
            native.notes.append(
                f"the port does not compile under jax.jit ({first_line(error)}); it was run "
                "operation by operation"
            )
    outs.arrays = [np.asarray(x) if numeric(x) else x for x in outs.arrays]
    return outs


def named(pair: PortSide, pure: models.Pure, outputs: Outputs) -> Named:
    """The compared outputs by their names."""
    leaves = labelled(outputs.names, outputs.arrays, pure.stateful)
    return pick(leaves, pair.output, "JAX")


def _on_device(x: Any) -> Any:
    return jax.numpy.asarray(x) if isinstance(x, np.ndarray) else x


def numeric(x: Any) -> bool:
    return not jax_types.extended(getattr(x, "dtype", None))


def overflow(
    pair: PortSide, pure: models.Pure, arrays: Sequence[np.ndarray], outputs: Found
) -> str:
    """The first place of the port where an integer leaves its type as it runs, and none does in the
    comparison; of the outputs that are others for it. Empty if there is none."""
    leaves, inputs = pair.own_leaves(), pair.own_inputs(arrays)
    apart = {n for n, _, a, b in outputs if not np.allclose(a, b, rtol=1e-4, atol=0)}
    try:
        with float64_on_cpu():
            wide = [*pair.leaves, *arrays]
            closed = pair.wide_program(pure, arrays)
            known = frozenset(w for _, w in overflows.watched(closed, wide, len(leaves))[0].found)
        with narrow_on_cpu():
            closed, names = pair.own_program(pure, arrays)
            watch, ids = overflows.watched(closed, [*leaves, *inputs], len(leaves))
    except Exception:
        return ""
    found = (
        watch.first(x.id, known)
        for name, x in named(pair, pure, Outputs([Identified(i) for i in ids], names))
        if name in apart
    )
    return next((place for place in found if place is not None), "")


@dataclass
class Identified:
    """Stands for an array, for the choice of outputs."""

    id: int
    dtype: str = "float32"
    shape: tuple[int, ...] = ()
