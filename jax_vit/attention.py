"""Self-attention of a block. Twin of `torch_vit/attention.py`."""

from functools import partial

from flax import nnx
from jax import Array

from jax_vit.fused import pad_tokens
from jax_vit.ops import (
    Linear,
    QkvWithoutKeyBias,
    attention,
    cast,
    identity,
    make_norm,
    parameter,
    unstack,
)
from jax_vit.relative import relative_bias
from jax_vit.rope import BlockPositions, rotation_of
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.precision import Policy
from shared_vit.spec.relative import table_rows


class Attention(nnx.Module):
    """Self-attention [B, N, width] -> the same: softmax(q k^T / sqrt(head width) + bias) v.

    `positions` is what attention is given of positions in this block: nothing, tables of rotary
    ones, or the index of relative ones.
    """

    def __init__(self, cfg: ModelConfig, policy: Policy):
        self.num_heads, self.policy = cfg.num_heads, policy
        if "k" in cfg.no_bias:
            self.qkv = QkvWithoutKeyBias(cfg.width, policy)
        else:
            self.qkv = Linear(cfg.width, 3 * cfg.width, policy, "qkv" not in cfg.no_bias)
        self.q_norm, self.k_norm = (
            make_norm(cfg, cfg.head_width, policy) if cfg.qk_norm else identity for _ in "qk"
        )
        self.rotate = rotation_of(cfg)
        table = table_rows(cfg.grid), cfg.num_heads
        self.relative_position_bias_table = parameter(table, policy) if cfg.relative_bias else None
        has_norm = cfg.inner_norm == "both"
        self.norm = make_norm(cfg, cfg.width, policy) if has_norm else identity
        self.proj = Linear(cfg.width, cfg.width, policy, "proj" not in cfg.no_bias)
        # Fused attention takes no bias.
        pads = not cfg.relative_bias
        self.pad = partial(pad_tokens, num_heads=cfg.num_heads, policy=policy) if pads else identity

    def __call__(self, x: Array, positions: BlockPositions) -> Array:
        b, n, d = x.shape
        x = self.pad(x)
        qkv = self.qkv(x).reshape(b, -1, 3, self.num_heads, d // self.num_heads)
        q, k, v = unstack(qkv)
        q, k = (
            cast(self.rotate(y, positions), self.policy.compute)
            for y in (self.q_norm(q), self.k_norm(k))
        )
        x = attention(q, k, v, self.policy, n, self.bias(positions))
        return self.proj(self.norm(x.reshape(b, -1, d)))[:, :n]

    def bias(self, positions: BlockPositions) -> Array | None:
        """What is added to scores, [1, heads, N, N]; None where positions are not relative."""
        if self.relative_position_bias_table is None:
            return None
        return relative_bias(self.relative_position_bias_table, positions)
