"""safetensors files, written with sorted contents, no time stamps and a checksum.

Equal contents are equal files. The checksum is SHA-256 over the file, with zeros in the checksum's
own field, so that every altered byte of header or payload is noticed. Other tools read these files
as any safetensors.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from shared_vit.checksummed import each_name_once
from shared_vit.errors import UserError
from shared_vit.files import KeptOpen, atomic_write, check_name, open_regular, reason
from shared_vit.weights.containers import Progress, check_count
from shared_vit.weights.lazy import Arrays, LazyArray

_CHECKSUM = "twinvit_checksum"
OWN_FORMAT = "twinvit"
_MARKS = (_CHECKSUM, "model_config")  # a file with one of these keys is this project's
_ZEROS = "0" * 64
_CHUNK = 1 << 22
_LONGEST_HEADER = 1 << 24  # bytes; over 100,000 arrays

_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def write_safetensors(
    path: str | os.PathLike,
    arrays: Arrays,
    metadata: Mapping[str, str],
    progress: Progress | None = None,
) -> str:
    """Write arrays of any names and shapes, lazy ones one at a time, and metadata with a checksum.

    Returns the checksum. The order in the file is by item size, then name, whatever the order of
    `arrays`. Raises UserError where the file cannot be written, and then leaves nothing behind;
    TypeError for a dtype that safetensors does not support.
    """
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict = {"__metadata__": dict(sorted({**metadata, _CHECKSUM: _ZEROS}.items()))}
    offset = 0
    for name in names:
        array = arrays[name]
        dtype = array.dtype.newbyteorder("<")
        if dtype not in _NAMES:
            raise TypeError(f"{name}: safetensors files have no {array.dtype}")
        size = int(np.prod(array.shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": [int(n) for n in array.shape],
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the payload
    start = len(text).to_bytes(8, "little") + text
    with atomic_write(path) as file:
        digest = hashlib.sha256(start)
        file.write(start)
        for name in names:
            data = _bytes(np.asarray(arrays[name]))
            digest.update(data)
            file.write(data)
            if progress:
                progress(len(data))
        place = start.index(f'"{_CHECKSUM}":"{_ZEROS}"'.encode()) + len(_CHECKSUM) + 4
        file.seek(place)
        file.write(digest.hexdigest().encode())
    return digest.hexdigest()


def _bytes(array: np.ndarray) -> memoryview:
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return array.reshape(-1).view(np.uint8).data


def open_safetensors(
    path: str | os.PathLike,
) -> tuple[dict[str, LazyArray], dict[str, str]]:
    """`(arrays, metadata)` of any safetensors file, without reading the arrays.

    The structure is checked now, and the checksum of a file of this project. The open file stays
    the one that was checked, even when another is renamed into its place. Raises UserError for a
    file that is not there, damaged, altered, or of an unknown dtype.
    """
    opened = _opened(Path(path), own=False)
    return opened.arrays, opened.metadata


class OwnFile(NamedTuple):
    """A file of this project, verified."""

    arrays: dict[str, LazyArray]
    metadata: dict[str, str]
    checksum: str


def open_own(path: str | os.PathLike) -> OwnFile:
    """Open a file of this project. Raises UserError for any other, and for an altered one."""
    return _opened(Path(path), own=True)


def _opened(path: Path, own: bool) -> OwnFile:
    try:
        kept = KeptOpen(open_regular(path))  # by the lazy arrays
    except FileNotFoundError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    start, header = _header(path, kept.file)
    metadata = header.pop("__metadata__", None) or {}
    if own or metadata.get("format") == OWN_FORMAT or any(key in metadata for key in _MARKS):
        _verify(path, kept.file, start, metadata)
    arrays = {}
    for name, entry in header.items():
        check_name(path, name)
        if entry["dtype"] not in _DTYPES:
            raise UserError(
                f"{path}: tensor {name} has the type {entry['dtype']}; known are "
                f"{', '.join(_DTYPES)}"
            )
        load = _loader(path, kept, name, len(start) + entry["data_offsets"][0], entry)
        arrays[name] = LazyArray(tuple(entry["shape"]), _DTYPES[entry["dtype"]], load)
    checksum = metadata.pop(_CHECKSUM, "")
    return OwnFile(arrays, metadata, checksum)


def _header(path: Path, file: BinaryIO) -> tuple[bytes, dict[str, Any]]:
    """The bytes before the payload, and the header in them, checked by the safetensors library."""
    import safetensors

    try:
        length = int.from_bytes(file.read(8), "little")
        if length > _LONGEST_HEADER:
            raise ValueError(f"its header claims {length:,} bytes, more than any ViT needs")
        text = file.read(length)
        with safetensors.safe_open(path, framework="np"):
            pass  # checks names, types, shapes, offsets and the file's size
        header = json.loads(text, object_pairs_hook=each_name_once)
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{path} is not an intact safetensors file: {reason(error)}") from error
    check_count(path, len(header))
    return length.to_bytes(8, "little") + text, header


def _verify(path: Path, file: BinaryIO, start: bytes, metadata: Mapping[str, str]) -> None:
    stated = metadata.get(_CHECKSUM, "")
    if not re.fullmatch("[0-9a-f]{64}", stated):
        raise UserError(
            f"{path} has no checksum of this project: it was altered, or another program wrote it"
        )
    digest = hashlib.sha256(start.replace(stated.encode(), _ZEROS.encode()))
    file.seek(len(start))
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    if digest.hexdigest() != stated:
        raise UserError(
            f"{path} was altered after it was written (its checksum differs): use another copy"
        )


def _loader(
    path: Path, kept: KeptOpen, name: str, offset: int, entry: Mapping[str, Any]
) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
        array = np.empty(entry["shape"], _DTYPES[entry["dtype"]])
        view = array.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(view):  # one read may give less than was requested
            count = os.preadv(kept.file.fileno(), [view[done:]], offset + done)
            if not count:
                raise UserError(f"{path} ends within the tensor {name}: it was cut while read")
            done += count
        return array

    return load
