"""From the number of an example to the pixels that a model is shown: read, decode, crop, resize."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from shared_vit.data.augment import (
    NUM_UNIFORMS,
    padded_crop_flip,
    random_affine,
    random_crop_flip,
)
from shared_vit.data.dataset import Dataset, Split
from shared_vit.data.decode import DecodeError, decode
from shared_vit.data.preprocess import evaluation_input
from shared_vit.data.randaugment import RandAugment
from shared_vit.errors import UserError
from shared_vit.spec.recipe import MIN_AREA, Recipe, parse_randaug
from shared_vit.spec.sides import Sides, sides

MOST_NEIGHBOURS = 100
NO_RANDAUG = RandAugment(layers=0, magnitude=0)


class Example(NamedTuple):
    """One row of a batch: an image uint8 RGB [S, S, 3], its class, and the images that it replaces.

    replaced: (where, why) of each.
    """

    image: np.ndarray
    label: int
    replaced: tuple[tuple[str, str], ...] = ()


def make_loader(
    dataset: Dataset, split: Literal["train", "val"], recipe: Recipe, skip_bad: bool
) -> PhotoLoader | ArrayLoader:
    """The loader of a split, with the augmentation of `recipe` in training. Raises UserError."""
    examples, cfg, random = getattr(dataset, split), recipe.model, split == "train"
    last = RandAugment(*parse_randaug(recipe.randaug))
    if not dataset.photographs:
        for name, off in (("pad_crop", 0), ("min_area", MIN_AREA)):
            value = getattr(recipe, name)
            if value != off:
                raise UserError(f"--{name}={value}: the images of {dataset.name} are not cropped")
        return ArrayLoader(examples, cfg.image_shape, random, last)
    prepare: Callable[..., np.ndarray]
    if not random:
        prepare = functools.partial(evaluation_input, cfg=cfg)
    elif recipe.pad_crop:
        prepare = functools.partial(
            padded_crop_flip,
            size=cfg.image_shape,
            pad=recipe.pad_crop,
            interpolation=cfg.interpolation,
        )
    else:
        prepare = functools.partial(
            random_crop_flip, size=cfg.image_shape, min_area=recipe.min_area
        )
    return PhotoLoader(examples, prepare, random, skip_bad, last, cfg.exif == "turn")


class PhotoLoader:
    """Loads photographs.

    prepare: from pixels uint8 [H, W, 3] to uint8 [S, S, 3], with the keyword `uniforms` where
    `random`; `last` comes after it, with uniforms drawn after those. turn: upright by EXIF. An
    image that cannot be decoded or prepared raises UserError; with `skip_bad` the next one in the
    split's order replaces it, with the class of that one. A file that cannot be read always raises:
    it may be readable the next time, and the curve would then be another.
    """

    def __init__(
        self,
        split: Split,
        prepare: Callable[..., np.ndarray],
        random: bool,
        skip_bad: bool,
        last: RandAugment = NO_RANDAUG,
        turn: bool = False,
    ):
        self.split, self.prepare, self.random, self.skip_bad = split, prepare, random, skip_bad
        self.last, self.turn = last, turn

    def __call__(self, index: int, rng: np.random.Generator | None = None) -> Example:
        drawn = {"uniforms": rng.random(NUM_UNIFORMS)} if self.random and rng is not None else {}
        later = rng.random(self.last.num_uniforms) if drawn and rng is not None else None
        replaced: list[tuple[str, str]] = []
        for shift in range(min(len(self.split), MOST_NEIGHBOURS)):
            neighbour = (index + shift) % len(self.split)
            data, label = self.split.read(neighbour)
            try:
                pixels = decode(data, self.turn) if isinstance(data, bytes) else data
                image = self.prepare(pixels, **drawn)
                if later is not None:
                    image = self.last(image, later)
                return Example(image, label, tuple(replaced))
            except DecodeError as error:
                where = self.split.where(neighbour)
                if not self.skip_bad:
                    raise UserError(
                        f"cannot decode {where}: {error}. --on_bad_image=skip uses its neighbour "
                        "instead; `twinvit prepare --check DIR` finds all such files beforehand"
                    ) from error
                replaced.append((where, str(error)))
            except MemoryError as error:  # not the image's fault: their size is bounded
                raise UserError(
                    f"out of memory while decoding {self.split.where(neighbour)}: use fewer "
                    "--workers, or a smaller --batch_size"
                ) from error
        raise UserError(
            f"{len(replaced)} images in a row cannot be decoded, the last of them {replaced[-1][0]}"
        )


class ArrayLoader:
    """Loads decoded images, resized to `size` by the nearest pixel.

    Where `random`, they are first turned, scaled and shifted a little, and `last` comes last.
    """

    def __init__(self, split: Split, size: Sides, random: bool, last: RandAugment = NO_RANDAUG):
        self.split, self.size, self.random, self.last = split, sides(size), random, last

    def __call__(self, index: int, rng: np.random.Generator | None = None) -> Example:
        image, label = self.split.read(index)
        assert not isinstance(image, bytes), "encoded images need photographs=True"
        if self.random and rng is not None:
            image = random_affine(image, rng.random(NUM_UNIFORMS))
        height, width = image.shape[:2]
        if (height, width) != self.size:
            rows = np.arange(self.size[0]) * height // self.size[0]
            columns = np.arange(self.size[1]) * width // self.size[1]
            image = image[rows[:, None], columns]
        if self.random and rng is not None:
            image = self.last(image, rng.random(self.last.num_uniforms))
        return Example(image, label)
