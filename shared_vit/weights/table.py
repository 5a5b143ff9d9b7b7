"""How canonical arrays are stored in another format's file: names, shapes, how many tensors."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from shared_vit.errors import UserError, some
from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig
from shared_vit.weights.lazy import Arrays, LazyArray


def _same(array: np.ndarray) -> np.ndarray:
    return array


@dataclass(frozen=True)
class Piece:
    """An array of the file that holds a canonical array, or its rows from `rows[0]` to `rows[1]`.

    `layer` picks one layer of an array that stacks all layers along its first axis; `shape` is
    without that axis. `of` picks rows of an array that holds several canonical ones, which have all
    of its rows together; `shape` is of these rows.
    """

    name: str
    shape: tuple[int, ...]
    to_canonical: Callable[[np.ndarray], np.ndarray] = _same
    to_file: Callable[[np.ndarray], np.ndarray] = _same
    rows: tuple[int, int] | None = None
    layer: int | None = None
    of: tuple[int, int] | None = None


# Canonical name: the file's tensors that make it, joined along axis 0.
Table = dict[str, list[Piece]]


def plain(name: str, shape: tuple[int, ...]) -> Piece:
    """The canonical array as it is."""
    return Piece(name, shape)


def transposed(name: str, shape: tuple[int, ...]) -> Piece:
    """A product's weight [out, in] stored as [in, out]."""
    return Piece(name, shape[::-1], np.transpose, np.transpose)


def channels_last(name: str, shape: tuple[int, ...]) -> Piece:
    """A convolution's weight OIHW stored as HWIO."""
    o, i, h, w = shape
    return Piece(
        name, (h, w, i, o), lambda a: a.transpose(3, 2, 0, 1), lambda a: a.transpose(2, 3, 1, 0)
    )


def split_qkv(names: list[str], make: Callable[[str], Piece], width: int) -> list[Piece]:
    """q, k and v, stored apart under `names`, as the rows of the canonical `qkv`."""
    spans = [(i * width, (i + 1) * width) for i in range(3)]
    return [dataclasses.replace(make(name), rows=span) for name, span in zip(names, spans)]


