"""PyTorch's `.pth` files, read so that nothing in them can run code or allocate memory."""

import argparse
import io
import os
import pickle
import pickletools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import torch

from shared_vit.errors import UserError, some
from shared_vit.files import atomic_write, check_name, open_regular, reason
from shared_vit.weights.choice import Said, Which, chosen
from shared_vit.weights.containers import Container, Progress, check_count
from shared_vit.weights.containers.archive import open_zip, read_entry
from shared_vit.weights.lazy import Arrays, LazyArray

# torch's own list of harmless names has some that allocate as much as a number says (bytearray,
# torch.Tensor) or compute for long (codecs). These are what state_dicts and training scripts need.
_HARMLESS = re.compile(
    r"collections\.(OrderedDict|Counter)|(builtins|__builtin__)\.set|argparse\.Namespace"
    r"|torch\.(Size|device|\w+Storage|b?float\w*|double|half|u?int\w+|long|bool)"
    r"|torch\.nn\.parameter\.Parameter|torch\._tensor\._rebuild_from_type_v2"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|parameter|parameter_with_state)"
)
# Of what no training script leaves in a file, and of torch's constructors of tensors: no file with
# such names is read. (They would be replaced by inert classes as all others are; this says so.)
_REFUSED = re.compile(
    r"(builtins|__builtin__)\.(?!(list|dict|int|float|str|bool|tuple|frozenset|slice|object)$).*"
    r"|(os|posix|nt|sys|subprocess|shutil|importlib|runpy|pty|socket|ctypes|code|codecs|_codecs"
    r"|pickle|_pickle|marshal|types|operator|webbrowser)\..*"
    r"|torch\.(\w+|(_\w+|storage|serialization|sparse|cuda|nested|distributed)\..*)"
)
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_<]\w*>?)+", re.ASCII)
_OF_PYTHON = ("builtins.", "__builtin__.", "collections.")
_OF_PYTHON_2 = re.compile(r"^__builtin__\.")  # as pickles of torch's protocol write it
_ENCODE = "_codecs.encode"  # by which bytes are written, in a code that is not slow
_SLOW = re.compile("punycode|idna")
_LONGEST_PICKLE = 1 << 23  # bytes; some 50,000 tensors
_LEGACY_PICKLES = 5  # magic number, version, machine, contents, keys of the storages


