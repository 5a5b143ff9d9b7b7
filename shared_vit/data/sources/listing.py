"""The files of one split of an image folder: names, classes and sizes."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shared_vit.data.sources import left_out as leaving
from shared_vit.data.sources.class_order import BY_NAME, ordered
from shared_vit.errors import UserError, some

_HEIC = b".heic .heif".split() if leaving.heic_is_read() else []
ENDINGS = (
    *b".jpg .jpeg .png .ppm .pgm .bmp .tif .tiff .webp .gif .jfif .jpe .avif".split(),
    *_HEIC,
)
KNOWN = f"({b' '.join(ENDINGS).decode()})"  # for messages
_THREADS = 16  # more than cores: `stat` waits on a network file system
_STAT_AT_ONCE = 8192


class Names:
    """A list of byte strings in two arrays: 1.3 million paths take 45 MB and pickle quickly."""

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
        """Names `begin` to `end`, `end` excluded."""
        ends = self.ends[begin:end].tolist()
        first = int(self.ends[begin - 1]) if begin else 0
        joined = self.joined[first : ends[-1]].tobytes()
        return [joined[s - first : e - first] for s, e in zip([first, *ends], ends)]


@dataclass(frozen=True)
class Listing:
    """The images of one split, sorted by class and then by path.

    files: paths below the root as the file system's bytes, with labels int32 [N] and sizes int64
    [N] in bytes. left_out: files that are no images by their endings, which are counted by folder.
    """

    class_names: list[str]
    files: Names
    labels: np.ndarray
    sizes: np.ndarray
    left_out: leaving.LeftOut = field(default_factory=dict)

    def digest(self) -> bytes:
        """SHA-256 over names, classes and sizes, equal for a copy of the folder."""
        h = hashlib.sha256("\0".join(self.class_names).encode("utf-8", "surrogateescape"))
        for array in (self.files.joined, self.files.ends, self.labels, self.sizes):
            h.update(np.ascontiguousarray(array).tobytes())
        return h.digest()


def list_split(
    root: Path, split: str, classes: list[str] | None = None, order: str = BY_NAME
) -> Listing:
    """The images `root/split/<class>/**/<image>`; `split` is "" for class folders in `root`.

    Classes are in the order that `order` says (see `class_order.ordered`), or as given (those of
    the training split). Links are followed; hidden files and hidden directories are left out, and
    files of other endings, which are counted. Raises UserError for a split that cannot be read or
    has no images, a training class without images, a class that `classes` lacks, and an image that
    is not a regular file.
    """
    top, base = root / split, os.fsencode(root)
    left: dict[str, Counter[str]] = {"": Counter()}
    try:
        names = _class_folders(top, left[""])
        found = {}
        for n in names:
            left[n] = Counter()
            found[n] = _images_below(base, os.fsencode(os.path.join(split, n)), left[n])
        _check_classes(top, names, found, classes, left)
        classes = ordered(names, order, str(top)) if classes is None else classes
        inside = [found.get(name, []) for name in classes]
        files = Names.of([path for paths in inside for path in paths])
        sizes = _sizes(base, files)
    except OSError as error:
        place = os.fsdecode(error.filename or top)
        raise UserError(f"cannot read {printable(place)}: {error.strerror}") from error
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(paths) for paths in inside])
    counted = {printable(n) or "outside": dict(c) for n, c in left.items() if c}
    return Listing(list(classes), files, labels, sizes, counted)


def _class_folders(top: Path, left: Counter[str]) -> list[str]:
    """Sorted names of the folders in a split; files next to them belong to no class."""
    names = []
    with os.scandir(top) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                names.append(entry.name)
            else:
                left[leaving.ending_of(os.fsencode(entry.name))] += 1
    return sorted(names)


def images_below(folder: str | os.PathLike, left: Counter[str] | None = None) -> list[str]:
    """Paths of the image files in a folder and below it, sorted; hidden ones are left out.

    The endings of other files are added to `left`. Raises UserError where it cannot be read.
    """
    top, left = os.fsencode(folder), Counter() if left is None else left
    try:
        below = _images_below(top, b"", left)
        return [os.path.join(os.fsdecode(top), os.fsdecode(path)) for path in below]
    except OSError as error:
        place = os.fsdecode(error.filename or top)
        raise UserError(f"cannot read {printable(place)}: {error.strerror}") from error


def printable(name: str) -> str:
    """A file system's name as text of one line: bytes that are no UTF-8 become escapes, and so do
    line breaks and other characters that are not printable."""
    text = as_text(name)
    return text if text.isprintable() else "".join(map(_escaped, text))


def as_text(name: str) -> str:
    """A file system's name as text that can be written: bytes that are no UTF-8 become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _escaped(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


def layout(*tops: Path) -> str:
    """Where the images of these splits are expected, for messages."""
    places = " and ".join(f"{top}/<class>/<image>" for top in tops)
    return f"images are expected as {places} {KNOWN}"


def _check_classes(
    top: Path,
    names: list[str],
    found: dict[str, list[bytes]],
    classes: list[str] | None,
    left: dict[str, Counter[str]],
) -> None:
    def more(folders: Sequence[str]) -> str:
        counted = {printable(n) or "outside": left[n] for n in folders if left[n]}
        there = leaving.describe(str(top), counted)
        return f"; {there}" if there else ""

    if not names:
        raise UserError(f"{top} has no class folders: {layout(top)}{more([''])}")
    if not any(found.values()):
        raise UserError(
            f"{top} has {len(names)} class folders and no images in them {KNOWN}{more(names)}"
        )
    if classes is None:
        if empty := [n for n in names if not found[n]]:
            verb = "has" if len(empty) == 1 else "have"
            shown = some([printable(n) for n in empty])
            raise UserError(f"{shown} in {top} {verb} no images: remove or fill{more(empty)}")
    elif unknown := [printable(n) for n in names if found[n] and n not in set(classes)]:
        raise UserError(f"{top} has classes that the training split lacks: {some(unknown)}")


def _images_below(
    base: bytes, directory: bytes, left: Counter[str], above: frozenset = frozenset()
) -> list[bytes]:
    """Image files in and below `base/directory`, sorted, as paths below `base`; the endings of
    other files are added to `left`."""
    path = os.path.join(base, directory)
    status = os.stat(path)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return []  # a link back up
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
            else:
                left[leaving.ending_of(entry.name)] += 1
    for inside in sorted(below):
        files += _images_below(base, inside, left, above | {identity})
    return sorted(files)


def _sizes(base: bytes, names: Names) -> np.ndarray:
    """Sizes in bytes, int64 [N], of files below `base`. Raises UserError for other than files."""
    result = np.empty(len(names), np.int64)
    odd: list[str] = []

    def run(begin: int) -> None:
        found = []
        for name in names.part(begin, begin + _STAT_AT_ONCE):
            status = os.stat(os.path.join(base, name))
            found.append(status.st_size)
            if not stat.S_ISREG(status.st_mode):
                odd.append(printable(os.fsdecode(os.path.join(base, name))))
        result[begin : begin + _STAT_AT_ONCE] = found

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(run, range(0, len(names), _STAT_AT_ONCE)))
    if odd:
        raise UserError(f"not regular files, though their names are those of images: {some(odd)}")
    return result
