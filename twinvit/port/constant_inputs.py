"""Other values for inputs that are constant: with ones or zeros a flip, an order, or an input left
out cannot be seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from twinvit.port.ops import LAYOUT
from twinvit.port.record.graph import Graph


def constant_places(arrays: Sequence[np.ndarray]) -> list[int]:
    """Positions of the arrays of two numbers or more that are all equal and finite."""
    return [
        k
        for k, x in enumerate(arrays)
        if x.size > 1 and x.dtype.kind in "fiub" and np.isfinite(x.flat[0]) and _equal(x)
    ]


def varied_inputs(
    arrays: Sequence[np.ndarray], rows: Mapping[int, int], seed: int
) -> list[np.ndarray] | None:
    """The inputs with other values in the constant ones; None if there is none of these.

    Where all are constant, the largest floating-point array is data and becomes random. Else, and
    for the others: integers that choose rows become random ones of `rows`; zeros and ones are
    masks, of which each line's end is turned; others spread around what they were.

    Args:
        arrays: the first inputs.
        rows: how many rows the table has that an input of integers chooses from, by position.
        seed: of what is drawn.
    """
    places = constant_places(arrays)
    if not places:
        return None
    rng = np.random.default_rng(seed)
    result = list(arrays)
    informative = [k for k, x in enumerate(arrays) if x.size > 1 and k not in places]
    floats = [k for k in places if arrays[k].dtype.kind == "f"]
    data = max(floats, key=lambda k: arrays[k].size) if floats and not informative else None
    for k in places:
        x = arrays[k]
        if k == data:
            drawn = rng.standard_normal(x.shape)
            result[k] = (drawn if not x.any() else x * (1 + 0.3 * drawn)).astype(x.dtype)
        elif k in rows:
            result[k] = rng.integers(0, max(rows[k], 1), x.shape).astype(x.dtype)
        elif x.flat[0] in (0, 1):
            result[k] = _turned(x, rng)
        elif x.dtype.kind == "f":
            result[k] = (x * (1 + 0.2 * rng.standard_normal(x.shape))).astype(x.dtype)
        else:
            most = int(x.flat[0])  # a length, a step: none is zero
            whole = rng.integers(min(1, most), max(1, most) + 1, x.shape)
            result[k] = whole.astype(x.dtype)
    return result


def rows_of(graph: Graph) -> dict[int, int]:
    """How many rows the table has that an input of integers chooses from, by its position."""
    found = {}
    for k, i in enumerate(graph.inputs()):
        if graph.values.shaped(i).dtype not in (torch.int64, torch.int32):
            continue
        layer, sizes = [i], []
        for v in layer:
            for user in graph.consumers.get(v, ()):
                node = graph.nodes[user]
                if node.name in LAYOUT:
                    layer += [o for o in node.outs if o is not None and o not in layer]
                elif node.name == "embedding" and node.refs and v != node.refs[0]:
                    sizes.append(graph.values.shaped(node.refs[0]).shape[0])
        if sizes:
            found[k] = min(sizes)
    return found


def _turned(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Zeros and ones with the other one from a random place of each line on, but not from its
    first."""
    axis = max(k for k in range(x.ndim) if x.shape[k] > 1)
    size = x.shape[axis]
    shape = [1 if k == axis else n for k, n in enumerate(x.shape)]
    first = rng.integers(1, size, shape)
    place = np.arange(size).reshape([size if k == axis else 1 for k in range(x.ndim)])
    return np.where(place >= first, 1 - x.astype(np.float64), x).astype(x.dtype)


def _equal(x: np.ndarray) -> bool:
    return bool((x == x.flat[0]).all())