def open_pth(
    path: str | os.PathLike, which: Which | None = None, said: Said | None = None
) -> dict[str, LazyArray]:
    """`{name: array}` of a state_dict, alone or under `model`, `state_dict`, ... of a checkpoint.

    Of averaged and raw weights `which` is taken, see `choice.chosen`, which adds to `said`.
    Files in today's zip form stay on disk until an array is read. Raises UserError for a file
    that is damaged, needs more than tensors and plain Python to be read, or holds no state_dict.
    """
    path = Path(path)
    said = said or Said()
    zipped, others = _check_pickles(path)
    inert = [(_inert(name), _OF_PYTHON_2.sub("builtins.", name)) for name in sorted(others)]
    try:
        # The Namespace holds the flags that many training scripts save.
        with torch.serialization.safe_globals([argparse.Namespace, *inert]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
    except pickle.UnpicklingError as error:
        thing = re.search(r"(?:GLOBAL|class|global) ([\w.]+\.[\w.]+)", str(error))
        raise _more_than_tensors(path, thing[1] if thing else None) from error
    except Exception as error:  # torch.load raises nearly anything for a damaged file
        raise UserError(f"{path} is not an intact PyTorch file: {reason(error)}") from error
    if foreign := sorted(n for n in others if not n.startswith(_OF_PYTHON)):
        names = some(foreign, 3, ", ")
        said.notices.append(f"left out: objects that are no tensors ({names})")
    tensors = _state_dict(path, content, which, said)
    # Tied tensors are one in the file, whatever their names.
    parts = {(t.data_ptr(), t.shape, t.stride(), t.dtype): t for t in tensors.values()}
    size = sum(t.numel() * t.element_size() for t in parts.values())
    if size > os.path.getsize(path):
        raise UserError(
            f"{path}: its tensors claim {size:,} bytes, more than the file has: not read"
        )
    return {name: _lazy(path, name, tensor) for name, tensor in tensors.items()}


def write_pth(
    path: str | os.PathLike,
    arrays: Arrays,
    progress: Progress | None = None,
    under: tuple[str, ...] = (),
) -> None:
    """Write arrays as a plain state_dict, or as a checkpoint that holds it under each of the keys
    `under`; completely or not at all. Raises UserError on failure."""
    state = {}
    for name in arrays:
        state[name] = tensor_of(np.array(arrays[name]))
        if progress:
            progress(state[name].nbytes)
    with atomic_write(path) as file:
        watched = _Watched(file)
        try:
            torch.save(dict.fromkeys(under, state) if under else state, watched)
        except RuntimeError as error:  # how torch's zip writer reports a full disk
            why = watched.error.strerror if watched.error else reason(error)
            raise UserError(f"cannot write {path}: {why}") from error


class _Watched:
    """A file for torch's zip writer, which loses the reason why a write failed."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


class _Inert:
    """Replaces an object of any class in a file's contents: it has no data and does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> Any:
        return object.__new__(cls)

    def __init__(self, *args: object, **kwargs: object): ...

    def __setstate__(self, state: object) -> None: ...


class _InertDict(_Inert):
    """The same for dictionaries of another class, whose items are retained."""

    def __new__(cls, *args: object, **kwargs: object) -> Any:
        return {}


def _inert(name: str) -> type:
    """A class that replaces the one of this name in a file."""
    module, _, last = name.rpartition(".")
    kind = _InertDict if last.lower().endswith("dict") else _Inert
    return type(last, (kind,), {"__module__": module})


def _check_pickles(path: Path) -> tuple[bool, set[str]]:
    """Whether the file is of the zip form, and the names of other programs that its pickles
    import, which are replaced by inert classes.

    A pickle is a program: a few bytes may ask for gigabytes. Raises UserError for names that could
    run something, and for complete models.
    """
    others: set[str] = set()
    with open_regular(path) as file:
        zipped = file.read(4) == b"PK\x03\x04"  # as torch.load decides
        file.seek(0)
        start = b"" if zipped else file.read(_LONGEST_PICKLE)
    if not zipped:
        programs = io.BytesIO(start)
        for _ in range(_LEGACY_PICKLES):
            others |= _check_pickle(path, programs)
        return False, others
    with open_zip(path) as archive:
        entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > os.path.getsize(path):
            raise UserError(
                f"{path} would unpack to {unpacked:,} bytes, more than it has: PyTorch writes no "
                "such file"
            )
        for entry in entries:
            if entry.filename.endswith("data.pkl"):
                program = read_entry(path, archive, entry, _LONGEST_PICKLE)
                others |= _check_pickle(path, io.BytesIO(program))
    return True, others


def _check_pickle(path: Path, program: io.BytesIO) -> set[str]:
    """Check the names in one pickle and leave `program` behind its end; those that are not
    harmless. Raises UserError."""
    names, slow = set(), False
    try:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name in ("GLOBAL", "INST"):
                names.add(str(argument).replace(" ", "."))
            elif isinstance(argument, str) and len(argument) < 40:
                slow |= bool(_SLOW.fullmatch(re.sub("[^a-z]", "", argument.lower())))
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise UserError(f"{path} is not an intact PyTorch file: {reason(error)}") from error
    others = {name for name in names if not _HARMLESS.fullmatch(name)}
    if not slow:
        others.discard(_ENCODE)
    of_model = next((name for name in others if name.startswith("torch.nn.modules.")), None)
    refused = next(
        (n for n in sorted(others) if _REFUSED.fullmatch(n) or not _NAME.fullmatch(n)), None
    )
    if of_model or refused:
        raise _more_than_tensors(path, of_model or refused)
    return others


def _more_than_tensors(path: Path, thing: str | None) -> UserError:
    what = f" ({thing[:80]})" if thing and thing.isprintable() else ""
    if thing and thing.startswith("torch.nn.modules."):
        return UserError(
            f"{path} was not read: it holds a complete model as Python objects{what}, and reading "
            "that could run code of its author. In a program that has its classes: "
            "torch.save(model.state_dict(), FILE)"
        )
    return UserError(
        f"{path} was not read: it holds more than tensors{what}, and reading that could run code "
        "of its author. If you trust it, load it yourself and save only its state_dict."
    )


def _state_dict(
    path: Path, content: object, which: Which | None, said: Said
) -> dict[str, torch.Tensor]:
    if isinstance(content, Mapping):
        content = chosen(content, lambda v: isinstance(v, torch.Tensor), which, path, said)
    if not isinstance(content, Mapping) or not any(
        isinstance(v, torch.Tensor) for v in content.values()
    ):
        kind = type(content).__name__
        if isinstance(content, list | tuple) and any(isinstance(v, torch.Tensor) for v in content):
            raise UserError(
                f"{path} holds a {kind} of {len(content)} tensors without their names, as of "
                "model.parameters(): save model.state_dict()"
            )
        raise UserError(f"{path} holds no state_dict: it is a {kind} without tensors in it")
    check_count(path, len(content))
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


def tensor_of(array: np.ndarray) -> torch.Tensor:
    """A tensor of the array's memory, bfloat16 of ml_dtypes included."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


CONTAINER = Container(open_pth, write_pth)
