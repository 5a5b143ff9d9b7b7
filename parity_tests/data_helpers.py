"""What the tests of the input pipeline share: image folders made on the spot, and batches as bytes."""

import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

from shared_vit.data import Dataset, batches
from shared_vit.spec.recipe import TrainConfig


def photo(seed: int, height: int, width: int) -> np.ndarray:
    """A smooth coloured picture with some detail, uint8 [height, width, 3]; another seed, another picture."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8)).resize((width, height), Image.BICUBIC)
    noise = rng.integers(-12, 13, (height, width, 3))
    return np.clip(np.asarray(coarse).astype(int) + noise, 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str = "JPEG", **options) -> bytes:
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


def folder_config(root: Path, **changes) -> TrainConfig:
    values = dict(data="folder", data_dir=str(root), image_size=24, batch_size=8, seed=3, workers=0)
    return TrainConfig(**(values | changes))


def take(cfg: TrainConfig, number: int, **arguments) -> list:
    """The first `number` batches of a stream that is closed afterwards."""
    stream = batches(cfg, **arguments)
    try:
        return [next(stream) for _ in range(number)]
    finally:
        stream.close()


def digest(found: list) -> list[str]:
    """One hash for each batch, of everything in it."""
    return [
        hashlib.sha256(
            b.images.tobytes() + b.labels.tobytes() + b.weight.tobytes() + b.rows.tobytes() + bytes([b.step % 256])
        ).hexdigest()
        for b in found
    ]


class CountingSource:
    """Decoded images that each show their own number, and a record of those that were read."""

    def __init__(self, length: int):
        self.length, self.reads = length, []

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
    return Dataset("counting", CountingSource(train), CountingSource(val), names, "", photographs=False)
