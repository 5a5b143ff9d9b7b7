"""Parameters that are zero everywhere, filled with the same values in both models: what goes into
them, and comes out of them, shows its order."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from twinvit.port.index import layouts
from twinvit.port.redraw import Weights

ORDERS = 6  # layouts that are tried of one array
TRIALS = 12  # of all of them
SHIFTS = ("bias", "beta", "mean")
"""Names of vectors that are added: a converter permutes them with the weights before them."""


@dataclass(frozen=True)
class ZeroPair:
    """An array of zeros of each side that may be each other's.

    Attributes:
        mine, theirs: positions among the reference's and the port's arrays.
        certain: no other array is as large, or both have one name, or one number of a layer.
        turns: the port may hold it with its axes in another order where the shapes do not say.
        plain: both have one name and one shape, and no axes to turn: there is one layout.
    """

    mine: int
    theirs: int
    certain: bool
    turns: bool
    plain: bool


def zero_pairs(
    mine: Sequence[np.ndarray],
    theirs: Sequence[np.ndarray],
    names: tuple[Sequence[str], Sequence[str]],
    layers: Container[str],
) -> list[ZeroPair]:
    """Arrays of zeros that may be each other's: of one size, of which both sides hold equally many,
    by their names, or in the order of these.

    Args:
        mine, theirs: the reference's arrays, and the port's.
        names: of both.
        layers: names of the reference's arrays that are weights of linear layers or convolutions.
    """
    sides = []
    for arrays, own in zip((mine, theirs), names):
        groups: dict[int, list[int]] = {}
        for i in sorted(range(len(arrays)), key=lambda i: _words(own[i])):
            if arrays[i].size > 1 and not arrays[i].any():
                groups.setdefault(arrays[i].size, []).append(i)
        sides.append(groups)
    found = []
    for size, places in sides[0].items():
        others = sides[1].get(size, [])
        if len(places) != len(others):
            continue
        group = [names[0][i] for i in places], [names[1][k] for k in others]
        named = any(
            _told_apart(*([key(n) for n in side] for side in group)) for key in (_words, _layer)
        )
        for i, k in zip(places, others):
            name = names[0][i]
            if mine[i].ndim > 1 or not any(word in name.lower() for word in SHIFTS):
                turns = name in layers
                alike = _words(name) == _words(names[1][k]) and mine[i].shape == theirs[k].shape
                certain = named or len(places) == 1
                found.append(ZeroPair(i, k, certain, turns, alike and not turns))
    return found


def unplaced(
    weights: Weights, pairs: Sequence[ZeroPair], agree: Callable[[Weights], bool]
) -> list[ZeroPair]:
    """The arrays of which no layout in the port makes the two agree, and
    whose equal in the port is certain.

    Args:
        weights: with which the two agree, these arrays of one number each.
        pairs: the arrays.
        agree: whether the two agree with other weights.
    """
    rng = np.random.default_rng(11)
    drawn = {
        p.mine: rng.uniform(0.5, 1.5, x.shape) * x for p in pairs for x in [weights.mine[p.mine]]
    }
    certain = [p for p in pairs if p.certain]
    for some in dict.fromkeys((tuple(pairs), tuple(certain))):
        filled = weights
        for p in some:
            x = drawn[p.mine]
            filled = _with(filled, p, x, next(_orders(x, weights.theirs[p.theirs].shape, p.turns)))
        if not some or agree(filled):
            return []
    lost, trials = [], 0
    for p in certain:
        x = drawn[p.mine]
        for order in _orders(x, weights.theirs[p.theirs].shape, p.turns):
            trials += 1
            if agree(_with(weights, p, x, order)):
                break
        else:
            lost.append(p)
        if trials > TRIALS:
            break
    return lost


def _orders(x: np.ndarray, shape: tuple[int, ...], turns: bool) -> Iterator[np.ndarray]:
    """The array in the layouts that have this shape, the likeliest first: as it is (with one shape
    and without `turns` that alone), a kernel's, its axes reversed."""
    if x.shape == shape and not turns:
        yield x
        return
    seen: list[np.ndarray] = []
    likely = [x] if x.shape == shape else []
    likely += [x.transpose(*range(2, x.ndim), 1, 0)] if x.ndim > 2 else []
    likely += [x.T.reshape(shape)]
    for y in [*likely, *layouts(x, shape)]:
        if y.shape == shape and not any(np.array_equal(y, z) for z in seen):
            seen.append(y)
            yield y
        if len(seen) >= ORDERS:
            return


def _with(weights: Weights, pair: ZeroPair, x: np.ndarray, y: np.ndarray) -> Weights:
    mine, theirs = list(weights.mine), list(weights.theirs)
    mine[pair.mine], theirs[pair.theirs] = x, y
    return replace(weights, mine=mine, theirs=theirs)


def _told_apart(mine: list[Any], theirs: list[Any]) -> bool:
    return mine == theirs and all(mine.count(key) == 1 and key is not None for key in mine)


def _layer(name: str) -> int | None:
    """The first number in a name: that of a block."""
    found = re.search(r"\d+", name)
    return int(found.group()) if found else None


def _words(name: str) -> list[tuple[int, str]]:
    """A parameter's name in parts, numbers by size; what frameworks call otherwise is one word."""
    parts = re.findall(r"\d+|[^\W\d_]+", name.lower())
    same = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
    return [
        (int(part), "") if part.isdigit() else (-1, same.get(part, part))
        for part in parts
        if part != "params"
    ]
