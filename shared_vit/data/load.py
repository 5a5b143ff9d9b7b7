"""From an example's number to the pixels a model is fed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from shared_vit.data.dataset import Source


class Example(NamedTuple):
    """One row of a batch: image uint8 RGB [S, S, 3], class, and (path, reason) of each image that it had to replace."""

    image: np.ndarray
    label: int
    replaced: tuple[tuple[str, str], ...] = ()


class ResizedLoader:
    """Loads decoded images as they are, resized to `size` by the nearest pixel. A `random_map` that draws nothing."""

    def __init__(self, source: Source, size: int):
        self.source, self.size = source, size

    def __call__(self, index: int, rng: np.random.Generator | None = None) -> Example:
        image, label = self.source.read(index)
        height, width = image.shape[:2]
        if (height, width) != (self.size, self.size):
            rows = np.arange(self.size) * height // self.size
            columns = np.arange(self.size) * width // self.size
            image = image[rows[:, None], columns]
        return Example(image, label)
