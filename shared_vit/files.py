"""Files on disk: written completely or not at all, and read only where they are regular files.

Writing goes to a temporary name in the same directory, which is fsynced and renamed.
"""

import os
import secrets
import stat
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from shared_vit.errors import UserError


def open_regular(path: str | os.PathLike) -> BufferedReader:
    """A regular file, opened for reading.

    A FIFO or a device would block or never end, and says nothing of its size. Raises UserError for
    those and for a file that cannot be read; FileNotFoundError where there is none.
    """
    path = Path(path)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f"cannot read {path}: it is not a regular file")
    return open(handle, "rb")  # the caller closes it


class KeptOpen:
    """An open file that is closed when nothing refers to this object any more."""

    def __init__(self, file: BufferedReader):
        self.file = file
        weakref.finalize(self, file.close)


def read_limited(path: str | os.PathLike, most: int) -> bytes:
    """The contents of a regular file of at most `most` bytes.

    Raises UserError for anything else, and for one that cannot be read; FileNotFoundError where
    there is none.
    """
    try:
        with open_regular(path) as file:
            fits = os.fstat(file.fileno()).st_size <= most
            data = file.read() if fits else b""  # `read(most)` would allocate `most` bytes
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if not fits or len(data) > most:
        raise UserError(f"cannot read {path}: it has more than {most:,} bytes")
    return data


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A new binary file that becomes `path` when the block ends; on failure nothing is left.

    Raises UserError where the file cannot be written (no such folder, read-only, disk full).
    """
    path = Path(path)
    temporary = None
    try:
        if path.is_dir():
            raise UserError(f"cannot write {path}: there is a folder of that name")
        candidate = temporary_path(path)
        with open(candidate, "x+b") as file:
            temporary = candidate
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
        sync(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """A temporary name in the folder of `path`, hidden and not taken."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def sync(path: str | os.PathLike) -> None:
    """Wait until a file, or the names in a folder, are on disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def wait_until_there(path: Path, seconds: float = 300.0) -> None:
    """Wait for a file that another process writes, for at most so long."""
    end = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.05)


def check_name(where: str | os.PathLike, name: object) -> None:
    """Raise UserError for an array's name that is unfit for messages: long, or not printable."""
    if not isinstance(name, str) or not name.isprintable() or len(name) > 300:
        text = ascii(name[:80]) if isinstance(name, str) else f"of type {type(name).__name__}"
        raise UserError(f"{where} has an array with an unreadable name, {text}")


def reason(error: BaseException) -> str:
    """A library's message about a damaged file: one line of at most 200 characters."""
    return ((str(error).strip() or type(error).__name__).splitlines()[0])[:200]
