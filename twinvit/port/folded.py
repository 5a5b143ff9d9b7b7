"""Weights that a converter folded in a narrow type: b_ih + b_hh, batch norm into a convolution.

The port is right to that type's rounding. This is proven by folding the reference's weights in
float64, loading them into the port, and comparing again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from twinvit.port import verdict
from twinvit.port.comparison import Comparison
from twinvit.port.hashed import whole
from twinvit.port.pair import Pair
from twinvit.port.record.graph import Graph, Node, Ref
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.report import Finding

NEAR = 1e-4  # relative L2: outputs that are further apart are so for another reason
ULPS = 8  # last places of float32 that folding rounds away at most
PARTS = (1, 2, 3, 4)  # equal parts along the first axis, as a converter cuts gates


@dataclass
class Fold:
    """A value made of the reference's parameters.

    Attributes:
        text: how, "rnn.bias_ih_l0 + rnn.bias_hh_l0".
        place: the module's name.
        value: in float64.
        size: of each number, the largest term of its sum.
    """

    text: str
    place: str
    value: np.ndarray
    size: np.ndarray


def unfold(pair: Pair, comparison: Comparison) -> list[Finding]:
    """Substitute weights folded in float64 for the port's, where those are the same folded in
    float32; a finding of kind "precision" for each."""
    if comparison.agrees or not 0 < comparison.distance < NEAR:
        return []
    graph = comparison.recorded.graph
    held = {_key(to_numpy(graph.values[i])) for i in graph.params().values()}
    folds: list[Fold] | None = None
    findings = []
    for k, leaf in enumerate(pair.leaves):
        if not _folded(leaf) or _key(leaf) in held:
            continue
        if folds is None:
            folds = [part for fold in _folds(graph) for part in _parts(fold)]
        for fold in folds:
            placed = _placed(fold, leaf)
            if placed is None:
                continue
            if np.array_equal(placed, leaf):
                break  # nothing was rounded away
            far = verdict.relative(placed, leaf)
            name = pair.pure.names[k]
            text = f"the port's {name} is {fold.text}, folded in float32: {far:.1e} apart"
            pair.leaves[k] = placed
            findings.append(
                Finding("precision", "", text, fold.place, name, far, 0.0, [fold.place])
            )
            break
    return findings


def _folded(leaf: object) -> bool:
    """True for an array that can have been made in float32."""
    return (
        isinstance(leaf, np.ndarray)
        and leaf.dtype == np.float64
        and leaf.size > 1
        and bool((leaf.astype(np.float32) == leaf).all())
    )


def _key(x: np.ndarray) -> tuple[int, int]:
    return x.size, whole(x) if x.dtype == np.float64 else -1


def _folds(graph: Graph) -> Iterator[Fold]:
    params = {n: to_numpy(graph.values[i]) for n, i in graph.params().items()}
    floats = {n: x for n, x in params.items() if x.dtype == np.float64 and x.ndim == 1}
    for (a, x), (b, y) in itertools.combinations(floats.items(), 2):
        module = a.rpartition(".")[0]
        if x.shape == y.shape and module == b.rpartition(".")[0]:
            yield Fold(f"{a} + {b}", module, x + y, np.maximum(abs(x), abs(y)))
            if len(x) % 3 == 0:  # a GRU's, whose reset gate is applied to the state's last third
                kept = np.where(np.arange(len(x)) < len(x) // 3 * 2, y, 0.0)
                text = f"{a} + {b} but for the last third"
                yield Fold(text, module, x + kept, np.maximum(abs(x), abs(kept)))
    for node in graph.nodes:
        if node.name in ("native_batch_norm", "cudnn_batch_norm", "batch_norm"):
            yield from _normalised(graph, node)


def _normalised(graph: Graph, norm: Node) -> Iterator[Fold]:
    """A batch norm in the product before it, and by itself: weight and bias."""

    def of(arg: object) -> np.ndarray | None:
        return to_numpy(graph.values[arg.id]) if isinstance(arg, Ref) else None

    gamma, beta, mean, var = (of(a) for a in norm.args[1:5])
    eps = norm.args[-1]
    if mean is None or var is None or not isinstance(eps, float):
        return
    scale = (1.0 if gamma is None else gamma) / np.sqrt(var + eps)
    shift = np.zeros_like(mean) if beta is None else beta
    yield Fold(f"the scale of {norm.scope}", norm.scope, scale, abs(scale))
    terms = np.maximum(abs(shift), abs(mean * scale))
    yield Fold(f"the shift of {norm.scope}", norm.scope, shift - mean * scale, terms)
    producer = graph.producer[norm.refs[0]]
    if producer is None:
        return
    before = graph.nodes[producer]
    dependent = graph.input_dependent()
    held = {i: name for name, i in graph.params().items()}
    above = [r for ref in before.refs if ref not in dependent for r in graph.ancestors(ref)]
    for ref in above:
        weight = to_numpy(graph.values[ref])
        if ref not in held or weight.shape[:1] != scale.shape:
            continue
        name = held[ref]
        if weight.ndim == 1:
            value = shift + (weight - mean) * scale
            terms = np.maximum(abs(shift), np.maximum(abs(weight), abs(mean)) * abs(scale))
        else:
            value = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
            terms = abs(value)
        yield Fold(f"{name} with {norm.scope}", norm.scope, value, terms)


def _parts(fold: Fold) -> Iterator[Fold]:
    rows = len(fold.value)
    for n in PARTS:
        if rows % n:
            continue
        values, sizes = np.split(fold.value, n), np.split(fold.size, n)
        for i, (value, size) in enumerate(zip(values, sizes)):
            where = "" if n == 1 else f", part {i + 1} of {n}"
            yield Fold(fold.text + where, fold.place, value, size)


def _placed(fold: Fold, leaf: np.ndarray) -> np.ndarray | None:
    """The fold in the port's layout, if the port's array is nothing but it rounded."""
    if fold.value.size != leaf.size:
        return None
    for layout in verdict.layouts(fold.value.shape, leaf.shape)[:24]:
        value = verdict.arrange(fold.value, layout)
        bound = ULPS * 2.0**-24 * np.maximum(verdict.arrange(fold.size, layout), 1e-30)
        if (abs(value - leaf) <= bound).all():
            return np.ascontiguousarray(value)
    return None
