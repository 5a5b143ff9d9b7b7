"""The outputs of a model's modules, by name. Twin of `jax_vit/trace.py`."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


@torch.no_grad()
def trace(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """`{canonical module name: output}` of `model(images)`, in order of completion.

    `""` is the model's own output. The hooks are on the model for the length of the call: one trace
    of a model at a time.
    """
    outputs: dict[str, Tensor] = {}

    def recorder(name: str) -> Callable:
        return lambda module, args, output: outputs.__setitem__(name, output)

    hooks = [module.register_forward_hook(recorder(name)) for name, module in model.named_modules()]
    try:
        model(images, every_token=True)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs
