"""A recording as a folder of JSON and safetensors, verified when it is read.

    manifest.json       format, version, framework, and size and SHA-256 of the other two files
    program.json        the program
    arrays.safetensors  its arrays

Nothing in it is run as code: operations are names of a list, and their parameters are data.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from twinvit.port.envelope import versions
from twinvit.port.errors import PortError
from twinvit.port.recording.arrays import Read, Written

FORMAT = "twinvit.port.recording"
VERSION = 1
MANIFEST, PROGRAM, ARRAYS = "manifest.json", "program.json", "arrays.safetensors"
LIMITS = {MANIFEST: 1 << 16, PROGRAM: 1 << 29, ARRAYS: 1 << 38}
"""The most bytes that a file of each name may have."""
FRAMEWORKS = ("torch", "jax")


class Recorded(NamedTuple):
    """What a recording's folder holds."""

    framework: str
    versions: dict[str, str]
    program: dict[str, Any]
    arrays: Read
    path: Path


def is_recording(path: Any) -> bool:
    """True for the path of a folder with a recording's manifest."""
    return isinstance(path, str | os.PathLike) and (Path(path) / MANIFEST).is_file()


def check_new(path: Path) -> None:
    """Raises PortError for a path that no recording can be written to, before long work starts."""
    if path.exists() or path.is_symlink():
        raise PortError(f"{path} exists; name another folder, or remove it")
    parent = path.resolve().parent
    if not parent.is_dir():
        raise PortError(f"{path}: its folder does not exist")
    if not os.access(parent, os.W_OK):
        raise PortError(f"{path} cannot be written; name another folder")


def write(path: Path, framework: str, program: dict[str, Any], arrays: Written) -> None:
    """Write a recording, completely or not at all. Raises PortError if the path exists."""
    from safetensors.numpy import save_file

    check_new(path)
    folder = Path(tempfile.mkdtemp(dir=path.resolve().parent, prefix=f".{path.name}."))
    try:
        text = json.dumps({**program, "arrays": arrays.described}, separators=(",", ":"))
        (folder / PROGRAM).write_bytes(text.encode())
        save_file(arrays.stored, folder / ARRAYS)
        files = {n: [(folder / n).stat().st_size, _digest(folder / n)] for n in (PROGRAM, ARRAYS)}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "framework": framework,
            "versions": versions(),
            "files": files,
        }
        manifest["sha256"] = _own_digest(manifest)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        folder.chmod(0o755)
        folder.rename(path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def read(path: str | os.PathLike[str]) -> Recorded:
    """Read a recording.

    Raises:
        PortError: it is none, of another version, cut, or changed; one sentence that says which.
    """
    folder = Path(path)
    manifest = _manifest(folder)
    for name in (PROGRAM, ARRAYS):
        _verify(folder / name, *manifest["files"][name])
    try:
        program = json.loads((folder / PROGRAM).read_bytes())
        described = program.pop("arrays")
    except (ValueError, RecursionError, AttributeError, KeyError) as error:
        raise PortError(f"{folder / PROGRAM} holds no program; record it again") from error
    arrays = Read(described, _tensors(folder / ARRAYS), folder)
    versions = {str(k): str(v) for k, v in dict(manifest.get("versions") or {}).items()}
    return Recorded(manifest["framework"], versions, program, arrays, folder)


def _manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    if not file.is_file():
        raise PortError(
            f"{folder} is no recording (it has no {MANIFEST}); give a folder that "
            "`twinvit port record` wrote"
        )
    _check_file(file)
    try:
        manifest = json.loads(file.read_bytes())
        kind, version, framework = (manifest[k] for k in ("format", "version", "framework"))
        digest, files = manifest["sha256"], manifest["files"]
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise PortError(f"{file} is no manifest of a recording; record it again") from error
    if kind != FORMAT or framework not in FRAMEWORKS:
        raise PortError(f"{file} is the manifest of something else than a recording of a model")
    if version != VERSION:
        raise PortError(
            f"{folder} is a recording of version {version!r}, and this package reads version "
            f"{VERSION}; record it again with the same version of twinvit"
        )
    if digest != _own_digest(manifest) or not _are_files(files):
        raise PortError(f"{file} was changed after it was written; record it again")
    return dict(manifest)


def _are_files(files: Any) -> bool:
    if not isinstance(files, dict) or set(files) != {PROGRAM, ARRAYS}:
        return False
    return all(
        isinstance(f, list) and len(f) == 2 and type(f[0]) is int and isinstance(f[1], str)
        for f in files.values()
    )


def _check_file(file: Path) -> int:
    """The size of a file of a recording. Raises PortError where it cannot be one."""
    if file.is_symlink() or not file.is_file():
        raise PortError(f"{file} is missing; record it again")
    size = file.stat().st_size
    if size > LIMITS[file.name]:
        raise PortError(f"{file} has {size} bytes, more than a recording's may have")
    return size


def _verify(file: Path, size: int, digest: str) -> None:
    found = _check_file(file)
    if found != size:
        what = "is cut" if found < size else "was changed after it was written"
        raise PortError(f"{file} {what}: {found} bytes, not {size}; record it again")
    if _digest(file) != digest:
        raise PortError(f"{file} was changed after it was written; record it again")


def _tensors(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(file))
    except (SafetensorError, ValueError, OSError) as error:
        raise PortError(f"{file} is no file of safetensors; record it again") from error


def _digest(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _own_digest(manifest: dict[str, Any]) -> str:
    """Of all that a manifest says but for this."""
    rest = {k: v for k, v in manifest.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
