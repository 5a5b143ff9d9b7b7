"""Attention pooling. Twin of `jax_vit/pooling.py`."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from shared_vit.spec.config import ModelConfig
from shared_vit.spec.precision import Policy
from torch_vit.mlp import Mlp
from torch_vit.ops import Linear, attention, cast, make_norm, parameter


class AttentionPool(nn.Module):
    """Attention pooling (Lee et al. 2019; Zhai et al. 2022) [B, N, width] -> [B, width]: a learned
    query attends to the tokens, and an MLP follows."""

    def __init__(self, cfg: ModelConfig, policy: Policy):
        super().__init__()
        self.num_heads, self.policy = cfg.pooling_heads, policy
        self.latent = parameter((1, 1, cfg.width), policy)
        self.q = Linear(cfg.width, cfg.width, policy)
        self.kv = Linear(cfg.width, 2 * cfg.width, policy)
        self.proj = Linear(cfg.width, cfg.width, policy)
        self.norm = make_norm(cfg, cfg.width, policy)
        hidden = cfg.pooling_mlp
        plain = replace(cfg, mlp_dim=hidden, gated=False, inner_norm="none", no_bias=(), dropout=0)
        self.mlp = Mlp(plain, policy)

    def forward(self, x: Tensor) -> Tensor:
        b, _, d = x.shape
        shape = b, -1, self.num_heads, d // self.num_heads
        q = torch.broadcast_to(self.q(self.latent), (b, 1, d)).reshape(shape)
        k, v = (y.reshape(shape) for y in self.kv(x).chunk(2, dim=-1))
        x = self.proj(attention(q, k, v, self.policy).reshape(b, 1, d))
        x = x + self.mlp(self.norm(x), None, 0)
        return cast(x[:, 0], self.policy.param)
