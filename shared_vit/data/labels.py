"""The labels of a split, without its images where the split knows them."""

from __future__ import annotations

import numpy as np

from shared_vit.data.dataset import Split
from shared_vit.data.minival import Part


def labels_of(split: Split) -> np.ndarray:
    """int64 [N], in the order of the split. Where nothing else has them the examples are read."""
    if isinstance(split, Part):
        return labels_of(split.split)[split.numbers]
    known = getattr(split, "labels", None)
    if known is None:
        known = [split.read(i)[1] for i in range(len(split))]
    return np.asarray(known, np.int64)
