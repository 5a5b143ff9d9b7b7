"""PyTorch's `.pth` files, read so that nothing in them can run code."""

import argparse
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import torch

from shared_vit.errors import UserError
from shared_vit.files import check_name, reason, whole_file
from shared_vit.weights.containers import Container
from shared_vit.weights.containers.npz import open_zip
from shared_vit.weights.lazy import Arrays, LazyArray

_NESTED = (
    "model",
    "state_dict",
    "model_state_dict",
    "module",
)  # where training scripts keep the weights


def open_pth(path: str | os.PathLike) -> dict[str, LazyArray]:
    """`{name: array}` of a state_dict, alone or under `model`, `state_dict`, ... of a training
    checkpoint.

    Files in today's zip form stay on disk until an array is asked for. Raises UserError for a file
    that is not whole, that needs more than tensors and plain Python to be read, or that holds no
    state_dict.
    """
    path = Path(path)
    zipped = zipfile.is_zipfile(path)
    if zipped:
        _check_zip(path)
    try:
        with torch.serialization.safe_globals(
            [argparse.Namespace]
        ):  # the flags that many training scripts keep
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
    except pickle.UnpicklingError as error:
        thing = re.search(r"(?:GLOBAL|class|global) ([\w.]+\.[\w.]+)", str(error))
        raise UserError(
            f"{path} was not read: it holds more than tensors{f' ({thing[1]})' if thing else ''}, "
            "and reading that could "
            "run code of its author. Where you trust it, load it yourself and save only its "
            "state_dict."
        ) from error
    except Exception as error:  # torch.load raises nearly anything for a damaged file
        raise UserError(f"{path} is not a whole PyTorch file: {reason(error)}") from error
    tensors = _state_dict(path, content)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    if size > os.path.getsize(path):
        raise UserError(
            f"{path}: its tensors claim {size:,} bytes, more than the file has: not read"
        )
    return {name: _lazy(path, name, tensor) for name, tensor in tensors.items()}


def write_pth(path: str | os.PathLike, arrays: Arrays) -> None:
    """Write arrays as a plain state_dict; whole or not at all. Raises UserError where that fails."""
    state = {name: _tensor(np.array(arrays[name])) for name in arrays}
    with whole_file(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # how torch's zip writer reports a full disk
            raise UserError(f"cannot write {path}: {reason(error)}") from error


def _check_zip(path: Path) -> None:
    with open_zip(path) as archive:
        entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > os.path.getsize(path):
        raise UserError(
            f"{path} would unpack to {unpacked:,} bytes, more than it has: PyTorch writes no such "
            "file"
        )


def _state_dict(path: Path, content: object) -> dict[str, torch.Tensor]:
    for _ in range(3):
        if isinstance(content, Mapping):
            inner = next((content[k] for k in _NESTED if isinstance(content.get(k), Mapping)), None)
            if inner is None:
                break
            content = inner
    if not isinstance(content, Mapping) or not any(
        isinstance(v, torch.Tensor) for v in content.values()
    ):
        raise UserError(
            f"{path} holds no state_dict: it is a {type(content).__name__} without tensors in it"
        )
    for name, value in content.items():
        check_name(path, name)
        if not isinstance(value, torch.Tensor):
            raise UserError(
                f"{path}: the entry {name} of its state_dict is a {type(value).__name__}, not a "
                "tensor"
            )
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise UserError(
                f"{path}: the tensor {name} is {value.layout} on {value.device}; expected plain "
                "numbers"
            )
    return dict(content)


def _lazy(path: Path, name: str, tensor: torch.Tensor) -> LazyArray:
    if tensor.dtype == torch.bfloat16:
        bits = tensor.detach().view(torch.int16).numpy()
        return LazyArray(
            bits.shape, np.dtype(ml_dtypes.bfloat16), lambda: bits.view(ml_dtypes.bfloat16)
        )
    try:
        tensor = tensor.detach().resolve_conj().resolve_neg()
        return LazyArray(tuple(tensor.shape), tensor.numpy().dtype, tensor.numpy)
    except (TypeError, RuntimeError) as error:
        raise UserError(
            f"{path}: the tensor {name} is of {tensor.dtype}: expected floats"
        ) from error


def _tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


CONTAINER = Container(open_pth, write_pth)
