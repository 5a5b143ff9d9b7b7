"""AdamW and SGD with weight decay and learning rates by canonical name, clipping, averaging and
SAM's ascent step.

Twin of `jax_vit/optim.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from shared_vit.spec import canonical
from shared_vit.spec.lr_scales import lr_scales
from shared_vit.spec.optimizers import BETA1, BETA2, EPS
from shared_vit.spec.recipe import Recipe
from torch_vit.sharding import local, part_of


def make_optimizer(named: Mapping[str, nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of a recipe, over the parameters `{canonical name: parameter}` that it updates.

    adamw: p -= lr s (m_hat / (sqrt(v_hat) + eps) + wd p) (Loshchilov and Hutter 2019), adam without
    wd; sgd: p -= lr s (buf + wd p), buf = momentum buf + gradient. s is the `lr_scale` of the
    tensor's layer, wd acts on the weights of products. `set_lr` sets lr before each step.
    """
    scales = lr_scales(recipe.model, recipe.layer_decay)
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, p in named.items():
        decayed, scale = canonical.is_decayed(name), scales[name]
        decay = recipe.weight_decay if decayed else 0.0
        about = {"params": [], "weight_decay": decay, "lr_scale": scale}
        groups.setdefault((not decayed, scale), about)["params"].append(p)
    ordered = [groups[key] for key in sorted(groups)]
    if recipe.optimizer == "sgd":
        return DecoupledSGD(ordered, recipe.momentum)
    return torch.optim.AdamW(ordered, lr=0.0, betas=(BETA1, BETA2), eps=EPS, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


class DecoupledSGD(torch.optim.SGD):
    """SGD with momentum whose weight decay is AdamW's; torch's own goes through the momentum."""

    def __init__(self, groups: list[dict[str, Any]], momentum: float):
        groups = [g | {"decay": g["weight_decay"], "weight_decay": 0.0} for g in groups]
        super().__init__(groups, lr=0.0, momentum=momentum, foreach=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        for group in self.param_groups:
            if group["decay"]:
                params = [local(p) for p in group["params"]]
                torch._foreach_mul_(params, 1 - group["lr"] * group["decay"])
        return super().step(closure)


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
def ascent_step(params: list[nn.Parameter], rho: float) -> None:
    """The ascent of sharpness-aware minimization (Foret et al. 2021), in place: p + rho g / |g|.

    |g| is over all gradients together; nothing is added to it, and where it is 0 nothing changes.
    """
    grads = [p.grad for p in params]
    norm = global_norm(grads)
    scale = torch.where(norm > 0, rho / norm, 0)
    torch._foreach_add_(
        [local(p) for p in params], torch._foreach_mul([local(g) for g in grads], scale)
    )


@torch.no_grad()
def average(averages: list[torch.Tensor], params: list[torch.Tensor], weight: float) -> None:
    """The moving average of the weights, in place: e + weight (p - e)."""
    e, p = [local(t) for t in averages], [local(t) for t in params]
    torch._foreach_add_(e, torch._foreach_sub(p, e), alpha=weight)


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
