"""Files that stand where weights were expected, and what they are."""

from __future__ import annotations

from pathlib import Path

HEAD = 512  # first bytes by which they are told


def what_it_is(head: bytes) -> str:
    """A sentence for a file that is no weight file, from its first `HEAD` bytes."""
    start = head.lstrip().lower()
    if not head:
        return "it is empty: it was not written or downloaded whole"
    if head.startswith(b"version https://git-lfs"):
        return (
            "it is a pointer of git-lfs, which stands for the weights: `git lfs pull` in its "
            "repository fetches them"
        )
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return (
            "it is a web page: download the file itself (on the Hugging Face hub the address has "
            "/resolve/, and not /blob/)"
        )
    if start.startswith((b"{", b"[")):
        return "it is JSON: name the weight file itself, or its folder"
    return "its first bytes are of none of them"


def checkpoints_below(folder: Path) -> list[Path]:
    """The folders `checkpoint-N` that a trainer of transformers left in a folder, newest last."""
    found = [p for p in folder.glob("checkpoint-*") if p.name[11:].isdecimal() and p.is_dir()]
    return sorted(found, key=lambda path: int(path.name[11:]))
