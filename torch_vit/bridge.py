"""Canonical NumPy arrays to and from the PyTorch model, and files by way of them.

Twin of `jax_vit/bridge.py`.
"""

import os
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch

from shared_vit import weights
from shared_vit.errors import UserError
from shared_vit.spec import canonical, init
from shared_vit.spec.config import ModelConfig, check_config
from shared_vit.spec.sides import Sides
from shared_vit.weights.lazy import Arrays
from shared_vit.weights.memory import held
from shared_vit.weights.positions import Positions
from torch_vit.model import VisionTransformer


def create(cfg: ModelConfig, seed: int = 0, precision: str = "fp32") -> VisionTransformer:
    """A model in eval mode with the first weights of `seed`, equal bit for bit to the Flax twin's.

    Raises UserError for an unknown precision.
    """
    check_config(cfg)
    return from_arrays(cfg, init.draw(cfg, seed), precision)


def from_arrays(
    cfg: ModelConfig, arrays: Arrays, precision: str = "fp32", dtype: str | None = None
) -> VisionTransformer:
    """A model in eval mode with canonical arrays, cast to the parameters' dtype.

    With `dtype` ("bf16", "fp16", "fp32", "fp64") they are held in it, and widened where they are
    used: the values are those of weights rounded to it, in less memory. Arrays are read and
    converted one at a time. It is for inference: the trainers have their own parameters.

    Raises UserError for missing or unknown arrays, mismatched shapes, an unknown precision, a dtype
    wider than the parameters', and a model that memory cannot hold.
    """
    model = abstract_model(cfg, precision)
    kept = held(cfg, arrays, precision, dtype)

    def filled(name: str) -> torch.Tensor:
        return _as_tensor(np.array(kept[name], order="C"))

    model.load_state_dict({name: filled(name) for name in model.state_dict()}, assign=True)
    return model


def abstract_model(cfg: ModelConfig, precision: str) -> VisionTransformer:
    """The model on the meta device. Raises UserError as `from_arrays` does."""
    with torch.device("meta"):
        return VisionTransformer(cfg, precision)


def to_arrays(model: VisionTransformer) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """The model's configuration and copies of its arrays, in canonical names, order and layouts.

    Raises UserError for anything but a `torch_vit.VisionTransformer`.
    """
    if not isinstance(model, VisionTransformer):
        kind = type(model)
        raise UserError(
            f"this is a {kind.__module__}.{kind.__qualname__}, not a torch_vit.VisionTransformer: "
            "save a Flax model by jax_vit.save, and a wrapped one without its wrapper"
        )
    state = model.state_dict()
    return model.cfg, {
        name: _as_array(state[name].cpu()).copy() for name in canonical.shapes(model.cfg)
    }


def _as_tensor(array: np.ndarray) -> torch.Tensor:
    """An array of floats as a tensor in the same memory; torch does not know NumPy's bfloat16."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _as_array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor of floats on the CPU as an array in the same memory."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def load(
    path: str | os.PathLike,
    precision: str = "fp32",
    num_heads: int | None = None,
    num_classes: int | None = None,
    image_size: Sides | str | None = None,
    *,
    format: str = "auto",
    positions: Positions = "bicubic",
    dtype: str | None = None,
    **input: Any,
) -> VisionTransformer:
    """A model in eval mode from a weight file of any known format, `PATH#ema` and `PATH#raw` too.

    `num_heads` is for files that do not say. Another `num_classes` than the file's makes a new head
    of zeros, another `image_size` (pixels, or height and width) resamples learned positions by the
    rule `positions` (`shared_vit.weights.positions`); `mean`, `std`, `interpolation`, `eval_resize`
    and `exif` go before what the file says or leaves open. Warns where something was guessed or
    taken for granted. `dtype` is that of the weights in memory, as for `from_arrays`. Raises
    UserError for a file of no known format, a damaged one, and a model that memory cannot hold.
    """
    cfg, arrays = weights.lazily(
        path, format, num_heads, num_classes, image_size, positions, **input
    )
    return from_arrays(cfg, arrays, precision, dtype)


def save(
    model: VisionTransformer, path: str | os.PathLike, class_names: Sequence[str] | None = None
) -> None:
    """Write the model to `path` as a canonical weight file, which both twins load.

    `class_names`, in the order of the logits, go into the file. Raises UserError for anything but a
    `torch_vit.VisionTransformer`.
    """
    weights.write(path, *to_arrays(model), class_names=class_names)
