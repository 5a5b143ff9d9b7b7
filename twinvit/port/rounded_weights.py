"""Weights that one side holds in a narrower dtype: reported, and the other's are rounded alike."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
import torch

from twinvit.port import verdict
from twinvit.port.hashed import hashes as _hashes
from twinvit.port.hashed import total as _sum
from twinvit.port.pair import Pair, Rounded, shortened
from twinvit.port.record import jax_types
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.report import Finding

if TYPE_CHECKING:
    from twinvit.port.comparison import Comparison

_TYPES = {
    torch.float64: np.dtype(np.float64),
    torch.float32: np.dtype(np.float32),
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(jnp.bfloat16),
}
MOST_PARTS = 64  # slices of one array that are looked at along an axis
FEW = 64  # numbers of an array that are looked at first
_Arrays = Mapping[str, tuple[np.ndarray, np.dtype]]
"""Arrays in float64 by name, each with the type that it is held in."""


def round_alike(pair: Pair) -> None:
    """Round the weights of one side that are the other's in a narrower type, for `tell_rounded`.

    What is rounded: an array that the other side holds once it is rounded to a type of that side's,
    in any layout, stacked, fused or split, and does not hold before. A side all of whose weights
    are numbers of a narrower dtype than they are stored in holds them in that one. Neither model
    that was given is changed.
    """
    model = pair.torch_model
    if not isinstance(model, torch.nn.Module):
        return
    tensors = {
        name: t
        for name, t in [*model.named_parameters(), *model.named_buffers()]
        if t.dtype in _TYPES
    }
    floats = {
        name: leaf
        for name, leaf in zip(pair.pure.names, pair.pure.leaves)
        if hasattr(leaf, "dtype") and leaf.dtype in _TYPES.values()  # NumPy takes None for float64
    }
    kept_mine = _kept_in({n: (t.detach().cpu(), _TYPES[t.dtype]) for n, t in tensors.items()})
    kept_theirs = _kept_in({n: (x, np.dtype(x.dtype)) for n, x in floats.items()})
    mine_types = set(kept_mine.values())
    if set(kept_theirs.values()) <= mine_types and len(mine_types) < 2:
        return
    mine: _Arrays = {n: (_wide(t.detach().cpu()), kept_mine[n]) for n, t in tensors.items()}
    theirs: _Arrays = {n: (_wide(x), kept_theirs[n]) for n, x in floats.items()}
    _round_reference(pair, _rounded(mine, theirs))
    _round_port(pair, _rounded(theirs, mine))


def _wide(x: Any) -> np.ndarray:
    return x.double().numpy() if isinstance(x, torch.Tensor) else np.asarray(x).astype(np.float64)


def _kept_in(arrays: Mapping[str, tuple[Any, np.dtype]]) -> dict[str, np.dtype]:
    """The type of each array's elements: its own, or the narrower one that all numbers of all
    arrays are of; one array of such numbers alone proves no intent."""
    own = {name: dtype for name, (_, dtype) in arrays.items()}
    for narrow in (_TYPES[torch.bfloat16], _TYPES[torch.float16], _TYPES[torch.float32]):
        wider = [n for n, dtype in own.items() if dtype.itemsize > narrow.itemsize]
        if wider and all(_exact(_wide(arrays[n][0].reshape(-1)[:FEW]), narrow) for n in wider):
            if all(_exact(_wide(arrays[n][0]), narrow) for n in wider):
                return {n: narrow if n in wider else dtype for n, dtype in own.items()}
    return own


def _exact(value: np.ndarray, dtype: np.dtype) -> bool:
    """True if all these values are of the type."""
    with np.errstate(over="ignore"):
        return np.array_equal(value.astype(dtype).astype(np.float64), value, equal_nan=True)


def tell_rounded(pair: Pair, forward: Comparison) -> None:
    """Add to a comparison what `round_alike` has rounded: a finding for each side, and the outputs'
    distances with the weights as they were given."""
    if not pair.rounded:
        return
    session, program = forward.session, forward.program
    graph, theirs = session.graph, session.port_outputs
    params = graph.params()
    given = {n: x for r in pair.rounded if r.side == "reference" for n, x in r.given.items()}
    changed = {params[n]: torch.from_numpy(x) for n, x in given.items() if n in params}
    with torch.no_grad():
        values = graph.run({}, changed) if changed else {}
    held = {n: x for r in pair.rounded if r.side == "port" for n, x in r.given.items()}
    if held:
        leaves = pair.leaves
        names = enumerate(pair.pure.names)
        pair.leaves = leaves.replaced({k: held[n] for k, n in names if n in held})
        theirs = program.port(program.arrays, None)
        pair.leaves = leaves
    for k, (out, x) in enumerate(zip(graph.outputs, theirs)):
        mine = to_numpy(values.get(out, graph.values[out]))
        d = verdict.judge(mine, x, session.noise.elements.get(out))
        if d.relative > forward.before[k].relative:
            forward.before[k] = d
            forward.distance = max(forward.distance, d.relative)
    forward.findings = [*map(_finding, pair.rounded), *forward.findings]


def _finding(rounded: Rounded) -> Finding:
    names = list(rounded.given)
    far = max(verdict.relative(rounded.taken[n], x) for n, x in rounded.given.items())
    return Finding(
        "weights", rounded.cause, rounded.text, rounded.place or names[0], "", far, 0.0, names
    )


def _round_reference(pair: Pair, rounded: Mapping[str, tuple[np.ndarray, np.dtype]]) -> None:
    if not rounded:
        return
    pair.torch_model = copy.deepcopy(pair.torch_model)
    tensors = dict(pair.torch_model.named_parameters()) | dict(pair.torch_model.named_buffers())
    given = {name: _wide(tensors[name].detach().cpu()).copy() for name in rounded}
    for name, (value, _) in rounded.items():
        tensors[name].data.copy_(torch.from_numpy(value))
    taken = {name: value for name, (value, _) in rounded.items()}
    pair.rounded.append(Rounded("reference", given, taken, _text("reference", "port", rounded)))


def _round_port(pair: Pair, rounded: Mapping[str, tuple[np.ndarray, np.dtype]]) -> None:
    if not rounded:
        return
    given = {n: x for n, x in zip(pair.pure.names, pair.leaves) if n in rounded}
    taken = {name: value for name, (value, _) in rounded.items()}
    for i, name in enumerate(pair.pure.names):
        if name in rounded:
            pair.leaves[i] = jax_types.widen(rounded[name][0])
    pair.rounded.append(Rounded("port", given, taken, _text("port", "reference", rounded)))


def _text(side: str, other: str, rounded: Mapping[str, tuple[np.ndarray, np.dtype]]) -> str:
    types = " and ".join(sorted({dtype.name for _, dtype in rounded.values()}))
    return (
        f"the {other} holds {len(rounded)} weights of the {side} rounded to {types}: "
        f"{shortened(list(rounded))}; the rest was compared with the {side} rounded alike"
    )


def _rounded(arrays: _Arrays, others: _Arrays) -> dict[str, tuple[np.ndarray, np.dtype]]:
    """The arrays that are among `others` only once they are rounded to the type of those."""
    found: dict[str, tuple[np.ndarray, np.dtype]] = {}
    for dtype in dict.fromkeys(d for _, d in others.values()):
        held = _Held([x for x, d in others.values() if d == dtype])
        for name, (value, own) in arrays.items():
            if name in found or dtype.itemsize >= own.itemsize or not value.size:
                continue
            if _exact(value, dtype):
                continue
            with np.errstate(over="ignore"):
                narrow = value.astype(dtype).astype(np.float64)
            if held.holds(narrow):
                found[name] = (narrow, dtype)
    wide = _Held([x for x, _ in others.values()])
    return {name: x for name, x in found.items() if not wide.holds(arrays[name][0])}


class _Held:
    """Arrays of one type: do they hold given numbers, in any layout?

    Numbers of a narrow type are few: that each occurs somewhere says nothing. So the elements of a
    whole array are looked up, of a slice of one (also of one layer of a stack), or of several that
    are slices of what is given. Arrays are identified by the sum of their elements' hashes,
    whatever their order.
    """

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.hashes = [_hashes(x) for x in arrays if x.size]
        self.whole = {(h.size, _sum(h)) for h in self.hashes}
        self._slices: dict[tuple[int, int, int], set[int]] = {}

    def holds(self, array: np.ndarray) -> bool:
        hashes = _hashes(array)
        total = _sum(hashes)
        return (
            (array.size, total) in self.whole
            or self._in_one(array.size, total)
            or self._in_several(hashes)
        )

    def _in_one(self, size: int, total: int) -> bool:
        """Whether so many elements of this sum are a slice of one of the arrays."""
        for i, h in enumerate(self.hashes):
            for axis, length in enumerate(h.shape):
                # Of the whole, or of one layer of a stack.
                for layers in {1, h.shape[0]} if axis and h.shape[0] <= MOST_PARTS else {1}:
                    part = _length(size * layers, h.size, length)
                    if part and total in self._slices_of(i, axis, part):
                        return True
        return False

    def _slices_of(self, i: int, axis: int, part: int) -> set[int]:
        """The sums of the slices of so many along an axis, one after the other, and the last."""
        if (i, axis, part) not in self._slices:
            h = self.hashes[i]
            length = h.shape[axis]
            starts = [*range(0, length - part + 1, part), length - part]
            rows = [slice(at, at + part) for at in starts]
            margin = h.reshape(-1, length, int(np.prod(h.shape[axis + 1 :]))).sum(2)
            sums = {_sum(margin[:, at]) for at in rows}
            if axis and h.shape[0] <= MOST_PARTS:
                layers = margin.reshape(h.shape[0], -1, length).sum(1)
                sums |= {_sum(layer[at]) for layer in layers for at in rows}
            self._slices[i, axis, part] = sums
        return self._slices[i, axis, part]

    def _in_several(self, hashes: np.ndarray) -> bool:
        """Whether some of the arrays, one after the other along an axis, make up these values."""
        for axis, length in enumerate(hashes.shape):
            step = hashes.size // length
            margin = hashes.sum(tuple(a for a in range(hashes.ndim) if a != axis), dtype=np.uint64)
            parts = {_length(h.size, hashes.size, length) for h in self.hashes} - {0}
            start = 0
            for _ in range(MOST_PARTS):
                fitting = (
                    start + part
                    for part in sorted(parts, reverse=True)
                    if start + part <= length
                    and (part * step, _sum(margin[start : start + part])) in self.whole
                )
                start = next(fitting, 0)
                if start in (0, length):
                    break
            if start == length:
                return True
        return False


def _length(size: int, whole: int, length: int) -> int:
    """How many along an axis of `length` make up `size` of `whole` numbers; 0 where none do."""
    part, rest = divmod(size * length, whole)
    return part if not rest and 1 <= part <= length <= part * MOST_PARTS else 0
