"""What knows both frameworks: proofs that the twins are the same, conversion, export, the `twinvit`
command; `twinvit.load` for the classes of pictures."""

import importlib
from typing import TYPE_CHECKING, Any

import torch_vit  # noqa: F401 - registers the reader of .pth files; imports no framework
from shared_vit.version import __version__

if TYPE_CHECKING:  # what type checkers and the documentation read
    from shared_vit.data import normalize
    from twinvit.predictor import Predictor, load, preprocess
    from twinvit.programs.read import load_program
    from twinvit.programs.write import export

__all__ = [
    "load",
    "Predictor",
    "preprocess",
    "normalize",
    "export",
    "load_program",
    "__version__",
]

_HOME = {
    "Predictor": "twinvit.predictor",
    "export": "twinvit.programs.write",
    "load": "twinvit.predictor",
    "load_program": "twinvit.programs.read",
    "normalize": "shared_vit.data",
    "preprocess": "twinvit.predictor",
}


def __getattr__(name: str) -> Any:
    # Late, so that `import twinvit` is cheap.
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'twinvit' has no attribute {name!r}")
