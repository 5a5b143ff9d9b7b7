"""What knows both frameworks: proofs that the twins are the same, conversion, export, the `twinvit`
command; `twinvit.load` for the classes of pictures."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and the documentation read
    from shared_vit.data import normalize
    from shared_vit.version import __version__
    from twinvit.embed import Embedder, embedder
    from twinvit.predictor import Predictor, load, preprocess
    from twinvit.programs.read import load_program
    from twinvit.programs.write import export
    from twinvit.training import Run, Stepper, train, trainer

__all__ = [
    "train",
    "trainer",
    "Run",
    "Stepper",
    "embedder",
    "Embedder",
    "load",
    "Predictor",
    "preprocess",
    "normalize",
    "export",
    "load_program",
    "__version__",
]

_HOME = {
    "__version__": "shared_vit.version",
    "Embedder": "twinvit.embed",
    "Predictor": "twinvit.predictor",
    "Run": "twinvit.training",
    "Stepper": "twinvit.training",
    "embedder": "twinvit.embed",
    "train": "twinvit.training",
    "trainer": "twinvit.training",
    "export": "twinvit.programs.write",
    "load": "twinvit.predictor",
    "load_program": "twinvit.programs.read",
    "normalize": "shared_vit.data",
    "preprocess": "twinvit.predictor",
}


def __getattr__(name: str) -> Any:
    # Late: `import twinvit` is cheap, and `twinvit.port` needs none of the Vision Transformers.
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'twinvit' has no attribute {name!r}")
