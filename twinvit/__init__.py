"""What knows both frameworks: proofs that the twins are the same, conversion, export, the `twinvit`
command; `twinvit.load` for the classes of images."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and the documentation read
    from shared_vit.data import normalize
    from shared_vit.version import __version__
    from twinvit.predict.embed import Embedder, embedder
    from twinvit.predict.predictor import Predictor, load, preprocess
    from twinvit.programs.read import load_program
    from twinvit.programs.write import export
    from twinvit.training.api import Run, Stepper, train, trainer

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
    "Embedder": "twinvit.predict.embed",
    "Predictor": "twinvit.predict.predictor",
    "Run": "twinvit.training.api",
    "Stepper": "twinvit.training.api",
    "embedder": "twinvit.predict.embed",
    "train": "twinvit.training.api",
    "trainer": "twinvit.training.api",
    "export": "twinvit.programs.write",
    "load": "twinvit.predict.predictor",
    "load_program": "twinvit.programs.read",
    "normalize": "shared_vit.data",
    "preprocess": "twinvit.predict.predictor",
}


def __getattr__(name: str) -> Any:
    # Late: `import twinvit` is cheap, and `twinvit.port` needs none of the Vision Transformers.
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'twinvit' has no attribute {name!r}")
