"""This project's own files: plain safetensors with sorted contents, no time stamps and a checksum.

Equal contents are equal files. The checksum is SHA-256 over the whole file, with zeros where the checksum itself
stands, so that every altered byte of header or payload is seen. Other tools read the files as any safetensors.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np

from shared_vit.errors import UserError
from shared_vit.files import check_name, reason, whole_file
from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig
from shared_vit.weights.lazy import Arrays, LazyArray

FORMAT = "twinvit"
_CHECKSUM = "twinvit_checksum"
_OURS = (_CHECKSUM, "model_config")  # a file with one of these keys is this project's
_ZEROS = "0" * 64
_CHUNK = 1 << 22

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


def write_safetensors(path: str | os.PathLike, arrays: Arrays, metadata: Mapping[str, str]) -> None:
    """Write `arrays` (any names and shapes; one at a time in memory, if lazy) and `metadata` with a checksum.

    The order in the file is by item size, then name, whatever the order of `arrays`. Raises UserError where the file
    cannot be written, and then leaves nothing behind; TypeError for a dtype that safetensors has not.
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
    with whole_file(path) as file:
        digest = hashlib.sha256(start)
        file.write(start)
        for name in names:
            data = np.asarray(arrays[name])
            data = (
                np.ascontiguousarray(data, dtype=data.dtype.newbyteorder("<"))
                .reshape(-1)
                .view(np.uint8)
                .data
            )
            digest.update(data)
            file.write(data)
        place = start.index(f'"{_CHECKSUM}":"{_ZEROS}"'.encode()) + len(_CHECKSUM) + 4
        file.seek(place)
        file.write(digest.hexdigest().encode())


def open_safetensors(
    path: str | os.PathLike, own: bool = False
) -> tuple[dict[str, LazyArray], dict[str, str]]:
    """`(arrays, metadata)` of any safetensors file: its structure is checked now, its arrays are read when asked for.

    A file that this project wrote is read through once for its checksum; `own=True` refuses any other file. The open
    file stays the one that was checked, even when another is renamed into its place. Raises UserError for a file that
    is not there, not whole, altered, or of an unknown dtype.
    """
    path = Path(path)
    try:
        file = open(path, "rb")  # noqa: SIM115 - kept open by the lazy arrays
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    start, header = _header(path, file)
    metadata = header.pop("__metadata__", {})
    if own or any(key in metadata for key in _OURS) or metadata.get("format") == FORMAT:
        _verify(path, file, start, metadata)
    arrays = {}
    for name, entry in header.items():
        check_name(path, name)
        if entry["dtype"] not in _DTYPES:
            raise UserError(
                f"{path}: tensor {name} has the type {entry['dtype']}; known are {', '.join(_DTYPES)}"
            )
        dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
        arrays[name] = LazyArray(
            shape, dtype, _loader(path, file, name, len(start) + entry["data_offsets"][0], entry)
        )
    return arrays, {key: value for key, value in metadata.items() if key != _CHECKSUM}


def read_safetensors(
    path: str | os.PathLike, own: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """`open_safetensors` with all arrays in memory (writable, dtypes as in the file)."""
    arrays, metadata = open_safetensors(path, own)
    return {name: np.asarray(array) for name, array in arrays.items()}, metadata


def write(path: str | os.PathLike, cfg: ModelConfig, arrays: Arrays) -> None:
    """Write canonical arrays with their ModelConfig. Raises UserError where names or shapes do not fit `cfg`."""
    canonical.check(cfg, arrays)
    write_safetensors(path, arrays, {"format": FORMAT, "model_config": cfg.to_json()})


def open_model(path: str | os.PathLike) -> tuple[ModelConfig, dict[str, LazyArray]]:
    """`(cfg, arrays)` of a file that `write` made, arrays in canonical order and read when asked for.

    Raises UserError for any other file, an altered one, or one whose arrays do not fit its ModelConfig.
    """
    arrays, metadata = open_safetensors(path, own=True)
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path} is not a model file of this project: its format is {metadata.get('format')!r}"
        )
    cfg = config_of(path, metadata)
    canonical.check(cfg, arrays, where=str(path))
    return cfg, {name: arrays[name] for name in canonical.shapes(cfg)}


def config_of(path: str | os.PathLike, metadata: Mapping[str, str]) -> ModelConfig:
    """The ModelConfig in a file's metadata. Raises UserError where there is none that this version reads."""
    try:
        return ModelConfig.from_dict(json.loads(metadata["model_config"]))
    except (KeyError, ValueError, TypeError, RecursionError, UserError) as error:
        why = "there is none" if isinstance(error, KeyError) else error
        raise UserError(f"{path}: its metadata has no usable model_config: {why}") from error


def _header(path: Path, file: BinaryIO) -> tuple[bytes, dict]:
    """The bytes before the payload, and the header in them, checked by the safetensors library."""
    import safetensors

    try:
        with safetensors.safe_open(path, framework="np"):
            pass  # checks names, types, shapes, offsets and the file's size
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length)
        return length.to_bytes(8, "little") + text, json.loads(text, object_pairs_hook=_no_twice)
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {reason(error)}") from error


def _no_twice(pairs: list[tuple[str, object]]) -> dict:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name stands twice in the header")
    return dict(pairs)


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


def _loader(path: Path, file: BinaryIO, name: str, offset: int, entry: dict):
    def load() -> np.ndarray:
        array = np.empty(entry["shape"], _DTYPES[entry["dtype"]])
        view = memoryview(array.reshape(-1).view(np.uint8))
        done = 0
        while done < len(view):  # one read may give less than was asked for
            count = os.preadv(file.fileno(), [view[done:]], offset + done)
            if not count:
                raise UserError(
                    f"{path} ends within the tensor {name}: it was cut while it was read"
                )
            done += count
        return array

    return load
