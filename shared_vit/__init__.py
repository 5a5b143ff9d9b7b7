"""What both twins share: configuration, first weights, data, the training loop, weight files. Imports no framework."""

import importlib

from shared_vit.config import ModelConfig, TrainConfig, model_config
from shared_vit.errors import UserError

__all__ = ["ModelConfig", "TrainConfig", "UserError", "data", "model_config", "weights"]


def __getattr__(name: str):
    if name in ("data", "weights"):  # not at once: `--help` and the models need neither
        return importlib.import_module(f"shared_vit.{name}")
    raise AttributeError(f"module 'shared_vit' has no attribute {name!r}")
