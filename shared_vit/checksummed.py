"""JSON documents that end with their own checksum, so that every altered byte is seen."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from shared_vit.errors import UserError
from shared_vit.files import atomic_write, read_limited

_ZEROS = "0" * 64
_SEALED = re.compile(rb'"checksum": "([0-9a-f]{64})"\s*}\Z')
_MOST = 1 << 26


class ChecksumMismatch(UserError):
    """The checksum of a document is not that of its text."""


def write_checksummed(path: str | os.PathLike, document: Mapping[str, Any]) -> None:
    """Write a JSON object, indented by one, whose last value is the SHA-256 of its text.

    The checksum is computed with zeros where it is written. Raises UserError where the file cannot
    be written.
    """
    text = json.dumps({**document, "checksum": _ZEROS}, indent=1).encode()
    checksum = hashlib.sha256(text).hexdigest().encode()
    with atomic_write(path) as file:
        file.write(text[: -len(_ZEROS) - 3] + checksum + text[-3:])


def read_checksummed(path: str | os.PathLike) -> dict[str, Any]:
    """The object that `write_checksummed` wrote, without its checksum.

    Raises FileNotFoundError, ChecksumMismatch where the text was changed, and UserError for
    anything else that is no such file.
    """
    return verified(path, read_limited(path, _MOST))


def verified(path: str | os.PathLike, text: bytes) -> dict[str, Any]:
    """`read_checksummed` of the text of the file `path`, raising what it raises."""
    found = _SEALED.search(text)
    if not found:
        raise UserError(f"{path} is not intact: it does not end with its checksum")
    start, end = found.span(1)
    plain = text[:start] + _ZEROS.encode() + text[end:]
    if hashlib.sha256(plain).hexdigest().encode() != found[1]:
        raise ChecksumMismatch(f"{path} was altered after it was written (its checksum differs)")
    document = parse_object(path, text)
    del document["checksum"]
    return document


def parse_object(path: str | os.PathLike, text: bytes) -> dict[str, Any]:
    """A JSON object with each name once. Raises UserError for any other text."""
    try:
        document = json.loads(text, object_pairs_hook=each_name_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no readable JSON: {str(error)[:200]}") from error
    if not isinstance(document, dict):
        raise UserError(f"{path} is no JSON object")
    return document


def each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object for `json.loads(object_pairs_hook=...)`; ValueError for a name twice in it."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError("it has a name twice")
    return dict(pairs)