def split_heads(name: str, width: int, heads: int) -> Piece:
    """A weight of q, k or v, [out, in], stored as [in, heads, width of a head]."""
    return Piece(
        name,
        (width, heads, width // heads),
        lambda a: a.reshape(width, width).T,
        lambda a: a.T.reshape(width, heads, width // heads),
    )


def split_heads_bias(name: str, width: int, heads: int) -> Piece:
    """A bias of q, k or v, [width], stored as [heads, width of a head]."""
    shape = (heads, width // heads)
    return Piece(name, shape, np.ravel, lambda a: a.reshape(shape))


def joined_heads(name: str, width: int, heads: int) -> Piece:
    """The weight of attention's output, [out, in], stored as [heads, width of a head, out]."""
    shape = (heads, width // heads, width)
    return Piece(name, shape, lambda a: a.reshape(width, width).T, lambda a: a.T.reshape(shape))


def without_prefix_rows(name: str, cfg: ModelConfig) -> Piece:
    """`pos_embed` [1, tokens, width] stored without the rows of prefix tokens, which are zero."""
    shape, prefix = (1, cfg.num_patches, cfg.width), cfg.num_prefix
    if not prefix:
        return Piece(name, shape)
    zeros = (1, prefix, cfg.width)
    return Piece(
        name,
        shape,
        lambda a: np.concatenate([np.zeros(zeros, a.dtype), a], axis=1),
        lambda a: a[:, prefix:],
    )


def to_canonical(
    cfg: ModelConfig, table: Table, arrays: Arrays, where: str
) -> dict[str, LazyArray]:
    """Canonical arrays, in canonical order, made from the file's on access.

    Reading one raises UserError where its values are not finite.
    """
    return {
        name: _joined(shape, table[name], arrays, where)
        for name, shape in canonical.shapes(cfg).items()
    }


def _joined(shape: tuple[int, ...], pieces: list[Piece], arrays: Arrays, where: str) -> LazyArray:
    def load() -> np.ndarray:
        parts = []
        for piece in pieces:
            array = finite(arrays[piece.name], piece.name, where)
            array = array if piece.layer is None else array[piece.layer]
            array = array if piece.of is None else array[slice(*piece.of)]
            parts.append(piece.to_canonical(array))
        return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))

    dtype = np.result_type(*(arrays[piece.name].dtype for piece in pieces))
    return LazyArray(shape, dtype, load)


def finite(array: np.ndarray | LazyArray, name: str, where: str) -> np.ndarray:
    """The array, read. Raises UserError, with the file's own name of it, for NaN and infinity."""
    values = np.asarray(array)
    if is_float(values.dtype) and not np.isfinite(values).all():
        count = int(values.size - np.isfinite(values).sum())
        raise UserError(
            f"{where}: the tensor {name} has {count} values that are not finite; expected finite "
            "only"
        )
    return values


def to_file(table: Table, arrays: Arrays) -> dict[str, LazyArray]:
    """The file's arrays, made from canonical ones on access."""
    made: dict[str, list[tuple[tuple[int, int], LazyArray]]] = {}
    for name, pieces in table.items():
        for piece in pieces:
            cut = _cut(piece, arrays[name])
            if piece.of is None:
                made[piece.name] = [((0, 0), cut)]
            else:
                made.setdefault(piece.name, []).append((piece.of, cut))
    return {
        name: _stacked([cut for _, cut in sorted(parts, key=lambda part: part[0])])
        for name, parts in made.items()
    }


def _stacked(parts: list[LazyArray]) -> LazyArray:
    """Rows of an array that holds several canonical ones, in order."""
    if len(parts) == 1:
        return parts[0]
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    dtype = np.result_type(*(part.dtype for part in parts))
    return LazyArray(shape, dtype, lambda: np.concatenate([np.asarray(part) for part in parts]))


def _cut(piece: Piece, array: np.ndarray | LazyArray) -> LazyArray:
    def load() -> np.ndarray:
        return np.ascontiguousarray(piece.to_file(np.asarray(array)[slice(*piece.rows or (None,))]))

    return LazyArray(piece.shape, array.dtype, load)


def check(table: Table, arrays: Arrays, where: str, about: str) -> None:
    """Raise UserError, in the file's own names, unless `arrays` has exactly what `table` says."""
    pieces = [piece for group in table.values() for piece in group]
    layers = Counter(piece.name for piece in pieces)
    rows = Counter({p.name: 0 for p in pieces})
    for p in pieces:
        rows[p.name] = max(rows[p.name], p.of[1] if p.of else 0)
    expected = {
        p.name: (rows[p.name], *p.shape[1:])
        if p.of
        else p.shape
        if p.layer is None
        else (layers[p.name], *p.shape)
        for p in pieces
    }
    wrong = [
        f"{name} has shape {tuple(arrays[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in arrays and tuple(arrays[name].shape) != shape
    ]
    missing = [f"{name} {shape}" for name, shape in expected.items() if name not in arrays]
    extra = [name for name in arrays if name not in expected]
    not_float = [
        f"{name} is {a.dtype}, expected floats"
        for name, a in arrays.items()
        if not is_float(a.dtype)
    ]
    kinds = (("", wrong), ("missing: ", missing), ("unknown: ", extra), ("", not_float))
    faults = [label + some(items, separator=", ") for label, items in kinds if items]
    if faults:
        raise UserError(f"{where} is not {about}: {'; '.join(faults)}")


def is_float(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"


def count_layers(pattern: str, names: Mapping[str, object]) -> int:
    """How many layers the names count from 0 without a gap; `pattern` has one group, the number."""
    found = {int(m[1]) for name in names if (m := re.match(pattern, name)) and len(m[1]) < 6}
    return next(i for i in range(len(found) + 1) if i not in found)


def side_of(rows: int) -> int | None:
    """The side of a square grid of `rows` patches; None if there is no such square."""
    side = math.isqrt(max(rows, 0))
    return side if side and side * side == rows else None
