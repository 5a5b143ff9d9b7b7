"""What a data set is to the pipeline: two random-access splits, their classes, and the images it had to replace."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np


class Source(Protocol):
    """One split. Picklable and cheap to pickle: worker processes get a copy."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[bytes | np.ndarray, int]:
        """An image, encoded (bytes) or decoded (uint8 RGB [H, W, 3]), and its class."""

    def where(self, index: int) -> str:
        """Names the example in a message: its path, where it has one."""


@dataclass
class BadImages:
    """Images that could not be decoded and were replaced by a neighbour, so far.

    `count` counts the replacements (once each time such an image is drawn), `reasons` maps each path to why.
    """

    count: int = 0
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def paths(self) -> list[str]:
        return sorted(self.reasons)

    def add(self, path: str, reason: str) -> None:
        self.count += 1
        self.reasons[path] = reason

    def describe(self) -> str:
        """How many replacements, of which images and why, a line each."""
        head = f"{self.count:,} times an undecodable image was replaced by its neighbour; {len(self.reasons):,} such images:"
        return "\n".join([head, *(f"  {path}: {self.reasons[path]}" for path in self.paths)])


@dataclass
class Dataset:
    """A training and a validation split with the same classes.

    fingerprint: hexadecimal, changes when the data changes and not with where they lie. photographs: whether the images
    are cropped at random and flipped in training and centre-cropped in evaluation; if not, they are turned and shifted a
    little in training and as they are in evaluation.
    """

    name: str
    train: Source
    val: Source
    class_names: list[str]
    fingerprint: str
    photographs: bool = True
    bad_images: BadImages = field(default_factory=BadImages)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def keep(self, directory: Path) -> None:
        """Write into a run's directory what spares the next `open_dataset(cfg, directory)` work; nothing as a rule."""


def fingerprint(*parts: bytes) -> str:
    """32 hexadecimal digits of SHA-256 over the parts, each with its length."""
    h = hashlib.sha256()
    for part in parts:
        h.update(len(part).to_bytes(8, "little") + part)
    return h.hexdigest()[:32]
