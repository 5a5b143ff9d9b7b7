"""Batches for both twins: `batches` is all that a trainer sees of the input pipeline."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from shared_vit.data.batch import Batch
from shared_vit.data.dataset import BadImages, Dataset
from shared_vit.data.examples import make_loader
from shared_vit.data.minival import with_minival
from shared_vit.data.mixing import Mix, mix_of
from shared_vit.data.sources import open_dataset
from shared_vit.data.workers import (
    check_processes_can_talk,
    plan,
    shared_memory_fits,
    start_worker,
)
from shared_vit.errors import UserError
from shared_vit.spec.recipe import Recipe
from shared_vit.spec.runtime import RuntimeConfig

if TYPE_CHECKING:
    from shared_vit.data.order import ChunkMapDataset, Share

_CHUNKS_IN_FLIGHT = 4  # per worker: made, in its queue, in the reader's buffer, at the reader
_MIN_SHARED = 1 << 16  # bytes; smaller arrays are quicker through a pipe


def batches(
    recipe: Recipe,
    split: Literal["train", "val"] = "train",
    start: int = 0,
    process: int = 0,
    num_processes: int = 1,
    dataset: Dataset | None = None,
    runtime: RuntimeConfig | None = None,
) -> Batches:
    """The stream of batches of a run, from batch `start` on; the rows of one process.

    Without `dataset`, the data are those that the recipe and the machine name. Process p of P
    yields rows [p B/P, (p+1) B/P) of each global batch and reads nothing else. `train` is endless;
    `val` ends after ceil(n/B) batches, in order, the last one padded with weight 0. Batch t depends
    on (seed, data, B, t) alone. The iterator has a `close`, and ends its threads and worker
    processes when it is closed or collected.

    Raises UserError for what `open_dataset` finds, for a B that P does not divide, and, from the
    iterator, for an image that cannot be decoded.
    """
    if split not in ("train", "val"):
        raise UserError(f"the splits are 'train' and 'val', not {split!r}")
    if recipe.batch_size % num_processes:
        raise UserError(
            f"--batch_size={recipe.batch_size} is not divisible by {num_processes} processes"
        )
    from shared_vit.data import order  # imports grain

    runtime = runtime or RuntimeConfig()
    dataset = dataset or open_dataset(recipe.data, runtime.data_dir, recipe.class_order)
    if recipe.minival == "on":
        dataset = with_minival(dataset)
    size = recipe.model.image_shape
    rows = recipe.batch_size // num_processes
    share = order.Share(recipe.batch_size, first=process * rows, rows=rows, start=start)
    num_examples = len(getattr(dataset, split))
    load = make_loader(dataset, split, recipe, skip_bad=runtime.on_bad_image == "skip")
    if split == "train":
        chunks = order.train_chunks(load, num_examples, recipe.seed, share, size, recipe.repeat_aug)
    else:
        chunks = order.val_chunks(load, num_examples, share, size)
    workers, threads = plan(runtime.workers, dataset.photographs)
    mix = partial(mix_of, recipe) if split == "train" else _unmixed
    return Batches(chunks, share, workers, threads, dataset.bad_images, mix)


def _unmixed(step: int) -> None:
    """No row of a batch of evaluation is mixed."""


class Batches(Iterator[Batch]):
    """Runs a stream of chunks ahead of its reader, in threads or processes, and joins batches."""

    def __init__(
        self,
        chunks: ChunkMapDataset,
        share: Share,
        workers: int,
        threads: int,
        bad_images: BadImages,
        mix: Callable[[int], Mix | None],
    ):
        self._share, self._bad_images, self._step = share, bad_images, share.start
        self._mix_of = mix
        self._chunks = iter(_run_ahead(chunks, share, workers, threads))

    def __next__(self) -> Batch:
        if self._chunks is None:
            raise StopIteration
        try:
            parts = [next(self._chunks) for _ in range(self._share.chunks)]
        except BaseException:
            self.close()
            raise
        for part in parts:
            for path, reason in part["replaced"]:
                self._bad_images.add(path, reason)
        images, labels, weight = (
            np.concatenate([p[k] for p in parts]) for k in ("images", "labels", "weight")
        )
        rows = np.arange(self._share.first, self._share.first + self._share.rows)
        batch = Batch(images, labels, weight, rows, self._step, self._mix_of(self._step))
        self._step += 1
        return batch

    def close(self) -> None:
        """Ends the threads and worker processes. The iterator is then exhausted."""
        chunks, self._chunks = self._chunks, None
        if chunks is not None:
            chunks.close()

    def __del__(self) -> None:
        if getattr(self, "_chunks", None) is not None:
            self.close()


def _run_ahead(chunks: ChunkMapDataset, share: Share, workers: int, threads: int) -> Any:
    """The chunks as a Grain IterDataset that holds about two batches ready."""
    import grain

    ahead = max(threads + 1, -(-2 * share.chunks // max(1, workers)))
    dataset = chunks.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    )
    if not workers:
        return dataset
    check_processes_can_talk(workers)
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain reads its absl flags when it starts a process
        flags.FLAGS.mark_as_parsed()
    fits = shared_memory_fits(workers * _CHUNKS_IN_FLIGHT * chunks.chunk_bytes)
    options = grain.experimental.DatasetOptions(min_shm_size=_MIN_SHARED if fits else sys.maxsize)
    dataset = grain.experimental.WithOptionsIterDataset(dataset, options)
    processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
    return dataset.mp_prefetch(processes, worker_init_fn=start_worker)
