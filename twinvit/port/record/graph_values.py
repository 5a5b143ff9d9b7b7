"""The values of a recorded PyTorch program: parameters are kept in the model's own types.

A parameter that the program has in float64 is the model's own one widened: it is kept as it is in
the model, and widened each time that it is read; so are its other layouts (`weight.t()`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, overload

import torch

from twinvit.port.record.torch_values import WIDE

LEAST = 1 << 10  # numbers of a parameter that is kept in its own type


@dataclass(frozen=True, eq=False)
class Narrow:
    """A parameter in its own type."""

    own: torch.Tensor

    def tensor(self) -> torch.Tensor:
        """It in float64."""
        wide = _widened.get(self)
        if wide is None:
            wide = self.own.to(WIDE[self.own.dtype])
            _widened.put(self, wide)
        return wide

    def empty(self) -> torch.Tensor:
        """Its shape and type alone."""
        return torch.empty_like(self.own, dtype=WIDE[self.own.dtype], device="meta")


@dataclass
class _Widened:
    """Parameters that are held in float64 for a while: the first that are read, up to `room` bytes.
    One that something wrote to is made anew."""

    room: int = 0
    made: dict[Narrow, tuple[torch.Tensor, int]] = field(default_factory=dict)

    def get(self, narrow: Narrow) -> torch.Tensor | None:
        found, version = self.made.get(narrow, (None, 0))
        return found if found is not None and writes(found) == version else None

    def put(self, narrow: Narrow, wide: torch.Tensor) -> None:
        size = wide.nbytes
        if narrow in self.made:  # written to
            self.made[narrow] = wide, writes(wide)
        elif size <= self.room:
            self.room -= size
            self.made[narrow] = wide, writes(wide)


_widened = _Widened()


@contextlib.contextmanager
def held_in_float64(room: int) -> Iterator[None]:
    """For as long as this lasts the first parameters that are read are held in float64, up to
    `room` bytes: what runs the same few operations over and over need not widen them each time."""
    global _widened
    before, _widened = _widened, _Widened(room)
    try:
        yield
    finally:
        _widened = before


@dataclass(frozen=True, eq=False)
class Layout:
    """Another layout of a parameter."""

    of: Narrow
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def tensor(self) -> torch.Tensor:
        """It in float64."""
        return self.of.tensor().as_strided(self.size, self.stride, self.offset)

    def empty(self) -> torch.Tensor:
        """Its shape and type alone."""
        dtype = WIDE[self.of.own.dtype]
        return torch.empty_strided(self.size, self.stride, dtype=dtype, device="meta")


Kept: TypeAlias = torch.Tensor | Narrow | Layout


class Values(Sequence[torch.Tensor]):
    """Tensors in order; those that are kept in a narrower type are made where they are read.

    Attributes:
        kept: what stands for each; two programs have the same value where it is the same object.
    """

    def __init__(self, kept: Sequence[Kept]) -> None:
        self.kept = tuple(kept)

    def __len__(self) -> int:
        return len(self.kept)

    @overload
    def __getitem__(self, k: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, k: slice) -> list[torch.Tensor]: ...
    def __getitem__(self, k: int | slice) -> torch.Tensor | list[torch.Tensor]:
        if isinstance(k, slice):
            return [_made(x) for x in self.kept[k]]
        return _made(self.kept[k])

    def __iter__(self) -> Iterator[torch.Tensor]:
        return map(_made, self.kept)

    def shaped(self, k: int) -> torch.Tensor:
        """A tensor of the same shape and type, for what asks for no numbers: itself, or one on
        the meta device."""
        held = self.kept[k]
        return held if isinstance(held, torch.Tensor) else held.empty()

    def without(self, places: Collection[int]) -> Values:
        """The same with shapes and types alone in these places."""
        return Values(
            [
                torch.empty_like(x, device="meta")
                if k in places and isinstance(x, torch.Tensor) and x.layout == torch.strided
                else x
                for k, x in enumerate(self.kept)
            ]
        )

    def rows(self, k: int, places: torch.Tensor) -> torch.Tensor:
        """Some rows of a matrix."""
        held = self.kept[k]
        if isinstance(held, Narrow):
            return held.own[places].to(WIDE[held.own.dtype])
        return _made(held)[places]

    def narrowed(self, names: Mapping[int, str], given: Mapping[str, torch.Tensor]) -> Values:
        """The same with parameters kept as they are in the model.

        Args:
            names: of the parameters among the values, by their place.
            given: the model's tensors by name, in their own types.
        """
        kept = list(self.kept)
        narrow: dict[int, Narrow] = {}
        for k, name in names.items():
            value, own = kept[k], given.get(name)
            if isinstance(value, torch.Tensor) and own is not None and _widens_to(own, value):
                kept[k] = narrow[_storage(value)] = Narrow(own.detach())
        for k, value in enumerate(kept):
            if isinstance(value, torch.Tensor) and _storage(value) in narrow:
                geometry = tuple(value.shape), value.stride(), int(value.storage_offset())
                kept[k] = Layout(narrow[_storage(value)], *geometry)
        return Values(kept)


def writes(tensor: torch.Tensor) -> int:
    """How often something was written to a tensor in place; 0 where PyTorch does not count."""
    return 0 if tensor.is_inference() else tensor._version


def _made(kept: Kept) -> torch.Tensor:
    return kept if isinstance(kept, torch.Tensor) else kept.tensor()


def _storage(value: torch.Tensor) -> int:
    return value.untyped_storage().data_ptr() if value.layout == torch.strided else -1


def _widens_to(own: torch.Tensor, value: torch.Tensor) -> bool:
    """True if a value is nothing but a model's tensor in float64, alone in its storage."""
    if own.dtype not in WIDE or value.numel() < LEAST or own.device != value.device:
        return False
    if own.layout != torch.strided or value.layout != torch.strided:
        return False
    wide = own.detach().to(WIDE[own.dtype])
    return (
        wide.dtype == value.dtype
        and wide.shape == value.shape
        and wide.stride() == value.stride()
        and not value.storage_offset()
        and wide.untyped_storage().nbytes() == value.untyped_storage().nbytes()
        and torch.equal(wide, value)
    )
