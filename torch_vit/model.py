"""The Vision Transformer (Dosovitskiy et al. 2021) in PyTorch. Read it beside `jax_vit/model.py`, line for line."""

import torch
import torch.nn.functional as F
from torch import nn

from shared_vit.spec.config import ModelConfig
from shared_vit.spec.precision import PRECISIONS
from torch_vit.dropout import drop
from torch_vit.trace import trace


class Linear(nn.Linear):
    """x [..., in] -> [..., out]: inputs and weights rounded to `dtype`, summed in float32 or more, rounded once to `dtype`."""

    def __init__(self, in_features: int, out_features: int, dtype: torch.dtype, param_dtype: torch.dtype):
        super().__init__(in_features, out_features, dtype=param_dtype)
        self.dtype = dtype

    def forward(self, x):
        return product(x, self.weight, self.bias, self.dtype)


class PatchEmbed(nn.Module):
    """Images [B, 3, H, W] -> [B, patches, width]: a strided convolution, computed as a product of flattened patches."""

    def __init__(self, cfg: ModelConfig, dtype: torch.dtype, param_dtype: torch.dtype):
        super().__init__()
        self.patch_size, self.dtype = cfg.patch_size, dtype
        self.proj = nn.Conv2d(3, cfg.width, cfg.patch_size, cfg.patch_size, dtype=param_dtype)

    def forward(self, images):
        b, c, h, w = images.shape
        p = self.patch_size
        x = images.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * p * p)
        return product(x, self.proj.weight.flatten(1), self.proj.bias, self.dtype)


class Attention(nn.Module):
    """Self-attention [B, N, width] -> the same; scores are scaled before the softmax, which is float32 or more."""

    def __init__(self, cfg: ModelConfig, dtype: torch.dtype, param_dtype: torch.dtype):
        super().__init__()
        self.num_heads = cfg.num_heads
        self.qkv = Linear(cfg.width, 3 * cfg.width, dtype, param_dtype)
        self.proj = Linear(cfg.width, cfg.width, dtype, param_dtype)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, n, d))


class Mlp(nn.Module):
    """[B, N, width] -> the same, through GELU; its dropout sites are `site` and `site + 1`."""

    def __init__(self, cfg: ModelConfig, dtype: torch.dtype, param_dtype: torch.dtype):
        super().__init__()
        self.rate, self.approximate = cfg.dropout, "tanh" if cfg.gelu == "tanh" else "none"
        self.fc1 = Linear(cfg.width, cfg.mlp_dim, dtype, param_dtype)
        self.fc2 = Linear(cfg.mlp_dim, cfg.width, dtype, param_dtype)

    def forward(self, x, dropout, site: int):
        x = F.gelu(self.fc1(x), approximate=self.approximate)
        x = self.fc2(drop(x, dropout, site, self.rate))
        return drop(x, dropout, site + 1, self.rate)


class Block(nn.Module):
    """Pre-norm encoder block [B, N, width] -> the same; its first dropout site is `site`."""

    def __init__(self, cfg: ModelConfig, dtype: torch.dtype, param_dtype: torch.dtype):
        super().__init__()
        self.rate = cfg.dropout
        self.norm1 = nn.LayerNorm(cfg.width, cfg.norm_eps, dtype=param_dtype)
        self.attn = Attention(cfg, dtype, param_dtype)
        self.norm2 = nn.LayerNorm(cfg.width, cfg.norm_eps, dtype=param_dtype)
        self.mlp = Mlp(cfg, dtype, param_dtype)

    def forward(self, x, dropout, site: int):
        x = x + drop(self.attn(self.norm1(x)), dropout, site, self.rate).to(x.dtype)
        return x + self.mlp(self.norm2(x), dropout, site + 1).to(x.dtype)


class VisionTransformer(nn.Module):
    """Normalised images, floats [B, 3, H, W] -> logits [B, classes] in the parameters' dtype.

    `dropout=(keys, rows)` turns dropout on: keys int32 [sites, 2] (`torch_vit.dropout.to_keys`), rows int64 [B].
    """

    def __init__(self, cfg: ModelConfig, precision: str = "fp32"):
        super().__init__()
        policy = PRECISIONS[precision]
        dtype, param_dtype = getattr(torch, policy.compute), getattr(torch, policy.param)
        self.cfg = cfg
        self.precision = precision
        self.cls_token = nn.Parameter(torch.zeros(1, 1, cfg.width, dtype=param_dtype)) if cfg.class_token else None
        pos_embed = torch.zeros(1, cfg.num_tokens, cfg.width, dtype=param_dtype)
        if cfg.pos_embed == "learned":
            self.pos_embed = nn.Parameter(pos_embed)
        else:
            self.register_buffer("pos_embed", pos_embed)
        self.patch_embed = PatchEmbed(cfg, dtype, param_dtype)
        self.blocks = nn.ModuleList(Block(cfg, dtype, param_dtype) for _ in range(cfg.depth))
        norm = nn.LayerNorm(cfg.width, cfg.norm_eps, dtype=param_dtype)
        self.norm = None if cfg.norm_after_pool else norm
        self.fc_norm = norm if cfg.norm_after_pool else None
        self.pre_logits = Linear(cfg.width, cfg.pre_logits, param_dtype, param_dtype) if cfg.pre_logits else None
        self.head = Linear(cfg.pre_logits or cfg.width, cfg.num_classes, param_dtype, param_dtype)

    def forward(self, images, dropout=None):
        x = self.patch_embed(images).to(self.pos_embed.dtype)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = drop(x + self.pos_embed, dropout, 0, self.cfg.dropout)
        for i, block in enumerate(self.blocks):
            x = block(x, dropout, 1 + 3 * i)
        if self.norm is not None:
            x = self.norm(x)
        x = self.pool(x)
        if self.fc_norm is not None:
            x = self.fc_norm(x)
        if self.pre_logits is not None:
            x = torch.tanh(self.pre_logits(x))
        return self.head(x)

    def pool(self, x):
        """[B, N, width] -> [B, width]: the class token, or the mean of the patches (and of the class token if asked)."""
        if self.cfg.pool == "token":
            return x[:, 0]
        if self.cfg.class_token and not self.cfg.pool_class_token:
            x = x[:, 1:]
        return x.mean(dim=1)

    def trace(self, images) -> dict[str, torch.Tensor]:
        """`{canonical module name: its output}` of one forward pass, in order of completion; `""` is the logits."""
        return trace(self, images)


def product(x, weight, bias, dtype: torch.dtype):
    """x [..., in] times weight [out, in] plus bias [out], by the precision policy."""
    return F.linear(x.to(dtype), weight.to(dtype), bias.to(dtype))
