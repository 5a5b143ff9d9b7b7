"""The ViT in Flax Linen: compact modules, q/k/v as one DenseGeneral."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from .activations import ACTIVATIONS
from .vit_config import ViTConfig


class SelfAttention(nn.Module):
    cfg: ViTConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.cfg
        shapes = {
            "packed": (3, cfg.heads, cfg.head_dim),
            "kqv": (3, cfg.heads, cfg.head_dim),
            "by_head": (cfg.heads, 3, cfg.head_dim),
            "dim_first": (3, cfg.head_dim, cfg.heads),
        }
        x = nn.DenseGeneral(shapes[cfg.qkv], name="qkv")(x)
        if cfg.qkv == "by_head":
            x = x.swapaxes(-3, -2)
        if cfg.qkv == "dim_first":
            x = x.swapaxes(-2, -1)
        query, key, value = (x[..., i, :, :] for i in range(3))
        if cfg.qkv == "kqv":
            query, key = key, query
        if "abs_values" in cfg.extra:
            value = jnp.abs(value)
        if cfg.attention_scale == "head_dim":
            query = query / jnp.sqrt(cfg.head_dim)
        elif cfg.attention_scale == "width":
            query = query / jnp.sqrt(cfg.width)
        weights = jnp.einsum("...qhd,...khd->...hqk", query, key)
        weights = nn.softmax(weights, axis=cfg.softmax_axis)
        if "softmax_skewed" in cfg.extra:
            weights = weights * (1 + weights)
            weights = weights / weights.sum(axis=-1, keepdims=True)
        x = jnp.einsum("...hqk,...khd->...qhd", weights, value)
        return nn.DenseGeneral(cfg.width, axis=(-2, -1), name="out")(x)


class MlpBlock(nn.Module):
    cfg: ViTConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.cfg
        width = x.shape[-1]
        x = nn.Dense(cfg.mlp, use_bias=cfg.mlp_bias > 0, name="Dense_0")(x)
        if cfg.mlp_bias == 2:
            x = x + self.get_variable("params", "Dense_0")["bias"]
        x = ACTIVATIONS[cfg.activation](x)
        if "clip_activation" in cfg.extra:
            x = jnp.clip(x, -0.11, 1.37)
        if cfg.dropout:
            x = nn.Dropout(cfg.dropout, deterministic=False)(x, rng=jax.random.key(3))
        return nn.Dense(width, name="Dense_1")(x)


class EncoderBlock(nn.Module):
    cfg: ViTConfig

    def norm(self, name: str) -> nn.LayerNorm:
        cfg = self.cfg
        return nn.LayerNorm(epsilon=cfg.norm_eps, reduction_axes=cfg.norm_axis, name=name)

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        x = self.norm("LayerNorm_0")(inputs)
        x = SelfAttention(self.cfg, name="attention")(x)
        x = x + inputs
        y = self.norm("LayerNorm_1")(x)
        y = MlpBlock(self.cfg, name="mlp")(y)
        if "branch_scale" in self.cfg.extra:
            y = y * 1.03
        if "residual_source" in self.cfg.extra:
            return inputs + y
        return x + y


class VisionTransformer(nn.Module):
    cfg: ViTConfig

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        cfg = self.cfg
        size = (cfg.patch, cfg.patch)
        x = nn.Conv(cfg.width, size, strides=size, padding="VALID", name="embedding")(images)
        if cfg.patch_order == "columns":
            x = x.swapaxes(1, 2)
        x = x.reshape(x.shape[0], -1, cfg.width)
        token = self.param("cls", nn.initializers.zeros, (1, 1, cfg.width))
        token = jnp.tile(token, (x.shape[0], 1, 1))
        first = cfg.class_token == "first"
        x = jnp.concatenate([token, x] if first else [x, token], axis=1)
        positions = self.param("posembed", nn.initializers.zeros, (1, cfg.tokens, cfg.width))
        if "position_sine" in cfg.extra:
            positions += 0.05 * jnp.sin(3.1 * positions)
        x += positions
        for i in range(cfg.depth):
            x = EncoderBlock(cfg, name=f"encoderblock_{i}")(x)
        if cfg.last_norm:
            axis = cfg.norm_axis
            norm = nn.LayerNorm(epsilon=cfg.norm_eps, reduction_axes=axis, name="encoder_norm")
            x = norm(x)
        x = jnp.mean(x, axis=1) if "mean_pool" in cfg.extra else x[:, 0 if first else -1]
        return nn.Dense(cfg.classes, name="head")(x)


def load(cfg: ViTConfig, state: dict[str, np.ndarray]) -> tuple[nn.Module, dict]:
    """The module and its variables, with the weights of a PyTorch `state_dict`."""
    h, d, w = cfg.heads, cfg.head_dim, cfg.width
    qkv = {"by_head": (h, 3, d), "dim_first": (3, d, h)}.get(cfg.qkv, (3, h, d))

    def dense(name: str) -> dict:
        return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}

    def norm(name: str) -> dict:
        return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}

    params = {
        "embedding": {
            "kernel": state["patch_embed.weight"].transpose(2, 3, 1, 0),
            "bias": state["patch_embed.bias"],
        },
        "cls": state["cls_token"],
        "posembed": state["pos_embed"],
        "encoder_norm": norm("norm"),
        "head": dense("head"),
    }
    if not cfg.last_norm:
        del params["encoder_norm"]
    for i in range(cfg.depth):
        name = f"blocks.{i}"
        norms = [norm(f"{name}.norm1"), norm(f"{name}.norm2")]
        if cfg.swapped:
            norms.reverse()
        packed, out = dense(f"{name}.attn.qkv"), dense(f"{name}.attn.proj")
        if cfg.transposed:
            out["kernel"] = out["kernel"].T
        mlp = {"Dense_0": dense(f"{name}.mlp.fc1"), "Dense_1": dense(f"{name}.mlp.fc2")}
        if cfg.mlp_bias == 0:
            del mlp["Dense_0"]["bias"]
        params[f"encoderblock_{i}"] = {
            "LayerNorm_0": norms[0],
            "LayerNorm_1": norms[1],
            "attention": {
                "qkv": {
                    "kernel": packed["kernel"].reshape(w, *qkv),
                    "bias": packed["bias"].reshape(qkv),
                },
                "out": {"kernel": out["kernel"].reshape(h, d, w), "bias": out["bias"]},
            },
            "mlp": mlp,
        }
    return VisionTransformer(cfg), {"params": jax.tree.map(jnp.asarray, params)}
