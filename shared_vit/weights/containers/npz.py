"""NumPy `.npz` archives, read without pickle and array by array, written without time stamps."""

import os
import tokenize
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from numpy.lib import format as npy

from shared_vit.errors import UserError
from shared_vit.files import atomic_write, check_name, reason
from shared_vit.weights.containers import Progress
from shared_vit.weights.containers.archive import ZIP_ERRORS, open_zip
from shared_vit.weights.lazy import Arrays, LazyArray

_RATIO = 20  # trained weights hardly compress; a file that grows more than this is no weight file
_HEADER_ERRORS = (
    *ZIP_ERRORS,
    TypeError,
    SyntaxError,
    tokenize.TokenError,
    RecursionError,
    MemoryError,
)
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def open_npz(path: str | os.PathLike) -> dict[str, LazyArray]:
    """`{name: array}` of an archive, arrays read on access; raw `|V2` items are bfloat16.

    Names, dtypes, shapes and sizes are checked now against each other. Raises UserError for an
    archive that is damaged, would unpack to far more than its size, or holds Python objects.
    """
    path = Path(path)
    archive = open_zip(path)
    entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > _RATIO * os.path.getsize(path) + (1 << 20):
        raise UserError(
            f"{path} would unpack to {unpacked:,} bytes, far more than weights do: not read"
        )
    arrays: dict[str, LazyArray] = {}
    for entry in entries:
        check_name(path, entry.filename)
        if not entry.filename.endswith(".npy"):
            raise UserError(f"{path}: {entry.filename} is not an array")
        name = entry.filename.removesuffix(".npy")
        if name in arrays:
            raise UserError(f"{path}: the array {name} is there twice")
        arrays[name] = _lazy(path, archive, entry, name)
    return arrays


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    length: int  # bytes of the header itself


def _lazy(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> LazyArray:
    header = _header(path, archive, entry, name)
    size = int(np.prod(header.shape, dtype=object)) * header.dtype.itemsize
    if entry.file_size != header.length + size:
        raise UserError(
            f"{path}: the array {name} {header.shape} of {header.dtype} takes {size:,} bytes, and "
            f"there are {entry.file_size - header.length:,}: the file was cut or altered"
        )
    load = _loader(path, archive, entry, name, header, size)
    return LazyArray(header.shape, header.dtype.newbyteorder("="), load)


def _loader(
    path: Path,
    archive: zipfile.ZipFile,
    entry: zipfile.ZipInfo,
    name: str,
    header: _Header,
    size: int,
) -> Callable[[], np.ndarray]:
    stored = np.dtype("V2") if header.dtype == _BFLOAT16 else header.dtype

    def load() -> np.ndarray:
        buffer = bytearray(size)
        try:
            with archive.open(entry) as file:
                assert isinstance(file, zipfile.ZipExtFile)
                file.read(header.length)
                view, done = memoryview(buffer), 0
                while done < size and (count := file.readinto(view[done : done + (1 << 24)])):
                    done += count
                # Reading past the end makes zipfile compare its CRC.
                if done < size or file.read(1):
                    raise EOFError("an array ends early")
        except ZIP_ERRORS as error:
            raise UserError(f"{path}: the array {name} cannot be read: {reason(error)}") from error
        array = np.frombuffer(buffer, stored).view(header.dtype)
        array = array.reshape(header.shape, order="F" if header.fortran else "C")
        return array.astype(array.dtype.newbyteorder("="), copy=False)

    return load


def _header(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> _Header:
    try:
        with archive.open(entry) as file:
            version = npy.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"version {version} of the format")
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(file)
            length = file.tell()
    except _HEADER_ERRORS as error:
        raise UserError(
            f"{path}: the array {name} has no readable header: {reason(error)}"
        ) from error
    if dtype == np.dtype("V2"):
        dtype = _BFLOAT16
    number = dtype.kind in "fiub" or dtype == _BFLOAT16
    if dtype.hasobject or not number or min(shape, default=0) < 0:
        raise UserError(
            f"{path}: the array {name} is of {dtype}, shape {shape}: weights are arrays of floats"
        )
    return _Header(shape, fortran, dtype, length)


def write_npz(path: str | os.PathLike, arrays: Arrays, progress: Progress | None = None) -> None:
    """Write arrays one at a time, not compressed; bfloat16 as raw two-byte items.

    Equal arrays are equal files. Raises UserError where the file cannot be written.
    """
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            array = np.ascontiguousarray(arrays[name])
            if array.dtype == _BFLOAT16:
                array = array.view("V2")
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            with archive.open(entry, "w", force_zip64=True) as member:
                npy.write_array(member, array, allow_pickle=False)
            if progress:
                progress(array.nbytes)
