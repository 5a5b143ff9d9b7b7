"""Kinds of files that hold named arrays, and a registry for those that need a framework."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

from shared_vit.errors import UserError
from shared_vit.weights.choice import Said, Which
from shared_vit.weights.lazy import Arrays, LazyArray

# A checkpoint's optimizer file of the deepest model has 36,000. A file of a million tiny arrays
# would take minutes to be refused by name.
MOST_ARRAYS = 1 << 16

Progress = Callable[[int], object]  # called with the bytes of each array that was written


class Container(NamedTuple):
    """A kind of file: how its arrays are read (on access) and written.

    `open` takes which of averaged and raw weights are wanted, and records in `Said` which were
    used; `write` the keys under each of which a checkpoint holds the arrays, none for those alone.
    """

    open: Callable[[Path, Which | None, Said], dict[str, LazyArray]]
    write: Callable[[Path, Arrays, Progress | None, tuple[str, ...]], None] | None


_loaders: dict[str, Callable[[], Container]] = {}


def register(name: str, load: Callable[[], Container]) -> None:
    """Make a container known; `load` is called when the first file of the kind is read."""
    _loaders[name] = load


def container(name: str) -> Container:
    """A registered container. Raises UserError where no installed package provides it."""
    if name not in _loaders:
        for entry in entry_points(group="twinvit.containers", name=name):
            register(name, entry.load())
    if name not in _loaders:
        by = "PyTorch: `import torch_vit`" if name == "pth" else "JAX: `import jax_vit`"
        raise UserError(f"{name} files are read by {by} first")
    return _loaders[name]()


def check_count(path: Path, count: int) -> None:
    """Raise UserError for a file with more arrays than any ViT."""
    if count > MOST_ARRAYS:
        raise UserError(f"{path} has {count:,} arrays, and no ViT has more than {MOST_ARRAYS:,}")
