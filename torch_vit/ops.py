"""Layers and operations by the precision policy of `shared_vit.spec.precision.Policy`.

Twin of `jax_vit/ops.py`. Sums of products are float32 or more inside torch's kernels; TF32 is a
switch of the process (`torch_vit.precision`), so `policy.tf32` is not read here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shared_vit.spec.config import ModelConfig
from shared_vit.spec.precision import Policy


def parameter(shape: tuple[int, ...], policy: Policy, trained: bool = True) -> Tensor:
    """A tensor of zeros in the parameters' dtype, which the optimizer updates if `trained`."""
    zeros = torch.zeros(shape, dtype=dtype_of(policy.param))
    return nn.Parameter(zeros) if trained else nn.Buffer(zeros)


def cast(x: Tensor, dtype: str) -> Tensor:
    """x in another dtype, given by its name in a Policy."""
    return x.to(dtype_of(dtype))


def widened(weights: Tensor, policy: Policy) -> Tensor:
    """Weights in the parameters' dtype, where they are held in a narrower one."""
    dtype = torch.promote_types(weights.dtype, dtype_of(policy.param))
    return weights if weights.dtype == dtype else weights.to(dtype)


def identity(x: Tensor) -> Tensor:
    """x itself, for a layer that a model does not have."""
    return x


class Linear(nn.Linear):
    """x [..., in] -> [..., out] by `product`; weight [out, in] and bias [out], zero until set.

    Without `bias` there is none.
    """

    def __init__(self, in_features: int, out_features: int, policy: Policy, bias: bool = True):
        super().__init__(in_features, out_features, bias, dtype=dtype_of(policy.param))
        self.policy = policy

    def reset_parameters(self) -> None:
        _zero(self)

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight, self.bias, self.policy)


class QkvWithoutKeyBias(Linear):
    """`Linear` to queries, keys and values whose keys have no bias: that third of `bias` does not
    count, and its gradient is exactly zero."""

    def __init__(self, width: int, policy: Policy):
        super().__init__(width, 3 * width, policy)
        kept = torch.from_numpy(np.repeat([True, False, True], width))
        self.register_buffer("kept", kept, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight, torch.where(self.kept, self.bias, 0), self.policy)


class Conv(nn.Conv2d):
    """The weights of a convolution of stride `size`: weight [out, in, size, size] and bias [out],
    zero until set. Without `bias` there is none."""

    def __init__(
        self, in_channels: int, out_channels: int, size: int, policy: Policy, bias: bool = True
    ):
        dtype = dtype_of(policy.param)
        super().__init__(in_channels, out_channels, size, size, bias=bias, dtype=dtype)

    def reset_parameters(self) -> None:
        _zero(self)


def add_positions(x: Tensor, pos_embed: Tensor) -> Tensor:
    """x [B, N, width] plus pos_embed [1, N, width]."""
    return x + pos_embed


def stream(x: Tensor) -> Tensor:
    """x itself; the Flax twin's layout is chosen there."""
    return x


def make_norm(cfg: ModelConfig, width: int, policy: Policy) -> LayerNorm | RMSNorm:
    """The model's kind of norm, over the last axis, of `width` units."""
    return (RMSNorm if cfg.norm == "rms" else LayerNorm)(width, cfg.norm_eps, policy)


class LayerNorm(nn.LayerNorm):
    """LayerNorm (Ba et al. 2016) in the parameters' dtype; scale one and bias zero until set."""

    def __init__(self, width: int, eps: float, policy: Policy):
        super().__init__(width, eps, dtype=dtype_of(policy.param))
        self.policy = policy

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (widened(p, self.policy) for p in (self.weight, self.bias))
        return F.layer_norm(x.to(weight.dtype), self.normalized_shape, weight, bias, self.eps)


class RMSNorm(nn.RMSNorm):
    """RMSNorm (Zhang and Sennrich 2019) in the parameters' dtype; scale one until set."""

    def __init__(self, width: int, eps: float, policy: Policy):
        super().__init__(width, eps, dtype=dtype_of(policy.param))
        self.policy = policy

    def forward(self, x: Tensor) -> Tensor:
        weight = widened(self.weight, self.policy)
        return F.rms_norm(x.to(weight.dtype), self.normalized_shape, weight, self.eps)


class LayerScale(nn.Module):
    """x [..., width] times a learned scale [width] in the parameters' dtype, zero until set."""

    def __init__(self, width: int, policy: Policy):
        super().__init__()
        self.gamma, self.policy = parameter((width,), policy), policy

    def forward(self, x: Tensor) -> Tensor:
        gamma = widened(self.gamma, self.policy)
        return x.to(gamma.dtype) * gamma


def remat(block: nn.Module) -> Callable[..., Tensor]:
    """`block` with activation checkpointing: only its input is stored, and the backward pass
    recomputes it.

    The dropout masks are functions of keys, so no state of a random generator is saved.
    """
    return partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)


def product(x: Tensor, weight: Tensor, bias: Tensor | None, policy: Policy) -> Tensor:
    """x [..., in] times weight [out, in] plus bias [out], where there is one.

    Inputs, weight and bias are rounded to the compute dtype (JAX's bias is not: `F.linear` wants
    one dtype), the sum is float32 or more, and the result is rounded once to the compute dtype.
    """
    bias = None if bias is None else cast(bias, policy.compute)
    return F.linear(cast(x, policy.compute), cast(weight, policy.compute), bias)


def _quick_gelu(x: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.sigmoid(1.702 * wide)).to(x.dtype)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "erf": F.gelu,
    "tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": _quick_gelu,
    "silu": F.silu,
}


def activation_of(cfg: ModelConfig) -> Callable[[Tensor], Tensor]:
    """The MLPs' activation: GELU in two forms (Hendrycks and Gimpel 2016), their quick
    approximation, or SiLU; gated (Shazeer 2020) where the model has it.

    The result has the dtype of x. A gated one takes [..., 2 h] and gives [..., h]: the activation
    of the first half, rounded, times the second.
    """
    act = _ACTIVATIONS[cfg.gelu if cfg.activation == "gelu" else cfg.activation]
    return partial(_gate, act) if cfg.gated else act


def _gate(act: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    gate, value = x.chunk(2, dim=-1)
    return act(gate) * value


def unstack(qkv: Tensor) -> tuple[Tensor, ...]:
    """q, k and v [B, N, heads, d] of qkv [B, N, 3, heads, d]."""
    return qkv.unbind(2)


def attention(
    q: Tensor, k: Tensor, v: Tensor, policy: Policy, bias: Tensor | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v [B, M, heads, d] of q [B, M, heads, d] and k and v
    [B, N, heads, d], in their dtype; `bias` is [1, heads, M, N], none by default.

    Scores are scaled before the softmax, which is float32 or more.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    bias = None if bias is None else bias.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2)


def dtype_of(name: str) -> torch.dtype:
    """The dtype that a Policy names."""
    return getattr(torch, name)


def _zero(layer: nn.Linear | nn.Conv2d) -> None:
    """Unset weights: torch's default initialization would only be overwritten."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
