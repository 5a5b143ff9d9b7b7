"""Canonical NumPy arrays to and from the PyTorch model, and files by way of them."""

from collections.abc import Mapping

import numpy as np
import torch

from shared_vit import weights
from shared_vit.errors import UserError
from shared_vit.spec import canonical, init
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.precision import PRECISIONS
from torch_vit.model import VisionTransformer


def create(cfg: ModelConfig, seed: int = 0, precision: str = "fp32") -> VisionTransformer:
    """A model with the first weights of `seed`, equal bit for bit to the Flax twin's. Raises UserError (see below)."""
    return from_arrays(cfg, init.draw(cfg, seed), precision)


def from_arrays(cfg: ModelConfig, arrays: Mapping[str, np.ndarray], precision: str = "fp32") -> VisionTransformer:
    """A model with canonical arrays, cast to the parameters' dtype.

    Raises UserError for missing, unknown or misshapen arrays and for an unknown precision.
    """
    check_precision(precision)
    canonical.check(cfg, arrays)
    with torch.device("meta"):
        model = VisionTransformer(cfg, precision)
    dtype = PRECISIONS[precision].param
    state = {name: torch.from_numpy(np.array(arrays[name], dtype, order="C")) for name in model.state_dict()}
    model.load_state_dict(state, assign=True)
    return model


def to_arrays(model: VisionTransformer) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """The model's configuration and copies of its arrays, in canonical names, order and layouts."""
    state = model.state_dict()
    return model.cfg, {name: state[name].cpu().numpy().copy() for name in canonical.shapes(model.cfg)}


def load(path, precision: str = "fp32", num_heads: int | None = None) -> VisionTransformer:
    """A model from a weight file of any known format. Raises UserError for a file that is none, or not whole."""
    return from_arrays(*weights.read(path, num_heads=num_heads), precision)


def save(model: VisionTransformer, path) -> None:
    """Write the model to `path` as a canonical weight file, which both twins load."""
    weights.write(path, *to_arrays(model))


def check_precision(precision: str) -> None:
    """Raise UserError for an unknown precision."""
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}: choose from {', '.join(PRECISIONS)}")
