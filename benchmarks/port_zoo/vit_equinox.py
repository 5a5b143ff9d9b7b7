"""The ViT in Equinox: one image at a time (channels first), batched by vmap."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .activations import ACTIVATIONS
from .vit_config import ViTConfig


class Norm(eqx.Module):
    weight: Array
    bias: Array
    eps: float = eqx.field(static=True)
    axis: int = eqx.field(static=True)
    ddof: int = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        mean = jnp.mean(x, axis=self.axis, keepdims=True)
        variance = jnp.var(x, axis=self.axis, keepdims=True, ddof=self.ddof)
        return (x - mean) * jax.lax.rsqrt(variance + self.eps) * self.weight + self.bias


class Attention(eqx.Module):
    q_k_v: eqx.nn.Linear
    project: eqx.nn.Linear
    cfg: ViTConfig = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        """(tokens, width) to the same."""
        cfg = self.cfg
        x = jax.vmap(self.q_k_v)(x)
        if cfg.qkv == "by_head":
            x = x.reshape(-1, cfg.heads, 3, cfg.head_dim).transpose(2, 1, 0, 3)
        elif cfg.qkv == "dim_first":
            x = x.reshape(-1, 3, cfg.head_dim, cfg.heads).transpose(1, 3, 0, 2)
        else:
            x = x.reshape(-1, 3, cfg.heads, cfg.head_dim).transpose(1, 2, 0, 3)
        q, k, v = x if cfg.qkv != "kqv" else (x[1], x[0], x[2])
        if "abs_values" in cfg.extra:
            v = jnp.abs(v)
        scores = q @ k.swapaxes(-1, -2)
        if cfg.attention_scale != "none":
            size = cfg.head_dim if cfg.attention_scale == "head_dim" else cfg.width
            scores = scores / size**0.5
        scores = jax.nn.softmax(scores, axis=cfg.softmax_axis)
        if "softmax_skewed" in cfg.extra:
            scores = scores * (1 + scores)
            scores = scores / scores.sum(-1, keepdims=True)
        x = (scores @ v).transpose(1, 0, 2).reshape(-1, cfg.width)
        return jax.vmap(self.project)(x)


class Layer(eqx.Module):
    before_attention: Norm
    attention: Attention
    before_mlp: Norm
    expand: eqx.nn.Linear
    contract: eqx.nn.Linear
    cfg: ViTConfig = eqx.field(static=True)

    def mlp(self, x: Array) -> Array:
        cfg = self.cfg
        x = jax.vmap(self.expand)(x)
        if cfg.mlp_bias == 2:
            x = x + self.expand.bias
        x = ACTIVATIONS[cfg.activation](x)
        if "clip_activation" in cfg.extra:
            x = jnp.clip(x, -0.11, 1.37)
        if cfg.dropout:
            x = eqx.nn.Dropout(cfg.dropout)(x, key=jax.random.key(5))
        return jax.vmap(self.contract)(x)

    def __call__(self, x: Array) -> Array:
        y = x + self.attention(self.before_attention(x))
        z = self.mlp(self.before_mlp(y))
        if "branch_scale" in self.cfg.extra:
            z = 1.03 * z
        return x + z if "residual_source" in self.cfg.extra else y + z


class ViT(eqx.Module):
    patchify: eqx.nn.Conv2d
    token: Array
    positions: Array
    layers: list[Layer]
    norm: Norm
    head: eqx.nn.Linear
    cfg: ViTConfig = eqx.field(static=True)

    def one(self, image: Array) -> Array:
        cfg = self.cfg
        x = self.patchify(image)
        if cfg.patch_order == "columns":
            x = x.swapaxes(1, 2)
        x = x.reshape(x.shape[0], -1).T
        first = cfg.class_token == "first"
        x = jnp.concatenate([self.token, x] if first else [x, self.token])
        positions = self.positions
        if "position_sine" in cfg.extra:
            positions = positions + 0.05 * jnp.sin(3.1 * positions)
        x = x + positions
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x) if cfg.last_norm else x
        x = x.mean(0) if "mean_pool" in cfg.extra else x[0 if first else -1]
        return self.head(x)

    def __call__(self, images: Array) -> Array:
        return jax.vmap(self.one)(images)


def load(cfg: ViTConfig, state: dict[str, np.ndarray]) -> ViT:
    """The port with the weights of a PyTorch `state_dict`."""
    key = jax.random.key(0)

    def linear(name: str, bias: bool = True, transposed: bool = False) -> eqx.nn.Linear:
        weight = jnp.asarray(state[f"{name}.weight"].T if transposed else state[f"{name}.weight"])
        layer = eqx.filter_eval_shape(
            eqx.nn.Linear, weight.shape[1], weight.shape[0], use_bias=bias, key=key
        )
        layer = eqx.tree_at(lambda m: m.weight, layer, weight)
        if bias:
            layer = eqx.tree_at(lambda m: m.bias, layer, jnp.asarray(state[f"{name}.bias"]))
        return layer

    def norm(name: str) -> Norm:
        weight, bias = (jnp.asarray(state[f"{name}.{part}"]) for part in ("weight", "bias"))
        return Norm(weight, bias, cfg.norm_eps, -1 if cfg.norm_axis == -1 else 0, cfg.ddof)

    layers = []
    for i in range(cfg.depth):
        name = f"blocks.{i}"
        first, second = ("norm2", "norm1") if cfg.swapped else ("norm1", "norm2")
        project = linear(f"{name}.attn.proj", transposed=cfg.transposed)
        layers.append(
            Layer(
                norm(f"{name}.{first}"),
                Attention(linear(f"{name}.attn.qkv"), project, cfg),
                norm(f"{name}.{second}"),
                linear(f"{name}.mlp.fc1", bias=cfg.mlp_bias > 0),
                linear(f"{name}.mlp.fc2"),
                cfg,
            )
        )
    patchify = eqx.filter_eval_shape(
        eqx.nn.Conv2d, cfg.channels, cfg.width, cfg.patch, stride=cfg.patch, key=key
    )
    arrays = state["patch_embed.weight"], state["patch_embed.bias"].reshape(-1, 1, 1)
    patchify = eqx.tree_at(lambda m: (m.weight, m.bias), patchify, tuple(map(jnp.asarray, arrays)))
    token, positions = jnp.asarray(state["cls_token"][0]), jnp.asarray(state["pos_embed"][0])
    return ViT(patchify, token, positions, layers, norm("norm"), linear("head"), cfg)
