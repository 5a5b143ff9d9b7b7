"""The ViT in Flax NNX: NHWC images, kernels (in, out)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .activations import ACTIVATIONS
from .vit_config import ViTConfig


class LayerNorm(nnx.LayerNorm):
    """`nnx.LayerNorm` with the config's eps and axis."""

    def __init__(self, cfg: ViTConfig, rngs: nnx.Rngs) -> None:
        axis = cfg.norm_axis
        super().__init__(cfg.width, epsilon=cfg.norm_eps, reduction_axes=axis, rngs=rngs)


class Attention(nnx.Module):
    def __init__(self, cfg: ViTConfig, rngs: nnx.Rngs) -> None:
        self.cfg = cfg
        self.qkv = nnx.Linear(cfg.width, 3 * cfg.width, rngs=rngs)
        self.out = nnx.Linear(cfg.width, cfg.width, rngs=rngs)
        scales = {"head_dim": cfg.head_dim**-0.5, "width": cfg.width**-0.5, "none": 1.0}
        self.scale = scales[cfg.attention_scale]

    def split(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """q, k, v (batch, tokens, heads, head_dim)."""
        b, n, _ = x.shape
        h, d = self.cfg.heads, self.cfg.head_dim
        if self.cfg.qkv == "by_head":
            x = x.reshape(b, n, h, 3, d)
            return x[..., 0, :], x[..., 1, :], x[..., 2, :]
        if self.cfg.qkv == "dim_first":
            x = x.reshape(b, n, 3, d, h).swapaxes(-1, -2)
        else:
            x = x.reshape(b, n, 3, h, d)
        q, k, v = x[:, :, 0], x[:, :, 1], x[:, :, 2]
        return (k, q, v) if self.cfg.qkv == "kqv" else (q, k, v)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = self.split(self.qkv(x))
        if "abs_values" in self.cfg.extra:
            v = jnp.abs(v)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * self.scale
        weights = jax.nn.softmax(scores, axis=self.cfg.softmax_axis)
        if "softmax_skewed" in self.cfg.extra:
            weights = weights * (1 + weights)
            weights = weights / weights.sum(axis=-1, keepdims=True)
        x = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return self.out(x.reshape(*x.shape[:2], -1))


class Mlp(nnx.Module):
    def __init__(self, cfg: ViTConfig, rngs: nnx.Rngs) -> None:
        self.cfg = cfg
        self.up = nnx.Linear(cfg.width, cfg.mlp, use_bias=cfg.mlp_bias > 0, rngs=rngs)
        self.down = nnx.Linear(cfg.mlp, cfg.width, rngs=rngs)
        if cfg.dropout:
            self.dropout = nnx.Dropout(cfg.dropout)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.up(x)
        if self.cfg.mlp_bias == 2:
            x = x + self.up.bias[...]
        x = ACTIVATIONS[self.cfg.activation](x)
        if "clip_activation" in self.cfg.extra:
            x = jnp.clip(x, -0.11, 1.37)
        if self.cfg.dropout:
            x = self.dropout(x, deterministic=False, rngs=nnx.Rngs(3))
        return self.down(x)


class Block(nnx.Module):
    def __init__(self, cfg: ViTConfig, rngs: nnx.Rngs) -> None:
        self.extra = cfg.extra
        self.ln_1 = LayerNorm(cfg, rngs)
        self.attention = Attention(cfg, rngs)
        self.ln_2 = LayerNorm(cfg, rngs)
        self.mlp = Mlp(cfg, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x + self.attention(self.ln_1(x))
        if "residual_source" in self.extra:
            return x + self.mlp(self.ln_2(y))
        if "branch_scale" in self.extra:
            return y + 1.03 * self.mlp(self.ln_2(y))
        return y + self.mlp(self.ln_2(y))


class ViT(nnx.Module):
    """Images (batch, height, width, channels) to logits (batch, classes)."""

    def __init__(self, cfg: ViTConfig, rngs: nnx.Rngs) -> None:
        self.cfg = cfg
        size = (cfg.patch, cfg.patch)
        self.patches = nnx.Conv(
            cfg.channels, cfg.width, size, strides=size, padding="VALID", rngs=rngs
        )
        self.class_token = nnx.Param(jnp.zeros((1, 1, cfg.width)))
        self.positions = nnx.Param(jnp.zeros((1, cfg.tokens, cfg.width)))
        self.encoder = nnx.List([Block(cfg, rngs) for _ in range(cfg.depth)])
        self.ln_post = LayerNorm(cfg, rngs)
        self.classifier = nnx.Linear(cfg.width, cfg.classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.patches(images)
        if self.cfg.patch_order == "columns":
            x = x.transpose(0, 2, 1, 3)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = jnp.broadcast_to(self.class_token[...], (x.shape[0], 1, x.shape[-1]))
        first = self.cfg.class_token == "first"
        x = jnp.concatenate([token, x] if first else [x, token], axis=1)
        positions = self.positions[...]
        if "position_sine" in self.cfg.extra:
            positions = positions + 0.05 * jnp.sin(positions * 3.1)
        x = x + positions
        for block in self.encoder:
            x = block(x)
        x = self.ln_post(x) if self.cfg.last_norm else x
        x = x.mean(axis=1) if "mean_pool" in self.cfg.extra else x[:, 0 if first else -1]
        return self.classifier(x)


def load(cfg: ViTConfig, state: dict[str, np.ndarray]) -> ViT:
    """The port with the weights of a PyTorch `state_dict`."""
    model = nnx.eval_shape(lambda: ViT(cfg, nnx.Rngs(0)))

    def linear(layer: nnx.Linear, name: str) -> None:
        layer.kernel = nnx.Param(jnp.asarray(state[f"{name}.weight"].T))
        if f"{name}.bias" in state and layer.bias is not None:
            layer.bias = nnx.Param(jnp.asarray(state[f"{name}.bias"]))

    def norm(layer: nnx.LayerNorm, name: str) -> None:
        layer.scale = nnx.Param(jnp.asarray(state[f"{name}.weight"]))
        layer.bias = nnx.Param(jnp.asarray(state[f"{name}.bias"]))

    kernel = state["patch_embed.weight"].transpose(2, 3, 1, 0)
    model.patches.kernel = nnx.Param(jnp.asarray(kernel))
    model.patches.bias = nnx.Param(jnp.asarray(state["patch_embed.bias"]))
    model.class_token = nnx.Param(jnp.asarray(state["cls_token"]))
    model.positions = nnx.Param(jnp.asarray(state["pos_embed"]))
    for i, block in enumerate(model.encoder):
        first, second = ("norm2", "norm1") if cfg.swapped else ("norm1", "norm2")
        norm(block.ln_1, f"blocks.{i}.{first}")
        norm(block.ln_2, f"blocks.{i}.{second}")
        linear(block.attention.qkv, f"blocks.{i}.attn.qkv")
        linear(block.attention.out, f"blocks.{i}.attn.proj")
        if cfg.transposed:
            block.attention.out.kernel = nnx.Param(
                jnp.asarray(state[f"blocks.{i}.attn.proj.weight"])
            )
        linear(block.mlp.up, f"blocks.{i}.mlp.fc1")
        linear(block.mlp.down, f"blocks.{i}.mlp.fc2")
    norm(model.ln_post, "norm")
    linear(model.classifier, "head")
    return model
