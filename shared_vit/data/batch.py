"""What a trainer is fed."""

from dataclasses import dataclass

import numpy as np

from shared_vit.data.mixing import Mix


@dataclass(frozen=True)
class Batch:
    """The rows of a global batch that one process works on.

    images: uint8 RGB [B, H, W, 3]; labels: int32 [B]; weight: float32 [B], 0 for the padding of an
    evaluation, else 1; rows: int64 [B], the number of each row within the global batch; step: the
    number of the batch in its stream, from 0; mix: how the trainer mixes pairs of rows, None where
    it does not.
    """

    images: np.ndarray
    labels: np.ndarray
    weight: np.ndarray
    rows: np.ndarray
    step: int
    mix: Mix | None = None
