"""What the command line of `twinvit port` names and describes: models, inputs, files."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import itertools
import os
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from twinvit.port.errors import PortError


def load(name: str, *given: Any) -> Any:
    """What `pkg.mod:name` or `folder/file.py:name` names: an object, or what a function of that
    name makes.

    A function whose first parameter has no default is given `given`.

    Raises:
        PortError: it cannot be imported or called.
    """
    module_name, _, attribute = name.rpartition(":")
    if not module_name:
        raise PortError(f"{name!r} names no factory; write pkg.mod:function or file.py:function")
    module = _module(module_name, name)
    try:
        found: Any = module
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise PortError(f"{module_name} has no {attribute}") from error
    return _made(found, name, given)


def _module(module_name: str, name: str) -> ModuleType:
    """A module by its name or its file. Raises PortError."""
    is_file = module_name.endswith(".py")
    if is_file and not Path(module_name).is_file():
        raise PortError(f"there is no file {module_name}")
    # What is beside a file is found from it, too.
    folder = str(Path(module_name).resolve().parent) if is_file else str(Path.cwd())
    if folder not in sys.path and (is_file or "" not in sys.path):
        sys.path.insert(0, folder)
    try:
        return _of_file(Path(module_name)) if is_file else importlib.import_module(module_name)
    except ImportError as error:
        missing = getattr(error, "name", None)
        if missing in ("torch", "jax", "flax", "equinox", "haiku"):
            raise PortError(
                f"{name} needs {missing}, which is not installed; install it and try again"
            ) from error
        raise PortError(
            f"{module_name} cannot be imported: {error}; run in its folder or set PYTHONPATH"
        ) from error
    except (Exception, SystemExit) as error:  # a script that exits has no verdict, either
        raise PortError(
            f"{module_name} fails while it is imported: {type(error).__name__}: {error}"
        ) from error


def _of_file(path: Path) -> ModuleType:
    """The module of a file, once for both models. Its name is its path, which no package has."""
    path = path.resolve()
    name = str(path)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _made(found: Any, name: str, given: Sequence[Any]) -> Any:
    """An object, or what a factory makes of as many of `given` as it needs. Raises PortError."""
    if not (inspect.isfunction(found) or inspect.isclass(found) or inspect.isbuiltin(found)):
        return found
    try:
        parameters = list(inspect.signature(found).parameters.values())
    except ValueError:  # a builtin that does not say what it takes
        parameters = []
    needed = [
        p
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(needed) > len(given):
        raise PortError(
            f"{name} takes {len(needed)} arguments; a factory takes none"
            + (", or the PyTorch model" if given else "")
        )
    try:
        return found(*given[: len(needed)])
    except PortError:
        raise
    except (Exception, SystemExit) as error:
        raise PortError(f"{name}() fails: {type(error).__name__}: {error}") from error


def inputs(arguments: argparse.Namespace) -> tuple[np.ndarray, ...]:
    """Arrays as the flags ask for them, in the flags' order."""
    rng = np.random.default_rng(arguments.seed)
    made: list[np.ndarray] = []
    for flag, text in arguments.inputs:
        if flag == "--shape":
            made.append(rng.standard_normal(_shape(text)))
            continue
        shape, _, bound = text.partition(":")
        if not bound.isdigit() or int(bound) < 1:
            raise PortError(f"--int {text}: write shape:bound, e.g. 2,16:100")
        made.append(rng.integers(0, int(bound), _shape(shape)))
    if not made:
        raise PortError("no input: give --shape 2,3,224,224 (or --int 2,16:100 for tokens)")
    return tuple(made)


def arrays_of(file: Path) -> tuple[np.ndarray, ...] | dict[str, np.ndarray]:
    """The arrays of an .npz file; by name, where one of them has another than arr_0, arr_1.

    Raises:
        PortError: it is none, or holds something else than numbers.
    """
    try:
        with np.load(file, allow_pickle=False) as held:
            found = {name: held[name] for name in held.files}
    except (OSError, ValueError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise PortError(
            f"{file} is no .npz file of arrays ({error}); np.savez writes one"
        ) from error
    if not found:
        raise PortError(f"{file} holds no array")
    if all(name == f"arr_{k}" for k, name in enumerate(found)):
        return tuple(found.values())
    return found


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(n) for n in text.split(","))
    except ValueError:
        shape = (0,)
    if any(n < 1 for n in shape):
        raise PortError(f"{text!r} is no shape; write e.g. 2,3,224,224")
    return shape


def jax_inputs(
    shapes: Sequence[str], arrays: Sequence[np.ndarray]
) -> tuple[np.ndarray, ...] | None:
    """The arrays with their axes in the orders that the port takes; None where none are named.

    Raises:
        PortError: a shape is no order of the array's axes, or of two that hold other values.
    """
    if not shapes:
        return None
    if len(shapes) != len(arrays):
        raise PortError(
            f"--jax-shape is given {len(shapes)} times for {len(arrays)} inputs; give it once for "
            "each, in their order"
        )
    return tuple(_ordered(x, _shape(text), text) for text, x in zip(shapes, arrays))


def _ordered(array: np.ndarray, shape: tuple[int, ...], text: str) -> np.ndarray:
    axes = range(array.ndim)
    usual = (tuple(axes), (0, *axes[2:], 1)) if array.ndim > 2 else (tuple(axes),)
    fitting = [
        order
        for order in itertools.permutations(axes)
        if tuple(array.shape[a] for a in order) == shape
    ]
    best = next((order for order in usual if order in fitting), None)
    if best is None and len(fitting) == 1:
        best = fitting[0]
    if best is None:
        why = "fits several orders" if fitting else "is no order"
        raise PortError(
            f"--jax-shape {text} {why} of the axes of an input of shape {array.shape}; "
            "use port.explain(..., jax_inputs=) in Python"
        )
    return array.transpose(best)


def check_writable(*paths: Path | None) -> None:
    """Raises PortError for a path that no file can be written to, before long work starts."""
    for path in paths:
        if path is None:
            continue
        folder = path.resolve().parent
        if not folder.is_dir():
            raise PortError(f"{path}: its folder does not exist")
        if path.is_dir():
            raise PortError(f"{path} is a folder; name a file in it")
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise PortError(f"{path} cannot be written; name another file")
