"""The training batches of a run, read ahead so that a bad image is found while all can save."""

from __future__ import annotations

from collections import deque

import numpy as np

from shared_vit.data.batch import Batch
from shared_vit.data.pipeline import Batches
from shared_vit.errors import UserError
from shared_vit.run.plan import Plan
from shared_vit.run.state import Trainer

LAG = 2  # results are read this many steps late, so that reading never makes the device wait
# All processes stop at the step whose results first request it, which they read LAG steps later:
# until then each needs a batch.
_AHEAD = LAG + 1


class Feed:
    """The training batches of one process, from step `start` to `end`.

    failure: the error that ended the stream; `take` still returns the batches read before it.
    Raises UserError where one of the first batches cannot be read: nothing has been computed by
    then.
    """

    def __init__(self, plan: Plan, trainer: Trainer, start: int, end: int):
        self.failure: UserError | None = None
        self._left = end - start
        self._read: deque[Batch] = deque()
        self._stream: Batches = plan.batches("train", start, trainer.process, trainer.num_processes)
        try:
            self._fill()
        except BaseException:
            self._stream.close()
            raise
        if self.failure is not None:
            raise self.failure

    def take(self) -> Batch | None:
        """The next batch; None after the last one before a failure."""
        if not self._read:
            return None
        batch = self._read.popleft()
        self._fill()
        return batch

    def close(self) -> None:
        self._stream.close()

    def _fill(self) -> None:
        while self._left and len(self._read) < _AHEAD and self.failure is None:
            try:
                self._read.append(next(self._stream))
                self._left -= 1
            except UserError as error:
                self.failure = error


def empty_batch(plan: Plan, num_processes: int, step: int) -> Batch:
    """A batch of weight 0, for a process that cannot read its own while the others wait for it in
    the collectives."""
    rows = plan.recipe.batch_size // num_processes
    images = np.zeros((rows, *plan.model.image_shape, 3), np.uint8)
    labels, weight = np.zeros(rows, np.int32), np.zeros(rows, np.float32)
    return Batch(images, labels, weight, np.arange(rows), step)
