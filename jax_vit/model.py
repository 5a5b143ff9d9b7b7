"""The Vision Transformer (Dosovitskiy et al. 2021) in Flax NNX.

Read it beside `torch_vit/model.py`, line for line.
"""

from dataclasses import replace

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jax_vit.dropout import Dropout, drop, drop_path
from jax_vit.fused import pad_tokens
from jax_vit.inputs import check_inputs
from jax_vit.ops import (
    Conv,
    Linear,
    add_positions,
    attention,
    cast,
    gelu,
    identity,
    make_norm,
    parameter,
    product,
    remat,
    unstack,
)
from jax_vit.precision import policy_of
from jax_vit.trace import trace
from shared_vit.spec.config import ModelConfig, check_config
from shared_vit.spec.mask_keys import path_site
from shared_vit.spec.precision import Policy


class PatchEmbed(nnx.Module):
    """Images [B, H, W, 3] -> [B, patches, width]: a convolution whose stride is its size.

    It is computed as one product of flattened patches.
    """

    def __init__(self, cfg: ModelConfig, policy: Policy):
        self.patch_size, self.policy = cfg.patch_size, policy
        self.proj = Conv(3, cfg.width, cfg.patch_size, policy)

    def __call__(self, images: Array) -> Array:
        b, h, w, c = images.shape
        p = self.patch_size
        x = images.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
        kernel = self.proj.kernel.reshape(p * p * c, -1)
        return product(x.reshape(b, -1, p * p * c), kernel, self.proj.bias, self.policy)


