"""Batches for both twins: `batches` is all that a trainer sees of the input pipeline."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal

import numpy as np

from shared_vit.config import TrainConfig
from shared_vit.data.batch import Batch
from shared_vit.data.dataset import BadImages, Dataset
from shared_vit.data.load import make_loader
from shared_vit.data.open import open_dataset
from shared_vit.errors import UserError

__all__ = ["Batch", "Dataset", "batches", "open_dataset"]


def batches(
    cfg: TrainConfig,
    split: Literal["train", "val"] = "train",
    start: int = 0,
    process: int = 0,
    num_processes: int = 1,
    dataset: Dataset | None = None,
) -> Batches:
    """The stream of batches of a run, from batch `start` on; the rows of one process.

    Uses image_size, batch_size, seed, workers, on_bad_image of cfg, and data and data_dir without `dataset`. Process
    p of P yields rows [p B/P, (p+1) B/P) of each global batch and reads nothing else. `train` is endless; `val` ends
    after ceil(n/B) batches, in order, the last one padded with weight 0. Batch t depends on (seed, data, B, t) alone.
    The iterator has a `close`, and ends its threads and worker processes when it is closed or collected.

    Raises UserError for what `open_dataset` finds, for a B that P does not divide, and, from the iterator, for an image
    that cannot be decoded.
    """
    if split not in ("train", "val"):
        raise UserError(f"the splits are 'train' and 'val', not {split!r}")
    if cfg.batch_size % num_processes:
        raise UserError(f"--batch_size={cfg.batch_size} is not divisible by {num_processes} processes")
    from shared_vit.data import stream

    dataset = dataset or open_dataset(cfg)
    size = cfg.image_size or 224
    rows = cfg.batch_size // num_processes
    share = stream.Share(cfg.batch_size, first=process * rows, rows=rows, start=start)
    source = getattr(dataset, split)
    load = make_loader(dataset, split, size, skip_bad=cfg.on_bad_image == "skip")
    if split == "train":
        chunks = stream.train_chunks(load, len(source), cfg.seed, share, size)
    else:
        chunks = stream.val_chunks(load, len(source), share, size)
    return Batches(chunks, share, cfg.workers or 0, dataset.bad_images)


class Batches(Iterator[Batch]):
    """Runs a stream of chunks ahead of its reader, in threads or worker processes, and joins chunks to batches."""

    def __init__(self, chunks, share, workers: int, bad_images: BadImages):
        import grain

        self._share, self._bad_images, self._step = share, bad_images, share.start
        threads = max(1, len(os.sched_getaffinity(0)) // max(1, workers))
        ahead = max(threads + 1, -(-2 * share.chunks // max(1, workers)))
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        dataset = chunks.to_iter_dataset(options)
        if workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():  # grain reads its absl flags when it starts a process; ours is no absl app
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1))
        self._chunks = iter(dataset)

    def __next__(self) -> Batch:
        if self._chunks is None:
            raise StopIteration
        parts = [next(self._chunks) for _ in range(self._share.chunks)]
        for part in parts:
            for path, reason in part["replaced"]:
                self._bad_images.add(path, reason)
        batch = Batch(
            images=np.concatenate([p["images"] for p in parts]),
            labels=np.concatenate([p["labels"] for p in parts]),
            weight=np.concatenate([p["weight"] for p in parts]),
            rows=np.arange(self._share.first, self._share.first + self._share.rows),
            step=self._step,
        )
        self._step += 1
        return batch

    def close(self) -> None:
        """Ends the threads and worker processes. The iterator is then exhausted."""
        chunks, self._chunks = self._chunks, None
        if chunks is not None:
            chunks.close()

    def __del__(self):
        if getattr(self, "_chunks", None) is not None:
            self.close()
