"""Which arrays of what the two models return are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from twinvit.port import record_jax, record_torch
from twinvit.port.record_torch import preferred


def labelled(
    traced: record_jax.Traced, outs: Sequence[Any], pure: record_jax.Pure
) -> list[tuple[str, Any]]:
    """The port's output by its labels, the new state left out."""
    named = zip(traced.labels, outs)
    if not pure.stateful:
        return list(named)
    return [
        (n.removeprefix("0").removeprefix("."), x) for n, x in named if n == "0" or n[:2] == "0."
    ]


def pair_outputs(
    graph: record_torch.Graph, mine: list[tuple[str, Any]], theirs: list[tuple[str, Any]]
) -> None:
    """Choose the arrays that are compared, in place."""
    if len(mine) == len(theirs) == 1:
        return
    if len(mine) == len(theirs) and all(
        int(np.prod(a.shape)) == int(np.prod(b.shape)) for (_, a), (_, b) in zip(mine, theirs)
    ):
        return
    a, b = preferred(mine), preferred(theirs)
    keep = [k for k, (n, _) in enumerate(mine) if n == a[0][0]][:1]
    graph.outputs[:] = [graph.outputs[k] for k in keep]
    theirs[:] = b
