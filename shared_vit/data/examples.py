"""From an example's number to the pixels a model is fed: read, decode, crop, resize."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from shared_vit.data.augment import NUM_UNIFORMS, center_crop, random_affine, random_crop_flip
from shared_vit.data.dataset import Dataset, Source
from shared_vit.data.decode import DecodeError, decode
from shared_vit.errors import UserError

MOST_NEIGHBOURS = 100


class Example(NamedTuple):
    """One row of a batch: image uint8 RGB [S, S, 3], class, and (where, why) of each image that it had to replace."""

    image: np.ndarray
    label: int
    replaced: tuple[tuple[str, str], ...] = ()


def make_loader(
    dataset: Dataset, split: str, size: int, skip_bad: bool
) -> PhotoLoader | ArrayLoader:
    """The loader of a split of a data set, giving images of `size` x `size`."""
    source = getattr(dataset, split)
    if not dataset.photographs:
        return ArrayLoader(source, size, random=split == "train")
    return PhotoLoader(source, size, random=split == "train", skip_bad=skip_bad)


class PhotoLoader:
    """Loads encoded images: random-resized crop and flip where `random`, else the centre crop of evaluation.

    An image that cannot be decoded raises UserError; with `skip_bad` the next one in the source's order stands in for
    it, with that one's class. What cannot be read at all (a file that is gone) always raises: it may come back.
    """

    def __init__(self, source: Source, size: int, random: bool, skip_bad: bool):
        self.source, self.size, self.random, self.skip_bad = source, size, random, skip_bad

    def __call__(self, index: int, rng: np.random.Generator | None = None) -> Example:
        uniforms = rng.random(NUM_UNIFORMS) if self.random else None
        replaced = []
        for shift in range(min(len(self.source), MOST_NEIGHBOURS)):
            neighbour = (index + shift) % len(self.source)
            data, label = self.source.read(neighbour)
            try:
                image = decode(data)
            except DecodeError as error:
                where = self.source.where(neighbour)
                if not self.skip_bad:
                    raise UserError(
                        f"cannot decode {where}: {error}. --on_bad_image=skip uses its neighbour instead; "
                        "`twinvit prepare --check DIR` finds all such files beforehand"
                    ) from error
                replaced.append((where, str(error)))
                continue
            image = (
                random_crop_flip(image, self.size, uniforms)
                if self.random
                else center_crop(image, self.size)
            )
            return Example(image, label, tuple(replaced))
        raise UserError(
            f"{len(replaced)} images in a row cannot be decoded, the last of them {replaced[-1][0]}"
        )


class ArrayLoader:
    """Loads decoded images: a small random turn, scaling and shift where `random`; resized to `size` by the nearest pixel."""

    def __init__(self, source: Source, size: int, random: bool):
        self.source, self.size, self.random = source, size, random

    def __call__(self, index: int, rng: np.random.Generator | None = None) -> Example:
        image, label = self.source.read(index)
        if self.random:
            image = random_affine(image, rng.random(NUM_UNIFORMS))
        height, width = image.shape[:2]
        if (height, width) != (self.size, self.size):
            rows = np.arange(self.size) * height // self.size
            columns = np.arange(self.size) * width // self.size
            image = image[rows[:, None], columns]
        return Example(image, label)
