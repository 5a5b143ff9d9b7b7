"""The Vision Transformer (Dosovitskiy et al. 2021) in Flax NNX. Read it beside `torch_vit/model.py`, line for line."""

import jax
import jax.numpy as jnp
from flax import nnx

from jax_vit.dropout import drop
from jax_vit.ops import Conv, LayerNorm, attention, gelu, product
from jax_vit.trace import trace
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.precision import PRECISIONS


class Linear(nnx.Module):
    """x [..., in] -> [..., out]: inputs and weights rounded to `dtype`, summed in float32 or more, rounded once to `dtype`."""

    def __init__(self, in_features: int, out_features: int, dtype, param_dtype, tf32: bool):
        self.kernel = nnx.Param(jnp.zeros((in_features, out_features), param_dtype))
        self.bias = nnx.Param(jnp.zeros(out_features, param_dtype))
        self.dtype, self.tf32 = dtype, tf32

    def __call__(self, x):
        return product(x, self.kernel[...], self.bias[...], self.dtype, self.tf32)


class PatchEmbed(nnx.Module):
    """Images [B, H, W, 3] -> [B, patches, width]: a strided convolution, computed as a product of flattened patches."""

    def __init__(self, cfg: ModelConfig, dtype, param_dtype, tf32: bool):
        self.patch_size, self.dtype, self.tf32 = cfg.patch_size, dtype, tf32
        self.proj = Conv(3, cfg.width, cfg.patch_size, param_dtype)

    def __call__(self, images):
        b, h, w, c = images.shape
        p = self.patch_size
        x = images.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, p * p * c)
        kernel = self.proj.kernel[...].reshape(p * p * c, -1)
        return product(x, kernel, self.proj.bias[...], self.dtype, self.tf32)


class Attention(nnx.Module):
    """Self-attention [B, N, width] -> the same; scores are scaled before the softmax, which is float32 or more."""

    def __init__(self, cfg: ModelConfig, dtype, param_dtype, tf32: bool):
        self.num_heads, self.tf32 = cfg.num_heads, tf32
        self.qkv = Linear(cfg.width, 3 * cfg.width, dtype, param_dtype, tf32)
        self.proj = Linear(cfg.width, cfg.width, dtype, param_dtype, tf32)

    def __call__(self, x):
        b, n, d = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, d // self.num_heads)
        x = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], self.tf32)
        return self.proj(x.reshape(b, n, d))


class Mlp(nnx.Module):
    """[B, N, width] -> the same, through GELU; its dropout sites are `site` and `site + 1`."""

    def __init__(self, cfg: ModelConfig, dtype, param_dtype, tf32: bool):
        self.rate, self.approximate = cfg.dropout, cfg.gelu == "tanh"
        self.fc1 = Linear(cfg.width, cfg.mlp_dim, dtype, param_dtype, tf32)
        self.fc2 = Linear(cfg.mlp_dim, cfg.width, dtype, param_dtype, tf32)

    def __call__(self, x, dropout, site: int):
        x = gelu(self.fc1(x), self.approximate)
        x = self.fc2(drop(x, dropout, site, self.rate))
        return drop(x, dropout, site + 1, self.rate)


class Block(nnx.Module):
    """Pre-norm encoder block [B, N, width] -> the same; its first dropout site is `site`."""

    def __init__(self, cfg: ModelConfig, dtype, param_dtype, tf32: bool):
        self.rate = cfg.dropout
        self.norm1 = LayerNorm(cfg.width, cfg.norm_eps, param_dtype)
        self.attn = Attention(cfg, dtype, param_dtype, tf32)
        self.norm2 = LayerNorm(cfg.width, cfg.norm_eps, param_dtype)
        self.mlp = Mlp(cfg, dtype, param_dtype, tf32)

    def __call__(self, x, dropout, site: int):
        x = x + drop(self.attn(self.norm1(x)), dropout, site, self.rate).astype(x.dtype)
        return x + self.mlp(self.norm2(x), dropout, site + 1).astype(x.dtype)


class VisionTransformer(nnx.Module):
    """Normalised images, floats [B, H, W, 3] -> logits [B, classes] in the parameters' dtype.

    `dropout=(keys, rows)` turns dropout on: keys uint32 [sites, 2] (`shared_vit.spec.mask_keys.site_keys`), rows int32 [B].
    """

    def __init__(self, cfg: ModelConfig, precision: str = "fp32"):
        policy = PRECISIONS[precision]
        dtype, param_dtype, tf32 = jnp.dtype(policy.compute), jnp.dtype(policy.param), policy.tf32
        self.cfg = cfg
        self.precision = precision
        self.cls_token = nnx.Param(jnp.zeros((1, 1, cfg.width), param_dtype)) if cfg.class_token else None
        pos_embed = jnp.zeros((1, cfg.num_tokens, cfg.width), param_dtype)
        if cfg.pos_embed == "learned":
            self.pos_embed = nnx.Param(pos_embed)
        else:
            self.pos_embed = nnx.Variable(pos_embed)
        self.patch_embed = PatchEmbed(cfg, dtype, param_dtype, tf32)
        self.blocks = nnx.List(Block(cfg, dtype, param_dtype, tf32) for _ in range(cfg.depth))
        norm = LayerNorm(cfg.width, cfg.norm_eps, param_dtype)
        self.norm = None if cfg.norm_after_pool else norm
        self.fc_norm = norm if cfg.norm_after_pool else None
        self.pre_logits = Linear(cfg.width, cfg.pre_logits, param_dtype, param_dtype, tf32) if cfg.pre_logits else None
        self.head = Linear(cfg.pre_logits or cfg.width, cfg.num_classes, param_dtype, param_dtype, tf32)

    def __call__(self, images, dropout=None):
        x = self.patch_embed(images).astype(self.pos_embed[...].dtype)
        if self.cls_token is not None:
            x = jnp.concatenate([jnp.broadcast_to(self.cls_token[...], (len(x), 1, x.shape[-1])), x], axis=1)
        x = drop(x + self.pos_embed[...], dropout, 0, self.cfg.dropout)
        for i, block in enumerate(self.blocks):
            x = block(x, dropout, 1 + 3 * i)
        if self.norm is not None:
            x = self.norm(x)
        x = self.pool(x)
        if self.fc_norm is not None:
            x = self.fc_norm(x)
        if self.pre_logits is not None:
            x = jnp.tanh(self.pre_logits(x))
        return self.head(x)

    def pool(self, x):
        """[B, N, width] -> [B, width]: the class token, or the mean of the patches (and of the class token if asked)."""
        if self.cfg.pool == "token":
            return x[:, 0]
        if self.cfg.class_token and not self.cfg.pool_class_token:
            x = x[:, 1:]
        return x.mean(axis=1)

    def trace(self, images) -> dict[str, jax.Array]:
        """`{canonical module name: its output}` of one forward pass, in order of completion; `""` is the logits."""
        return trace(self, images)
