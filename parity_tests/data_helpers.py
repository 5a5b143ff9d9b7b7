"""Shared by the tests of the input pipeline: image folders, runs, and batches as bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shared_vit.data import Batch, Dataset, batches, open_dataset
from shared_vit.data.pipeline import Batches
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.recipe import Recipe
from shared_vit.spec.runtime import RuntimeConfig


def photo(seed: int, height: int, width: int) -> np.ndarray:
    """A smooth coloured image with some detail, uint8 [height, width, 3]; one for each seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    coarse = coarse.resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.integers(-12, 13, (height, width, 3))
    return np.clip(np.asarray(coarse).astype(int) + noise, 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def image_folder(
    root: Path, per_class: int = 7, val_per_class: int = 4, classes: tuple = ("n01", "n02", "n03")
) -> Path:
    """`train/` and `val/` of small JPEGs of many sizes."""
    seed = 0
    for split, count in (("train", per_class), ("val", val_per_class)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                seed += 1
                pixels = photo(seed, 30 + seed * 7 % 40, 30 + seed * 11 % 50)
                (root / split / name / f"{name}_{i}.JPEG").write_bytes(encoded(pixels, quality=90))
    return root


@dataclass(frozen=True)
class Run:
    """What decides a stream of batches: settings of the model, the recipe and the machine."""

    recipe: Recipe = Recipe()
    runtime: RuntimeConfig = RuntimeConfig(workers=0)

    def but(self, **changes: Any) -> Run:
        """The same with other settings, whichever of the three has them."""
        parts = [self.recipe.model, self.recipe, self.runtime]
        for i, part in enumerate(parts):
            names = {f.name for f in dataclasses.fields(part)} & set(changes)
            parts[i] = dataclasses.replace(part, **{name: changes.pop(name) for name in names})
        assert not changes
        model, recipe, runtime = parts
        return Run(dataclasses.replace(recipe, model=model), runtime)

    def dataset(self) -> Dataset:
        return open_dataset(self.recipe.data, self.runtime.data_dir)

    def batches(self, split: str = "train", **arguments: Any) -> Batches:
        return batches(self.recipe, split, runtime=self.runtime, **arguments)


def run_of(image_size: int, **settings: Any) -> Run:
    """Threads only, and a model of one patch."""
    model = ModelConfig(image_size=image_size, patch_size=image_size)
    return Run(Recipe(model=model)).but(**settings)


def folder_run(root: Path, **settings: Any) -> Run:
    values = dict(image_size=24, data="folder", data_dir=str(root), batch_size=8, seed=3)
    return run_of(**(values | settings))


def take(run: Run, number: int, **arguments: Any) -> list[Batch]:
    """The first `number` batches of a stream that is closed afterwards."""
    stream = run.batches(**arguments)
    try:
        return [next(stream) for _ in range(number)]
    finally:
        stream.close()


def digest(found: list[Batch]) -> list[str]:
    """One hash for each batch, of everything in it."""
    hashes = []
    for b in found:
        h = hashlib.sha256()
        for array in (b.images, b.labels, b.weight, b.rows):
            h.update(array.tobytes())
        h.update(bytes([b.step % 256]))
        hashes.append(h.hexdigest())
    return hashes


class CountingSplit:
    """Decoded images that each show their own number, and a record of those that were read."""

    def __init__(self, length: int):
        self.length = length
        self.reads: list[int] = []

    def __len__(self) -> int:
        return self.length

    def read(self, index: int) -> tuple[np.ndarray, int]:
        self.reads.append(index)
        return np.full((2, 2, 3), index % 256, np.uint8), index

    def where(self, index: int) -> str:
        return f"number {index}"


def counting_dataset(train: int, val: int = 5) -> Dataset:
    """Labels are the examples' numbers."""
    names = [str(i) for i in range(max(train, val))]
    splits = CountingSplit(train), CountingSplit(val)
    return Dataset("counting", *splits, names, "", photographs=False)
