"""The files of an image folder, listed once: names, classes and sizes, and whether any of it has changed since."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared_vit.errors import UserError

ENDINGS = tuple(b".jpg .jpeg .png .ppm .pgm .bmp .tif .tiff .webp .gif".split())
_THREADS = 16  # more than cores: on a network file system a stat waits
_STAT_AT_ONCE = 8192
_VERSION = 1


class Names:
    """A list of byte strings in two arrays: 1.3 million paths take 45 MB and pickle at once."""

    def __init__(self, joined: np.ndarray, ends: np.ndarray):
        self.joined, self.ends = joined, ends

    @classmethod
    def of(cls, names: list[bytes]) -> Names:
        joined = np.frombuffer(b"".join(names), np.uint8)
        return cls(joined, np.cumsum([len(n) for n in names], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> bytes:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self.part(index, index + 1)[0]

    def part(self, begin: int, end: int) -> list[bytes]:
        """Names `begin` to `end`, that not included."""
        ends = self.ends[begin:end].tolist()
        first = int(self.ends[begin - 1]) if begin else 0
        joined = self.joined[first : ends[-1]].tobytes()
        return [joined[s - first : e - first] for s, e in zip([first, *ends], ends)]


@dataclass
class Listing:
    """Images of one split, sorted by class and then by path.

    directories: every directory seen, with modification times `directory_times` int64 [D] (ns); files: paths below the
    root, with labels int32, sizes int64 (bytes), times int64 (ns), each [N]. Paths are the file system's bytes.
    """

    class_names: list[str]
    directories: Names
    directory_times: np.ndarray
    files: Names
    labels: np.ndarray
    sizes: np.ndarray
    times: np.ndarray

    def digest(self) -> bytes:
        """Of names, classes and sizes; not of where the folder lies, nor of times, which copying changes."""
        h = hashlib.sha256("\0".join(self.class_names).encode("utf-8", "surrogateescape"))
        for array in (self.files.joined, self.files.ends, self.labels, self.sizes):
            h.update(np.ascontiguousarray(array).tobytes())
        return h.digest()

    def same(self, other: Listing) -> bool:
        """Whether both saw the same files, at the same times."""
        times = all(
            np.array_equal(getattr(self, n), getattr(other, n))
            for n in ("directory_times", "times")
        )
        return times and self.digest() == other.digest()

    def unchanged(self, root: bytes) -> bool:
        """Whether every directory and file is still there, with the time and size it had."""
        try:
            _, times = _stat_all(root, self.directories)
            if not np.array_equal(times, self.directory_times):
                return False
            sizes, times = _stat_all(root, self.files)
        except OSError:
            return False
        return np.array_equal(sizes, self.sizes) and np.array_equal(times, self.times)


def list_split(root: Path, split: str, classes: list[str] | None = None) -> Listing:
    """Lists `root/split/<class>/**/<image>`; classes in sorted order, or as given (those of the training split).

    Links are followed, hidden files and directories and other endings left out. Raises UserError for a split that
    cannot be read or has no images, a training class that has none, and a class that `classes` lacks.
    """
    top = root / split
    base = os.fsencode(root)
    directories: list[bytes] = [os.fsencode(split)]
    found: dict[str, list[bytes]] = {}
    try:
        with os.scandir(top) as entries:
            names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
        for name in names:
            found[name] = _images_below(base, os.fsencode(os.path.join(split, name)), directories)
    except OSError as error:
        raise UserError(
            f"cannot read {os.fsdecode(error.filename or top)}: {error.strerror}"
        ) from error
    if not names:
        raise UserError(
            f"{top} has no class folders: images are expected as {top}/<class>/<image>.JPEG"
        )
    if not any(found.values()):
        raise UserError(
            f"{top} has {len(names)} class folders and no images in them ({_shown_endings()})"
        )
    if classes is None:
        classes = names
        if empty := [n for n in names if not found[n]]:
            raise UserError(
                f"{_some(empty)} in {top} {'has' if len(empty) == 1 else 'have'} no images: remove or fill"
            )
    elif unknown := sorted(n for n in names if n not in set(classes) and found[n]):
        raise UserError(f"{top} has classes that the training split lacks: {_some(unknown)}")
    numbers = {name: i for i, name in enumerate(classes)}
    files, labels = [], []
    for name in classes:
        inside = found.get(name, [])
        files += inside
        labels += [numbers[name]] * len(inside)
    file_names, directory_names = Names.of(files), Names.of(directories)
    try:
        _, directory_times = _stat_all(base, directory_names)
        sizes, times = _stat_all(base, file_names)
    except OSError as error:
        raise UserError(
            f"cannot read {os.fsdecode(error.filename or top)}: {error.strerror}"
        ) from error
    return Listing(
        list(classes),
        directory_names,
        directory_times,
        file_names,
        np.array(labels, np.int32),
        sizes,
        times,
    )


def _images_below(
    base: bytes, directory: bytes, visited: list[bytes], above: frozenset = frozenset()
) -> list[bytes]:
    """Image files in and below `base/directory`, sorted, as paths below `base`; adds directories to `visited`."""
    path = os.path.join(base, directory)
    status = os.stat(path)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return []  # a link back up
    visited.append(directory)
    files, below = [], []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            inside = os.path.join(directory, entry.name)
            if entry.is_dir():
                below.append(inside)
            elif entry.name.lower().endswith(ENDINGS):
                files.append(inside)
    for inside in sorted(below):
        files += _images_below(base, inside, visited, above | {identity})
    return sorted(files)


def _stat_all(base: bytes, names: Names) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and modification times (ns) of files below `base`, both int64 [N]."""
    result = np.empty((len(names), 2), np.int64)
    prefix = base + b"/"

    def run(begin: int) -> None:
        found = []
        for name in names.part(begin, begin + _STAT_AT_ONCE):
            status = os.stat(prefix + name)
            found.append((status.st_size, status.st_mtime_ns))
        result[begin : begin + _STAT_AT_ONCE] = found

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(run, range(0, len(names), _STAT_AT_ONCE)))
    return result[:, 0].copy(), result[:, 1].copy()


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _shown_endings() -> str:
    return b" ".join(ENDINGS).decode()


