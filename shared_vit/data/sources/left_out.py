"""Files in class folders that are not read: counted by folder and ending, so that they are said."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Mapping

from shared_vit.errors import some

# Of photographs; what else lies about in class folders (texts, databases of thumbnails) is counted
# in the same way.
NEEDS = {
    ".heic": "HEIC is read where pillow-heif is installed: pip install pillow-heif",
    ".heif": "HEIC is read where pillow-heif is installed: pip install pillow-heif",
    ".jp2": "JPEG 2000 is not read: convert it to PNG or JPEG",
    ".tga": "TGA is not read: convert it to PNG or JPEG",
    ".dng": "raw photographs are not read: develop them to PNG or JPEG",
    ".cr2": "raw photographs are not read: develop them to PNG or JPEG",
    ".nef": "raw photographs are not read: develop them to PNG or JPEG",
}

LeftOut = Mapping[str, Mapping[str, int]]  # {folder: {ending: files}}, both printable


def heic_is_read() -> bool:
    """Whether the package is here by which Pillow reads HEIC; nothing is imported."""
    return importlib.util.find_spec("pillow_heif") is not None


def ending_of(name: bytes) -> str:
    """The ending of a file's name in small letters, printable; "none" without one."""
    ending = os.path.splitext(name)[1].lower().decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in ending[:20]) or "none"


def describe(place: str, left_out: LeftOut) -> str:
    """How many files of a split are left out, by ending and folder; empty where there are none."""
    totals: Counter[str] = Counter()
    where: dict[str, list[str]] = {}
    for folder, endings in left_out.items():
        for ending, count in endings.items():
            totals[ending] += count
            where.setdefault(ending, []).append(f"{folder} {count}")
    if not totals:
        return ""
    kinds = [f"{e} {n} ({some(where[e], separator=', ')})" for e, n in totals.most_common()]
    number = sum(totals.values())
    files = "file is" if number == 1 else "files are"
    text = f"{number:,} {files} left out of {place}, by ending: {some(kinds, 8)}"
    return "; ".join([text, *hints(totals)])


def hints(endings: Mapping[str, int]) -> list[str]:
    """What makes files of these endings readable, a sentence for each kind."""
    return list(dict.fromkeys(NEEDS[ending] for ending in endings if ending in NEEDS))
