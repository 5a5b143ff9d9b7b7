"""AdamW with the weight decay chosen by canonical name, and clipping.

Twin of `jax_vit/optim.py`.
"""

import torch
from torch import nn

from shared_vit.spec import canonical
from shared_vit.spec.adam import BETA1, BETA2, EPS


def make_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) over the model's parameters: p -= lr (m_hat / (sqrt(v_hat)
    + eps) + wd p).

    `weight_decay=0` is Adam. The learning rate is set before each step.
    """
    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if canonical.is_decayed(n)], "weight_decay": weight_decay},
        {"params": [p for n, p in named if not canonical.is_decayed(n)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(BETA1, BETA2), eps=EPS, fused=True)


@torch.no_grad()
def clip_by_global_norm(grads: list[torch.Tensor], clip: float) -> torch.Tensor:
    """Multiply the gradients in place by min(1, clip / norm), nothing added; return the norm before
    (a tensor)."""
    norm = torch.nn.utils.get_total_norm(grads)
    torch._foreach_mul_(grads, (clip / norm).clamp(max=1))
    return norm


@torch.no_grad()
def nudge(params: list[torch.Tensor], seed: int, step: int) -> None:
    """Multiply each weight by 1 + eps (2 r - 1), r uniform in [0, 1): the noise that the noise rule
    measures against."""
    # torch's generator on the CPU takes 32 bits of a seed; the odd factor keeps the steps of
    # different seeds apart.
    generator = torch.Generator(params[0].device).manual_seed((seed * 0x9E3779B1 + step) % 2**32)
    for p in params:
        r = torch.rand(p.shape, generator=generator, dtype=p.dtype, device=p.device)
        p.mul_(1 + torch.finfo(p.dtype).eps * (2 * r - 1))
