"""A small decoder like Llama's: RMSNorm, RoPE by halves, grouped queries, SwiGLU, tied head."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .decoder_config import DecoderConfig


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class Rotary(nn.Module):
    """cos and sin (length, head_dim) of the positions 0, 1, ..."""

    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.base, self.dim = cfg.rope_base, cfg.head_dim
        self.table = cfg.rope_table
        if self.table:
            self.register_buffer("inv_freq", self.frequencies(torch.float32), persistent=False)

    def frequencies(self, dtype: torch.dtype) -> Tensor:
        return 1.0 / self.base ** (torch.arange(0, self.dim, 2, dtype=dtype) / self.dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        frequencies = self.inv_freq if self.table else self.frequencies(x.dtype)
        positions = torch.arange(x.shape[-2], dtype=x.dtype)
        angles = torch.outer(positions, frequencies.to(x.dtype))
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.q_proj = nn.Linear(cfg.width, cfg.heads * cfg.head_dim)
        self.k_proj = nn.Linear(cfg.width, cfg.kv_heads * cfg.head_dim)
        self.v_proj = nn.Linear(cfg.width, cfg.kv_heads * cfg.head_dim)
        self.o_proj = nn.Linear(cfg.heads * cfg.head_dim, cfg.width, bias=False)
        self.rotary = Rotary(cfg)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        cfg = self.cfg
        q = self.q_proj(x).view(b, n, cfg.heads, cfg.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(b, n, cfg.kv_heads, cfg.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(b, n, cfg.kv_heads, cfg.head_dim).transpose(1, 2)
        cos, sin = self.rotary(q)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k = k.repeat_interleave(cfg.heads // cfg.kv_heads, dim=1)
        v = v.repeat_interleave(cfg.heads // cfg.kv_heads, dim=1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(cfg.head_dim)
        future = torch.ones(n, n, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
        x = torch.softmax(scores, dim=-1) @ v
        return self.o_proj(x.transpose(1, 2).reshape(b, n, -1))


class Mlp(nn.Module):
    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(cfg.width, 2 * cfg.mlp, bias=False)
        self.down = nn.Linear(cfg.mlp, cfg.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Layer(nn.Module):
    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.input_norm = RMSNorm(cfg.width, cfg.norm_eps)
        self.attention = Attention(cfg)
        self.post_norm = RMSNorm(cfg.width, cfg.norm_eps)
        self.mlp = Mlp(cfg)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.input_norm(x))
        return x + self.mlp(self.post_norm(x))


class Decoder(nn.Module):
    """Token ids int64 (batch, length) to logits (batch, length, vocab), or to the loss."""

    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.loss = cfg.loss
        self.embed = nn.Embedding(cfg.vocab, cfg.width)
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.depth))
        self.norm = RMSNorm(cfg.width, cfg.norm_eps)
        self.lm_head = nn.Linear(cfg.width, cfg.vocab, bias=False)
        if cfg.tied:
            self.lm_head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        logits = self.lm_head(self.norm(x))
        if self.loss:
            logits, labels = logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
            return F.cross_entropy(logits, labels, ignore_index=0)
        return logits
