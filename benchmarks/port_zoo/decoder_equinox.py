"""The decoder in Equinox: one sequence at a time, heads first, PyTorch's weight layouts."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .activations import ACTIVATIONS
from .decoder_config import DecoderConfig
from .losses import next_token_loss


class RMSNorm(eqx.Module):
    weight: Array
    cfg: DecoderConfig = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        inverse = 1 / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + self.cfg.norm_eps)
        weight = self.weight + 1 if self.cfg.unit_offset else self.weight
        return x * inverse * weight


def rotate(x: Array, cfg: DecoderConfig, offset: int = 0) -> Array:
    """x (heads, length, head_dim)."""
    exponents = jnp.arange(0, cfg.head_dim, 2, dtype=x.dtype) / cfg.head_dim
    angles = jnp.outer(jnp.arange(x.shape[1], dtype=x.dtype) + offset, cfg.rope_base**-exponents)
    if cfg.rope_layout == "interleaved":
        angles = jnp.repeat(angles, 2, axis=-1)
        turned = jnp.stack([-x[..., 1::2], x[..., ::2]], axis=-1).reshape(x.shape)
    else:
        angles = jnp.concatenate([angles, angles], axis=-1)
        x1, x2 = jnp.split(x, 2, axis=-1)
        turned = jnp.concatenate([-x2, x1], axis=-1)
    return x * jnp.cos(angles) + turned * jnp.sin(angles)


class Attention(eqx.Module):
    wq: eqx.nn.Linear
    wk: eqx.nn.Linear
    wv: eqx.nn.Linear
    wo: eqx.nn.Linear
    cfg: DecoderConfig = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        cfg, n = self.cfg, x.shape[0]

        def heads(layer: eqx.nn.Linear) -> Array:
            return jax.vmap(layer)(x).reshape(n, -1, cfg.head_dim).swapaxes(0, 1)

        q, k, v = (
            rotate(heads(self.wq), cfg),
            rotate(heads(self.wk), cfg, cfg.key_offset),
            heads(self.wv),
        )
        if "unit_queries" in cfg.extra:
            q = q / jnp.linalg.norm(q, axis=-1, keepdims=True)
        if cfg.attention_scale == "head_dim":
            q = q / cfg.head_dim**0.5
        elif cfg.attention_scale == "width":
            q = q / cfg.width**0.5
        groups = cfg.heads // cfg.kv_heads
        if cfg.repeat == "tile":
            k, v = jnp.concatenate([k] * groups), jnp.concatenate([v] * groups)
        else:
            k, v = jnp.repeat(k, groups, axis=0), jnp.repeat(v, groups, axis=0)
        hidden = jnp.triu(jnp.ones((n, n), bool), k=1 + cfg.mask_offset)
        scores = jnp.where(hidden, cfg.mask_value, q @ k.swapaxes(1, 2))
        x = jax.nn.softmax(scores, axis=cfg.softmax_axis) @ v
        return jax.vmap(self.wo)(x.swapaxes(0, 1).reshape(n, -1))


class Layer(eqx.Module):
    norm1: RMSNorm
    attention: Attention
    norm2: RMSNorm
    w13: eqx.nn.Linear
    w2: eqx.nn.Linear
    cfg: DecoderConfig = eqx.field(static=True)

    def mlp(self, x: Array) -> Array:
        gate, up = jnp.split(self.w13(x), 2)
        if not self.cfg.gate_first:
            gate, up = up, gate
        if "clip_gate" in self.cfg.extra:
            gate = jnp.clip(gate, -1.3, 0.9)
        return self.w2(ACTIVATIONS[self.cfg.activation](gate) * up)

    def __call__(self, x: Array) -> Array:
        h = x + self.attention(self.norm1(x))
        y = jax.vmap(self.mlp)(self.norm2(h))
        if "branch_scale" in self.cfg.extra:
            y = y * 1.03
        return (x if "residual_source" in self.cfg.extra else h) + y


class Decoder(eqx.Module):
    embedding: Array
    layers: list[Layer]
    norm: RMSNorm
    head: Array | None
    cfg: DecoderConfig = eqx.field(static=True)

    def one(self, ids: Array) -> Array:
        x = jnp.take(self.embedding, ids, axis=0)
        if self.cfg.scaled_embedding:
            x = x * self.cfg.width**0.5
        for layer in self.layers:
            x = layer(x)
        logits = self.norm(x) @ (self.embedding if self.head is None else self.head).T
        return 5 * jnp.tanh(logits / 5) if "logit_cap" in self.cfg.extra else logits

    def __call__(self, ids: Array) -> Array:
        logits = jax.vmap(self.one)(ids)
        return next_token_loss(logits, ids, self.cfg.loss) if self.cfg.loss else logits


def load(cfg: DecoderConfig, state: dict[str, np.ndarray]) -> Decoder:
    """The port with the weights of a PyTorch `state_dict`."""

    def linear(name: str, bias: bool = False) -> eqx.nn.Linear:
        weight = jnp.asarray(state[f"{name}.weight"])
        out, inputs = weight.shape
        layer = eqx.filter_eval_shape(
            eqx.nn.Linear, inputs, out, use_bias=bias, key=jax.random.key(0)
        )
        layer = eqx.tree_at(lambda m: m.weight, layer, weight)
        if bias:
            layer = eqx.tree_at(lambda m: m.bias, layer, jnp.asarray(state[f"{name}.bias"]))
        return layer

    def norm(name: str) -> RMSNorm:
        return RMSNorm(jnp.asarray(state[f"{name}.weight"]), cfg)

    layers = []
    for i in range(cfg.depth):
        name = f"layers.{i}"
        qkv = (linear(f"{name}.attention.{s}_proj", cfg.qkv_bias) for s in "qkv")
        attention = Attention(*qkv, linear(f"{name}.attention.o_proj"), cfg)
        mlp = linear(f"{name}.mlp.gate_up"), linear(f"{name}.mlp.down")
        norms = norm(f"{name}.input_norm"), norm(f"{name}.post_norm")
        layers.append(Layer(norms[0], attention, norms[1], *mlp, cfg))
    embedding = jnp.asarray(state["embed.weight"])
    head = None
    if not cfg.tied:
        # A reference whose head is tied has no weight of its own for an untied port's.
        head = np.random.default_rng(7).normal(size=(cfg.width, cfg.vocab)).T / 6
        head = jnp.asarray(head, embedding.dtype)
    return Decoder(embedding, layers, norm("norm"), head, cfg)
