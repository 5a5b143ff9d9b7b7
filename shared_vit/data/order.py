"""Which example is which row of which batch, as Grain datasets.

Batch t is a pure function of (seed, data, batch size, t): position p = t * B + row of an endless
stream is example `shuffle(p)`, augmented by the randomness of (seed, p), whoever computes it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from shared_vit.data.examples import Example
from shared_vit.spec.sides import Sides, sides

CHUNK_ROWS = 32  # the unit that a thread makes and a worker process sends


@dataclass(frozen=True)
class Share:
    """A process's rows [first, first + rows) of every global batch, from batch `start` on."""

    batch_size: int
    first: int
    rows: int
    start: int = 0

    @property
    def chunks(self) -> int:
        """Chunks in this process's part of a batch."""
        return -(-self.rows // CHUNK_ROWS)

    def chunk(self, number: int) -> tuple[int, range]:
        """The batch of chunk `number` of this stream, and its rows within the global batch."""
        batch, part = divmod(number, self.chunks)
        begin = part * self.rows // self.chunks
        end = (part + 1) * self.rows // self.chunks
        return self.start + batch, range(self.first + begin, self.first + end)


def permutation(number: int, seed: int, epoch: int) -> np.ndarray:
    """A uniformly random order of `number` examples, int64 [number].

    It is drawn from raw Philox words, which numpy promises not to change.
    """
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    return np.argsort(bits.random_raw(number), kind="stable")


class ShuffleMapDataset(grain.MapDataset):
    """The parent in a new, uniformly random order each epoch, a function of (seed, epoch) alone.

    Grain's own shuffle is slow for small data (measured: 5 us an example among a million, 280 us
    among a hundred) and gives epoch e of seed s the order of epoch e+1 of seed s-1. A permutation
    of a million examples costs 0.2 s and 10 MB once an epoch.
    """

    def __init__(self, parent: grain.MapDataset, seed: int):
        super().__init__(parent)
        self._seed, self._lock = seed, threading.Lock()
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, position: int | slice) -> Any:
        if isinstance(position, slice):
            return self.slice(position)
        epoch, index = divmod(position, len(self))
        order = self._orders.get(epoch)
        return self._parent[int((self._draw(epoch) if order is None else order)[index])]

    def _draw(self, epoch: int) -> np.ndarray:
        with self._lock:
            if epoch not in self._orders:
                order = permutation(len(self), self._seed, epoch)
                # Other threads may still read the last examples of the epoch before.
                before = {e: o for e, o in self._orders.items() if e == epoch - 1}
                self._orders = before | {epoch: order}
            return self._orders[epoch]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_orders": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


class RepeatMapDataset(grain.MapDataset):
    """Each of the parent's elements `times` times, two positions apart (Hoffer et al. 2020).

    Position p is the parent's element 2 floor(p / (2 times)) + p mod 2: neighbours p and p XOR 1
    are two examples, which may be mixed. The parent is endless, or its last elements are left out.
    """

    def __init__(self, parent: grain.MapDataset, times: int):
        super().__init__(parent)
        self._times = times

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, position: int | slice) -> Any:
        if isinstance(position, slice):
            return self.slice(position)
        return self._parent[2 * (position // (2 * self._times)) + position % 2]


class ChunkMapDataset(grain.MapDataset):
    """Stacks the parent's elements into the chunks of a shard, padded beyond the parent's end.

    Element k is a dict of images uint8 [c, S, S, 3], labels int32 [c], weight float32 [c] (0 for
    padding), and replaced, a list of (path, reason).
    """

    def __init__(self, parent: grain.MapDataset, share: Share, num_batches: int, size: Sides):
        super().__init__(parent)
        self._share, self._size = share, sides(size)
        self._length = max(0, num_batches - share.start) * share.chunks

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the largest chunk's images."""
        return -(-self._share.rows // self._share.chunks) * math.prod(self._size) * 3

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int | slice) -> Any:
        if isinstance(number, slice):
            return self.slice(number)
        batch, rows = self._share.chunk(number)
        images = np.zeros((len(rows), *self._size, 3), np.uint8)
        labels = np.zeros(len(rows), np.int32)
        weight = np.zeros(len(rows), np.float32)
        replaced: list[tuple[str, str]] = []
        for i, row in enumerate(rows):
            position = batch * self._share.batch_size + row
            if position < len(self._parent):
                images[i], labels[i], bad = self._parent[position]
                weight[i] = 1
                replaced.extend(bad)
        return {"images": images, "labels": labels, "weight": weight, "replaced": replaced}


Loader = Callable[[int, np.random.Generator], Example]


def train_chunks(
    load: Loader, num_examples: int, seed: int, share: Share, size: Sides, repeat: int = 1
) -> grain.MapDataset:
    """The endless training stream: every example once an epoch, in a new order each epoch.

    With `repeat` above 1 each example comes that many times in a row, each time augmented anew.
    """
    shuffle_seed, augment_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))
    stream = ShuffleMapDataset(grain.MapDataset.range(num_examples), shuffle_seed).repeat()
    if repeat > 1:
        stream = RepeatMapDataset(stream, repeat)
    stream = stream.random_map(load, seed=augment_seed)
    return ChunkMapDataset(stream, share, num_batches=len(stream) // share.batch_size, size=size)


def val_chunks(
    load: Callable[[int], Example], num_examples: int, share: Share, size: Sides
) -> grain.MapDataset:
    """Every example once, in order, the last batch padded."""
    stream = grain.MapDataset.range(num_examples).map(load)
    return ChunkMapDataset(
        stream, share, num_batches=-(-num_examples // share.batch_size), size=size
    )
