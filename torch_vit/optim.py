"""AdamW with the weight decay chosen by canonical name, and clipping.

Twin of `jax_vit/optim.py`.
"""

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from shared_vit.spec import canonical
from shared_vit.spec.adam import ADAM_SLOTS, BETA1, BETA2, EPS
from torch_vit.sharding import local, part_of

# The slots of a TrainState that the optimizer uses: its state has them for each parameter.
SLOTS = ADAM_SLOTS


def make_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019): p -= lr (m_hat / (sqrt(v_hat) + eps) + wd p).

    It holds the model's parameters; `weight_decay=0` is Adam. The learning rate is set before each
    step.
    """
    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if canonical.is_decayed(n)], "weight_decay": weight_decay},
        {"params": [p for n, p in named if not canonical.is_decayed(n)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(BETA1, BETA2), eps=EPS, fused=True)


@torch.no_grad()
def global_norm(grads: list[torch.Tensor]) -> torch.Tensor:
    """The L2 norm over all gradients together."""
    norm = torch.nn.utils.get_total_norm(grads)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


@torch.no_grad()
def clip_by_global_norm(grads: list[torch.Tensor], clip: float) -> torch.Tensor:
    """Multiply the gradients in place by min(1, clip / norm), nothing added; the norm before."""
    norm = global_norm(grads)
    torch._foreach_mul_([local(g) for g in grads], (clip / norm).clamp(max=1))
    return norm


@torch.no_grad()
def nudge(params: list[torch.Tensor], seed: int, step: int) -> None:
    """The noise that the noise rule measures against, in place.

    Each weight is multiplied by 1 + eps (2 r - 1), r uniform in [0, 1), eps the machine epsilon.
    """
    # torch's generator on the CPU takes 32 bits of a seed; the odd factor keeps the steps of
    # different seeds apart.
    generator = torch.Generator(params[0].device).manual_seed((seed * 0x9E3779B1 + step) % 2**32)
    for p in params:
        r = torch.rand(p.shape, generator=generator, dtype=p.dtype, device=p.device)
        r = part_of(r, p)
        local(p).mul_(1 + torch.finfo(p.dtype).eps * (2 * r - 1))