class Attention(nnx.Module):
    """Self-attention [B, N, width] -> the same; softmax(q k^T / sqrt(head width)) v."""

    def __init__(self, cfg: ModelConfig, policy: Policy):
        self.num_heads, self.policy = cfg.num_heads, policy
        self.qkv = Linear(cfg.width, 3 * cfg.width, policy)
        self.proj = Linear(cfg.width, cfg.width, policy)

    def __call__(self, x: Array) -> Array:
        b, n, d = x.shape
        x = pad_tokens(x, self.num_heads, self.policy)
        qkv = self.qkv(x).reshape(b, -1, 3, self.num_heads, d // self.num_heads)
        q, k, v = unstack(qkv)
        x = attention(q, k, v, self.policy, n)
        return self.proj(x.reshape(b, -1, d))[:, :n]


class Mlp(nnx.Module):
    """[B, N, width] -> the same, through GELU; its dropout sites are `site` and `site + 1`."""

    def __init__(self, cfg: ModelConfig, policy: Policy):
        self.rate, self.approximate = cfg.dropout, cfg.gelu == "tanh"
        self.fc1 = Linear(cfg.width, cfg.mlp_dim, policy)
        self.fc2 = Linear(cfg.mlp_dim, cfg.width, policy)

    def __call__(self, x: Array, dropout: Dropout, site: int) -> Array:
        x = gelu(self.fc1(x), self.approximate)
        x = self.fc2(drop(x, dropout, site, self.rate))
        return drop(x, dropout, site + 1, self.rate)


class Block(nnx.Module):
    """Pre-norm encoder block [B, N, width] -> the same.

    Its first dropout site is `site`; its branches are dropped at the rate `path_rate`, their sites
    being `path_site` and `path_site + 1`.
    """

    def __init__(self, cfg: ModelConfig, policy: Policy):
        self.rate, self.policy = cfg.dropout, policy
        self.norm1 = make_norm(cfg, cfg.width, policy)
        self.attn = Attention(cfg, policy)
        self.norm2 = make_norm(cfg, cfg.width, policy)
        self.mlp = Mlp(cfg, policy)

    def __call__(
        self, x: Array, dropout: Dropout, site: int, path_site: int, path_rate: float
    ) -> Array:
        y = drop(self.attn(self.norm1(x)), dropout, site, self.rate)
        x = x + drop_path(cast(y, self.policy.param), dropout, path_site, path_rate)
        y = self.mlp(self.norm2(x), dropout, site + 1)
        return x + drop_path(cast(y, self.policy.param), dropout, path_site + 1, path_rate)


class VisionTransformer(nnx.Module):
    """Normalised images, floats [B, H, W, 3] -> logits [B, classes] in the parameters' dtype.

    With `cfg.num_classes` 0 there is no head, and the output is the pooled features [B, width].

    The constructor leaves the weights unset: zero, and one for LayerNorm's scales.
    `jax_vit.create` draws them, `jax_vit.from_arrays` and `jax_vit.load` take them over.

    `dropout=(keys, rows)` turns dropout and stochastic depth on: keys uint32 [sites, 2]
    (`shared_vit.spec.mask_keys.site_keys`), rows int32 [B], the images' numbers in the global
    batch. Without it a call is deterministic. A new model is in eval mode; after `train()`, a call
    without `dropout` raises UserError where `cfg.dropout` or `cfg.drop_path` is above 0.

    The last norm is taken of the class token alone where the logits need no other, and of every
    token under `every_token`.

    With `remat` set, the backward pass computes each block again from its input, all that is kept.

    Raises UserError for an impossible precision and for images of another layout, size or dtype.
    """

    def __init__(self, cfg: ModelConfig, precision: str = "fp32"):
        check_config(cfg)
        policy = policy_of(precision)
        full = replace(policy, compute=policy.param)
        self.cfg, self.precision, self.policy = cfg, precision, policy
        self.remat = False
        learned = cfg.pos_embed == "learned"
        self.cls_token = parameter((1, 1, cfg.width), policy) if cfg.class_token else None
        self.pos_embed = parameter((1, cfg.num_tokens, cfg.width), policy, trained=learned)
        self.patch_embed = PatchEmbed(cfg, policy)
        self.blocks = nnx.List(Block(cfg, policy) for _ in range(cfg.depth))
        norm = make_norm(cfg, cfg.width, policy)
        self.norm = identity if cfg.norm_after_pool else norm
        self.fc_norm = norm if cfg.norm_after_pool else identity
        self.pre_logits = Linear(cfg.width, cfg.pre_logits, full) if cfg.pre_logits else None
        features = cfg.pre_logits or cfg.width
        self.head = Linear(features, cfg.num_classes, full) if cfg.num_classes else identity
        self.deterministic = True

    def __call__(self, images: Array, dropout: Dropout = None, every_token: bool = False) -> Array:
        check_inputs(self, images, dropout)
        x = cast(self.patch_embed(images), self.policy.param)
        if self.cls_token is not None:
            cls_token = jnp.broadcast_to(self.cls_token, (x.shape[0], 1, self.cfg.width))
            x = jnp.concatenate([cls_token, x], axis=1)
        x = drop(add_positions(x, self.pos_embed), dropout, 0, self.cfg.dropout)
        for i, block in enumerate(self.blocks):
            call = remat(block) if self.remat else block
            paths = path_site(self.cfg.depth, i), self.cfg.path_rate(i)
            x = call(x, dropout, 1 + 3 * i, *paths)
        if self.cfg.pool == "token" and not every_token:
            x = x[:, :1]
        x = self.fc_norm(self.pool(self.norm(x)))
        if self.pre_logits is not None:
            x = jnp.tanh(self.pre_logits(x))
        return self.head(x)

    def pool(self, x: Array) -> Array:
        """[B, N, width] -> [B, width]: the class token, or the mean of the patches.

        `cfg.pool_class_token` says whether the mean counts the class token.
        """
        if self.cfg.pool == "token":
            return x[:, 0]
        if not self.cfg.pool_class_token:
            x = x[:, self.cfg.num_prefix :]
        return x.mean(axis=1)

    def trace(self, images: Array) -> dict[str, Array]:
        """`{canonical module name: its output}` of one forward pass, in order of completion.

        `""` is the logits.
        """
        return trace(self, images)
