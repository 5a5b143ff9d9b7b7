"""Plain names of ImageNet's classes, which its folders call by WordNet number."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import resources


@functools.cache
def imagenet_names() -> dict[str, str]:
    """`{"n01440764": "tench", ...}`: the 1,000 classes of ILSVRC2012 in the order of the labels."""
    text = (resources.files("shared_vit.data.sources") / "imagenet_names.txt").read_text("utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return dict(line.split(" ", 1) for line in lines)


def plain_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names with plain ones in place of WordNet numbers, where all are numbers of ImageNet."""
    known = imagenet_names()
    return tuple(known[name] for name in names) if set(names) <= known.keys() else tuple(names)
