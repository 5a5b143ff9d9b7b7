"""Zip archives from strangers, opened with limits: `.npz` and PyTorch's files are such archives."""

import struct
import weakref
import zipfile
import zlib
from pathlib import Path

from shared_vit.errors import UserError
from shared_vit.files import open_regular, reason
from shared_vit.weights.containers import check_count

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those that NumPy and PyTorch write
# What zipfile raises for damaged archives: ValueError for names that are no text, RuntimeError for
# encryption, ...
ZIP_ERRORS = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    OverflowError,
)


def open_zip(path: Path) -> zipfile.ZipFile:
    """An archive with a valid table of contents. Raises UserError for any other file."""
    file = open_regular(path)
    try:
        archive = zipfile.ZipFile(file)
    except ZIP_ERRORS as error:
        file.close()
        raise UserError(f"{path} is not an intact archive: {reason(error)}") from error
    weakref.finalize(archive, file.close)
    entries = archive.infolist()
    check_count(path, len(entries))
    for entry in entries:
        if entry.compress_type not in METHODS:
            raise UserError(
                f"{path}: {ascii(entry.filename)[:80]} is compressed in a way that neither NumPy "
                "nor PyTorch writes"
            )
    return archive


def read_entry(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int) -> bytes:
    """The contents of a small entry. Raises UserError where it is damaged or has too many bytes."""
    if entry.file_size > most:
        raise UserError(f"{path}: {entry.filename} takes {entry.file_size:,} bytes, too many")
    try:
        return archive.read(entry)
    except ZIP_ERRORS as error:
        raise UserError(f"{path} is not an intact archive: {reason(error)}") from error
