"""The files of a run's image folder, saved with the run so that a changed one can be named."""

from __future__ import annotations

import gzip
from itertools import islice
from pathlib import Path

from shared_vit.data.dataset import Dataset
from shared_vit.data.sources.folder import FolderSplit
from shared_vit.errors import UserError, some
from shared_vit.files import atomic_write, read_limited

NAME = "data_files.gz"
_MOST_FILES = 200_000  # ImageNet's 1.3 million would be megabytes in every run
_MOST_BYTES = 1 << 28
_SHOWN = 4


def write_files(folder: Path, dataset: Dataset) -> None:
    """Write a line for each file: split, class, size and path. Writes nothing for data that are
    not an image folder, or for more than 200,000 files. Raises UserError where writing fails."""
    lines = _lines(dataset)
    if lines is None:
        return
    with atomic_write(folder / NAME) as file:
        # without a time stamp: equal data are equal files
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=1, mtime=0) as out:
            out.write("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))


def changes(folder: Path, dataset: Dataset) -> str:
    """The first files that are missing, new or changed since the run began, in words; "" where the
    list of that time cannot be read or the data are no folder."""
    now = _lines(dataset)
    try:
        packed = read_limited(folder / NAME, _MOST_BYTES)
        before = gzip.decompress(packed).decode("utf-8", "surrogateescape").splitlines()
    except (FileNotFoundError, UserError, OSError, EOFError, ValueError):
        return ""
    if now is None:
        return ""
    old, new = _by_path(before), _by_path(now)
    found = [f"{p} is missing" for p in islice((p for p in old if p not in new), _SHOWN)]
    found += [f"{p} is new" for p in islice((p for p in new if p not in old), _SHOWN)]
    other = (p for p in old if p in new and old[p] != new[p])
    found += [f"{p} has another size or class" for p in islice(other, _SHOWN)]
    return some(found, 2 * _SHOWN)


def _lines(dataset: Dataset) -> list[str] | None:
    splits = (("train", dataset.train), ("val", dataset.val))
    if len(dataset.train) + len(dataset.val) > _MOST_FILES:
        return None
    found: list[str] = []
    for name, split in splits:
        if not isinstance(split, FolderSplit):
            return None
        found += [f"{name}\t{label}\t{size}\t{path}" for path, label, size in split.files()]
    return found


def _by_path(lines: list[str]) -> dict[str, str]:
    """`{path: split, class and size}`."""
    parts = (line.rpartition("\t") for line in lines)
    return {path: rest for rest, _, path in parts}
