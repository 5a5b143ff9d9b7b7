"""What the pipeline knows of a data set: two splits, their classes, and the replaced images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


class Split(Protocol):
    """The examples of one split, read at random. Cheap to pickle: worker processes get a copy."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[bytes | np.ndarray, int]:
        """An image, encoded (bytes) or decoded (uint8 RGB [H, W, 3]), and its class."""

    def where(self, index: int) -> str:
        """The name of an example in a message: its path, if it has one."""


@dataclass
class BadImages:
    """The images that could not be decoded and were replaced by a neighbour, so far.

    `count` is the number of replacements; `reasons` maps each path to the decoder's complaint.
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
        """The number of replacements, and a line for each bad image."""
        head = (
            f"{self.count:,} times an undecodable image was replaced by its neighbour; "
            f"{len(self.reasons):,} such images:"
        )
        return "\n".join([head, *(f"  {path}: {self.reasons[path]}" for path in self.paths)])


@dataclass
class Dataset:
    """A training and a validation split with the same classes.

    class_names: printable, in the order of the labels. fingerprint: hexadecimal; it changes with
    the data and not with their place. photographs: True for encoded images, which are cropped at
    random and flipped in training and preprocessed by `evaluation_input` in evaluation; False for
    decoded ones, which are slightly turned and shifted in training and unchanged in evaluation.
    minival: whether `val` is a random 1 % held out of the training split. held_out: whether `val`
    is a part of each class, in data that came without a validation split. notices: what is to be
    said of the data.
    """

    name: str
    train: Split
    val: Split
    class_names: list[str]
    fingerprint: str
    photographs: bool = True
    minival: bool = False
    held_out: bool = False
    notices: list[str] = field(default_factory=list)
    bad_images: BadImages = field(default_factory=BadImages)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def fingerprint(*parts: bytes) -> str:
    """32 hexadecimal digits of SHA-256 over the parts and their lengths."""
    h = hashlib.sha256()
    for part in parts:
        h.update(len(part).to_bytes(8, "little") + part)
    return h.hexdigest()[:32]
