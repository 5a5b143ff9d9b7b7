"""The outputs of a model's modules, by name."""

import torch
from torch import nn


@torch.no_grad()
def trace(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """`{canonical module name: output}` of `model(images)`, in order of completion; `""` is the model's own output."""
    outputs: dict[str, torch.Tensor] = {}

    def record(name):
        return lambda module, args, output: outputs.__setitem__(name, output)

    hooks = [module.register_forward_hook(record(name)) for name, module in model.named_modules()]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs
