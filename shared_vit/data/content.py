"""Checksums of what a data set's files hold. Its fingerprint is of names, classes and sizes."""

from __future__ import annotations

import hashlib

import numpy as np

from shared_vit.data.dataset import Dataset, Split
from shared_vit.errors import UserError

SAMPLED = 256  # files, of both splits together; smaller data sets are read completely


def content_of(dataset: Dataset, full: bool = False) -> dict[str, str]:
    """{"content": checksum of a sample} and, if `full`, {"content_full": that of all files}.

    The sample is the same for the same fingerprint. Empty for data sets that are not image folders:
    their fingerprint is of the arrays themselves, or of what their builder says. A file that
    cannot be read counts as such.
    """
    if dataset.name not in ("folder", "imagenet"):
        return {}
    total = len(dataset.train) + len(dataset.val)
    found = {"content": _checksum(dataset, sample_of(dataset), total)}
    every = np.arange(total)
    return found | ({"content_full": _checksum(dataset, every, total)} if full else {})


def sample_of(dataset: Dataset) -> np.ndarray:
    """Indices of the files in the sample, sorted int64 [n], those of `val` after those of `train`;
    the same for the same fingerprint."""
    total = len(dataset.train) + len(dataset.val)
    rng = np.random.default_rng(int(dataset.fingerprint, 16))
    if total > SAMPLED:
        return np.sort(rng.choice(total, SAMPLED, replace=False))
    return np.arange(total)


def _checksum(dataset: Dataset, numbers: np.ndarray, total: int) -> str:
    """SHA-256, and of how many files: "256 of 1,331,167 files: 0123..."."""
    h = hashlib.sha256()
    for number in numbers.tolist():
        here = number < len(dataset.train)
        split: Split = dataset.train if here else dataset.val
        try:
            image, label = split.read(number if here else number - len(dataset.train))
        except UserError:
            image, label = b"", -1
        data = image if isinstance(image, bytes) else image.tobytes()
        h.update(f"{number} {label} {len(data)} ".encode() + data)
    return f"{len(numbers):,} of {total:,} files: {h.hexdigest()[:32]}"
