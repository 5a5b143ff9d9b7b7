"""Checks of what a caller passes to the model. Twin of `jax_vit/inputs.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from shared_vit.errors import UserError
from torch_vit.dropout import Dropout

if TYPE_CHECKING:
    from torch_vit.model import VisionTransformer


def check_inputs(model: VisionTransformer, images: torch.Tensor, dropout: Dropout) -> None:
    """Raise UserError unless `model` takes these `images`, with `dropout` in train mode."""
    if not isinstance(images, torch.Tensor):
        raise UserError(f"images are a {type(images).__name__}, and torch_vit takes torch.Tensor")
    shape, (height, width) = tuple(images.shape), model.cfg.image_shape
    if len(shape) != 4 or shape[1] != 3:
        fix = ""
        if len(shape) == 4 and shape[3] == 3:
            fix = ", which images.permute(0, 3, 1, 2) makes of JAX's layout"
        raise UserError(f"images are {shape}, and torch_vit takes [batch, 3, height, width]{fix}")
    if shape[2:] != (height, width):
        raise UserError(
            f"images are {shape[2]} x {shape[3]} px, and this model takes {height} x {width}: "
            "resize them, or adapt the weights by `twinvit convert --image_size`"
        )
    if not images.is_floating_point():
        raise UserError(
            f"images are {images.dtype}, and the model takes normalised floats: "
            "(images / 255 - mean) / std by cfg.mean and cfg.std"
        )
    if model.training and model.cfg.draws_masks and dropout is None:
        raise UserError(
            f"the model is in train mode, with dropout {model.cfg.dropout} and drop_path "
            f"{model.cfg.drop_path}: call it with dropout=(keys, rows), or after model.eval() for "
            "neither"
        )
