"""A part of the training split held out for choosing settings, so that validation stays unseen."""

from __future__ import annotations

import dataclasses

import numpy as np

from shared_vit.data.dataset import Dataset, Split
from shared_vit.errors import UserError

ONE_OF = 100  # one example of so many is held out


def with_minival(dataset: Dataset) -> Dataset:
    """The data set with a random 1 % of its training split as validation, and trained on the rest.

    The same 1 % whatever the seed of the run: it is the first of `order.permutation` with seed 0.
    (The end of a listing would be the last classes.) At least one example; both parts retain the
    order of the listing. A data set that has it already comes back as it is. Raises UserError for a
    training split of one example.
    """
    if dataset.minival:
        return dataset
    from shared_vit.data.order import permutation  # imports grain

    number = len(dataset.train)
    if number < 2:
        raise UserError("--minival=on needs at least 2 training examples")
    held_out = max(1, number // ONE_OF)
    order = permutation(number, seed=0, epoch=0)
    train, val = np.sort(order[held_out:]), np.sort(order[:held_out])
    return dataclasses.replace(
        dataset,
        train=Part(dataset.train, train),
        val=Part(dataset.train, val),
        minival=True,
    )


@dataclasses.dataclass(frozen=True)
class Part:
    """Some examples of a split. numbers: int64 [n], their indices in the split."""

    split: Split
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, index: int) -> tuple[bytes | np.ndarray, int]:
        return self.split.read(int(self.numbers[index]))

    def where(self, index: int) -> str:
        return self.split.where(int(self.numbers[index]))
