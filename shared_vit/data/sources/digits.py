"""scikit-learn's 1,797 handwritten digits, grey, 8x8: data that every machine has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shared_vit.data.dataset import Dataset, fingerprint

NUM_VAL = 360
SPLIT_SEED = 0


@dataclass
class ArraySplit:
    """Decoded images uint8 [N, H, W, 3] and labels int32 [N], held in memory."""

    images: np.ndarray
    labels: np.ndarray
    name: str

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])

    def where(self, index: int) -> str:
        return f"{self.name}, image {index}"


def digits() -> Dataset:
    """The digits, of which the first 360 of `RandomState(0).permutation(1797)` are for validation.

    Grey levels 0 to 16 are stretched to 0 to 255 and repeated to RGB. (The streams of `RandomState`
    never change; those of a `Generator` may change with numpy.)
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    grey = np.rint(raw.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    labels = raw.target.astype(np.int32)
    order = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    val, train = order[:NUM_VAL], order[NUM_VAL:]
    return Dataset(
        name="digits",
        train=ArraySplit(images[train], labels[train], "digits, training split"),
        val=ArraySplit(images[val], labels[val], "digits, validation split"),
        class_names=[str(d) for d in range(10)],
        fingerprint=fingerprint(grey.tobytes(), labels.tobytes(), order.astype("<i8").tobytes()),
        photographs=False,
    )
