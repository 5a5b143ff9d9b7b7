"""Files that are whole or absent: written under a temporary name in the same directory, fsynced, renamed."""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from shared_vit.errors import UserError


def read_limited(path: str | os.PathLike, most: int) -> bytes:
    """The contents of a regular file of at most `most` bytes.

    A FIFO or a device would block or never end, and says nothing of its size. Raises UserError for
    those, for a larger file, and for one that cannot be read; FileNotFoundError where there is none.
    """
    path = Path(path)
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb", buffering=0) as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"cannot read {path}: it is not a regular file")
            fits = status.st_size <= most
            data = file.readall() if fits else b""  # `read(most)` would allocate `most` bytes
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if not fits or len(data) > most:
        raise UserError(f"cannot read {path}: it has more than {most:,} bytes")
    return data


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A new binary file that becomes `path` when the block ends, and leaves nothing behind when it fails.

    Raises UserError where the file cannot be written (no such folder, read-only, disk full).
    """
    path = Path(path)
    temporary = None
    try:
        if path.is_dir():
            raise UserError(f"cannot write {path}: there is a folder of that name")
        candidate = beside(path)
        with open(candidate, "x+b") as file:
            temporary = candidate
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def beside(path: Path) -> Path:
    """A temporary name in the folder of `path`, hidden and not taken."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def check_name(where: str | os.PathLike, name: object) -> None:
    """Raise UserError for an array's name that no message should repeat: not text, not printable, or endless."""
    if not isinstance(name, str) or not name.isprintable() or len(name) > 300:
        text = ascii(name[:80]) if isinstance(name, str) else f"of type {type(name).__name__}"
        raise UserError(f"{where} has an array with an unreadable name, {text}")


def reason(error: BaseException) -> str:
    """What a library says of a spoiled file: one line of at most 200 characters."""
    return ((str(error).strip() or type(error).__name__).splitlines()[0])[:200]


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
