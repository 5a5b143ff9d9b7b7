"""Checks of what a caller passes to the model. Twin of `torch_vit/inputs.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from jax_vit.dropout import Dropout
from shared_vit.errors import UserError

if TYPE_CHECKING:
    from jax_vit.model import VisionTransformer


def check_inputs(model: VisionTransformer, images: jax.Array, dropout: Dropout) -> None:
    """Raise UserError unless `model` takes these `images`, with `dropout` in train mode."""
    if not isinstance(images, jax.Array | np.ndarray):
        raise UserError(
            f"images are a {type(images).__name__}, and jax_vit takes arrays of JAX or NumPy"
        )
    shape, (height, width) = tuple(images.shape), model.cfg.image_shape
    if len(shape) != 4 or shape[3] != 3:
        fix = ""
        if len(shape) == 4 and shape[1] == 3:
            fix = ", which images.transpose(0, 2, 3, 1) makes of PyTorch's layout"
        raise UserError(f"images are {shape}, and jax_vit takes [batch, height, width, 3]{fix}")
    if shape[1:3] != (height, width):
        raise UserError(
            f"images are {shape[1]} x {shape[2]} px, and this model takes {height} x {width}: "
            "resize them, or adapt the weights by `twinvit convert --image_size`"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(
            f"images are {images.dtype}, and the model takes normalised floats: "
            "(images / 255 - mean) / std by cfg.mean and cfg.std"
        )
    if not model.deterministic and model.cfg.draws_masks and dropout is None:
        raise UserError(
            f"the model is in train mode, with dropout {model.cfg.dropout} and drop_path "
            f"{model.cfg.drop_path}: call it with dropout=(keys, rows), or after model.eval() for "
            "neither"
        )