def cached_listing(
    root: Path, split: str, classes: list[str] | None, cache_dir: Path | None
) -> Listing:
    """`list_split`, or what `keep_listing` wrote into `cache_dir` if every file is still what it was."""
    kept = (
        None
        if cache_dir is None
        else _load(_cache_file(cache_dir, split), _key(root, split, classes))
    )
    if kept is not None and kept.unchanged(os.fsencode(root)):
        return kept
    return list_split(root, split, classes)


def keep_listing(
    root: Path, split: str, classes: list[str] | None, listing: Listing, cache_dir: Path
) -> None:
    """Write a listing of `cached_listing`'s arguments for the next time, unless it is there already."""
    path, key = _cache_file(cache_dir, split), _key(root, split, classes)
    kept = _load(path, key)
    if kept is None or not kept.same(listing):
        _save(path, key, listing)


def _cache_file(cache_dir: Path, split: str) -> Path:
    return Path(cache_dir) / f"files_{split}.npz"


def _key(root: Path, split: str, classes: list[str] | None) -> str:
    parts = [str(_VERSION), str(root.resolve()), split, *(classes or [])]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


_ARRAYS = ("directory_times", "labels", "sizes", "times")


def _save(path: Path, key: str, listing: Listing) -> None:
    """Written aside and renamed: several processes may do so at once."""
    arrays = {name: getattr(listing, name) for name in _ARRAYS}
    for name in ("directories", "files"):
        names = getattr(listing, name)
        arrays |= {f"{name}_joined": names.joined, f"{name}_ends": names.ends}
    classes = Names.of([os.fsencode(c) for c in listing.class_names])
    arrays |= {"classes_joined": classes.joined, "classes_ends": classes.ends}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, key=key, **arrays)
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise


def _load(path: Path, key: str) -> Listing | None:
    """None where there is no listing, or one of something else, or none that can be read."""
    try:
        with np.load(path) as kept:
            if str(kept["key"]) != key:
                return None
            names = {
                n: Names(kept[f"{n}_joined"], kept[f"{n}_ends"])
                for n in ("directories", "files", "classes")
            }
            arrays = {n: kept[n] for n in _ARRAYS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    classes = [os.fsdecode(names["classes"][i]) for i in range(len(names["classes"]))]
    return Listing(
        class_names=classes, directories=names["directories"], files=names["files"], **arrays
    )
