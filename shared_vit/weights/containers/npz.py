"""NumPy `.npz` archives, read without pickle and array by array, written without time stamps."""

import os
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.lib import format as npy

from shared_vit.errors import UserError
from shared_vit.files import check_name, reason, whole_file
from shared_vit.weights.lazy import Arrays, LazyArray

_RATIO = 20  # trained weights hardly compress; a file that grows more than this is no weight file
# What zipfile raises for spoiled archives: ValueError for names that are no text, RuntimeError for encryption, ...
_ZIP_ERRORS = (
    OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError, struct.error,
    OverflowError,
)  # fmt: skip
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def open_npz(path: str | os.PathLike) -> dict[str, LazyArray]:
    """`{name: array}` of an archive, arrays read when asked for; raw two-byte items (`|V2`) are bfloat16.

    Names, dtypes, shapes and sizes are checked now against each other. Raises UserError for an archive that is not
    whole, would unpack to far more than its size, or holds Python objects.
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


def open_zip(path: Path) -> zipfile.ZipFile:
    """An archive whose table of contents is sound. Raises UserError for any other file."""
    try:
        return zipfile.ZipFile(path)
    except _ZIP_ERRORS as error:
        raise UserError(f"{path} is not a whole archive: {reason(error)}") from error


def _lazy(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> LazyArray:
    shape, fortran, dtype, start = _header(path, archive, entry, name)
    stored = np.dtype("V2") if dtype == _BFLOAT16 else dtype
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if entry.file_size != start + size:
        raise UserError(
            f"{path}: the array {name} {shape} of {dtype} takes {size:,} bytes, and there are "
            f"{entry.file_size - start:,}: the file was cut or altered"
        )

    def load() -> np.ndarray:
        buffer = bytearray(size)
        try:
            with archive.open(entry) as file:
                file.read(start)
                view, done = memoryview(buffer), 0
                while done < size and (count := file.readinto(view[done : done + (1 << 24)])):
                    done += count
                if done < size or file.read(
                    1
                ):  # reading past the end makes zipfile compare its CRC
                    raise EOFError("an array ends early")
        except _ZIP_ERRORS as error:
            raise UserError(f"{path}: the array {name} cannot be read: {reason(error)}") from error
        array = np.frombuffer(buffer, stored).view(dtype)
        return array.reshape(shape, order="F" if fortran else "C")

    return LazyArray(
        shape, dtype.newbyteorder("="), load if dtype.isnative else lambda: _native(load())
    )


def _header(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str):
    """`(shape, fortran order, dtype, length of the header)` of one array."""
    try:
        with archive.open(entry) as file:
            version = npy.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"version {version} of the format")
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(file)
            start = file.tell()
    except (
        *_ZIP_ERRORS,
        TypeError,
        SyntaxError,
        tokenize.TokenError,
        RecursionError,
        MemoryError,
    ) as error:
        raise UserError(
            f"{path}: the array {name} has no readable header: {reason(error)}"
        ) from error
    if dtype == np.dtype("V2"):
        dtype = _BFLOAT16
    if (
        dtype.hasobject
        or dtype.kind not in "fiub"
        and dtype != _BFLOAT16
        or min(shape, default=0) < 0
    ):
        raise UserError(
            f"{path}: the array {name} is of {dtype}, shape {shape}: weights are arrays of floats"
        )
    return shape, fortran, dtype, start


def _native(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder("="))


def write_npz(path: str | os.PathLike, arrays: Arrays) -> None:
    """Write arrays one at a time, not compressed; bfloat16 as raw two-byte items. Equal arrays are equal files."""
    with whole_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            array = np.ascontiguousarray(arrays[name])
            if array.dtype == _BFLOAT16:
                array = array.view("V2")
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            with archive.open(entry, "w", force_zip64=True) as member:
                npy.write_array(member, array, allow_pickle=False)
