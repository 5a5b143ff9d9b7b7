"""Arrays that stay on disk until they are read, so that models are converted tensor by tensor."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class LazyArray:
    """Shape and dtype of an array, and the function that makes it.

    `np.asarray(lazy)` calls the function each time.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.load()
        return array if dtype is None else array.astype(dtype, copy=False)


Arrays = Mapping[str, np.ndarray | LazyArray]


def in_memory(arrays: Arrays) -> dict[str, np.ndarray]:
    """All arrays read."""
    return {name: np.asarray(array) for name, array in arrays.items()}
