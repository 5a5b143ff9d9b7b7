"""What both twins share: configuration, first weights, data, the training loop, weight files.

It imports neither JAX nor PyTorch.
"""

from typing import Any

from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig, model_config
from shared_vit.spec.recipe import Recipe
from shared_vit.spec.runtime import RuntimeConfig
from shared_vit.version import __version__

__all__ = [
    "RuntimeConfig",
    "ModelConfig",
    "Recipe",
    "UserError",
    "__version__",
    "data",
    "model_config",
    "weights",
]


def __getattr__(name: str) -> Any:
    # Imported on first use: `--help` and the models need neither.
    if name == "data":
        import shared_vit.data

        return shared_vit.data
    if name == "weights":
        import shared_vit.weights

        return shared_vit.weights
    raise AttributeError(f"module 'shared_vit' has no attribute {name!r}")
