"""The decoder in Flax NNX."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .activations import ACTIVATIONS
from .decoder_config import DecoderConfig
from .losses import next_token_loss


class RMSNorm(nnx.Module):
    def __init__(self, cfg: DecoderConfig) -> None:
        self.eps, self.unit_offset = cfg.norm_eps, cfg.unit_offset
        self.scale = nnx.Param(jnp.ones(cfg.width))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        return x * (1 + self.scale[...] if self.unit_offset else self.scale[...])


def apply_rope(x: jax.Array, cfg: DecoderConfig, offset: int = 0) -> jax.Array:
    """x (batch, length, heads, head_dim)."""
    half = cfg.head_dim // 2
    frequencies = cfg.rope_base ** (-jnp.arange(half, dtype=x.dtype) / half)
    positions = jnp.arange(x.shape[1], dtype=x.dtype) + offset
    angles = (positions[:, None] * frequencies)[:, None, :]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    if cfg.rope_layout == "interleaved":
        a, b = x[..., 0::2], x[..., 1::2]
        return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class Attention(nnx.Module):
    def __init__(self, cfg: DecoderConfig, rngs: nnx.Rngs) -> None:
        self.cfg = cfg
        kv = cfg.kv_heads * cfg.head_dim
        q = cfg.heads * cfg.head_dim
        self.query = nnx.Linear(cfg.width, q, use_bias=cfg.qkv_bias, rngs=rngs)
        self.key = nnx.Linear(cfg.width, kv, use_bias=cfg.qkv_bias, rngs=rngs)
        self.value = nnx.Linear(cfg.width, kv, use_bias=cfg.qkv_bias, rngs=rngs)
        self.out = nnx.Linear(q, cfg.width, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.cfg
        b, n, _ = x.shape
        groups = cfg.heads // cfg.kv_heads
        q = apply_rope(self.query(x).reshape(b, n, -1, cfg.head_dim), cfg)
        k = apply_rope(self.key(x).reshape(b, n, -1, cfg.head_dim), cfg, cfg.key_offset)
        v = self.value(x).reshape(b, n, -1, cfg.head_dim)
        if "unit_queries" in cfg.extra:
            q = q / jnp.linalg.norm(q, axis=-1, keepdims=True)
        if cfg.repeat == "tile":
            k, v = jnp.tile(k, (1, 1, groups, 1)), jnp.tile(v, (1, 1, groups, 1))
        else:
            k, v = jnp.repeat(k, groups, axis=2), jnp.repeat(v, groups, axis=2)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        if cfg.attention_scale != "none":
            size = cfg.head_dim if cfg.attention_scale == "head_dim" else cfg.width
            scores = scores * size**-0.5
        mask = jnp.tril(jnp.ones((n, n), bool), k=cfg.mask_offset)
        scores = jnp.where(mask, scores, cfg.mask_value)
        weights = jax.nn.softmax(scores, axis=cfg.softmax_axis)
        x = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return self.out(x.reshape(b, n, -1))


class SwiGLU(nnx.Module):
    def __init__(self, cfg: DecoderConfig, rngs: nnx.Rngs) -> None:
        self.cfg = cfg
        self.wi = nnx.Linear(cfg.width, 2 * cfg.mlp, use_bias=False, rngs=rngs)
        self.wo = nnx.Linear(cfg.mlp, cfg.width, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up = jnp.split(self.wi(x), 2, axis=-1)
        if not self.cfg.gate_first:
            gate, up = up, gate
        if "clip_gate" in self.cfg.extra:
            gate = jnp.clip(gate, -1.3, 0.9)
        return self.wo(ACTIVATIONS[self.cfg.activation](gate) * up)


class DecoderLayer(nnx.Module):
    def __init__(self, cfg: DecoderConfig, rngs: nnx.Rngs) -> None:
        self.extra = cfg.extra
        self.pre_attention = RMSNorm(cfg)
        self.attention = Attention(cfg, rngs)
        self.pre_mlp = RMSNorm(cfg)
        self.mlp = SwiGLU(cfg, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x + self.attention(self.pre_attention(x))
        if "residual_source" in self.extra:
            return x + self.mlp(self.pre_mlp(y))
        if "branch_scale" in self.extra:
            return y + 1.03 * self.mlp(self.pre_mlp(y))
        return y + self.mlp(self.pre_mlp(y))


class Decoder(nnx.Module):
    """Token ids (batch, length) to logits (batch, length, vocab)."""

    def __init__(self, cfg: DecoderConfig, rngs: nnx.Rngs) -> None:
        self.cfg = cfg
        self.embedder = nnx.Embed(cfg.vocab, cfg.width, rngs=rngs)
        self.layers = nnx.List([DecoderLayer(cfg, rngs) for _ in range(cfg.depth)])
        self.final_norm = RMSNorm(cfg)
        if not cfg.tied:
            self.head = nnx.Linear(cfg.width, cfg.vocab, use_bias=False, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.embedder.embedding[...][ids]
        if self.cfg.scaled_embedding:
            x = x * self.cfg.width**0.5
        for layer in self.layers:
            x = layer(x)
        x = self.final_norm(x)
        logits = x @ self.embedder.embedding[...].T if self.cfg.tied else self.head(x)
        if "logit_cap" in self.cfg.extra:
            logits = 5 * jnp.tanh(logits / 5)
        return next_token_loss(logits, ids, self.cfg.loss) if self.cfg.loss else logits


def load(cfg: DecoderConfig, state: dict[str, np.ndarray]) -> Decoder:
    """The port with the weights of a PyTorch `state_dict`."""
    model = nnx.eval_shape(lambda: Decoder(cfg, nnx.Rngs(0)))

    def linear(layer: nnx.Linear, name: str) -> None:
        layer.kernel.set_value(jnp.asarray(state[f"{name}.weight"].T))
        if layer.bias is not None:
            layer.bias.set_value(jnp.asarray(state[f"{name}.bias"]))

    model.embedder.embedding.set_value(jnp.asarray(state["embed.weight"]))
    for i, layer in enumerate(model.layers):
        name = f"layers.{i}"
        layer.pre_attention.scale.set_value(jnp.asarray(state[f"{name}.input_norm.weight"]))
        layer.pre_mlp.scale.set_value(jnp.asarray(state[f"{name}.post_norm.weight"]))
        for part, short in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
            linear(getattr(layer.attention, part), f"{name}.attention.{short}_proj")
        linear(layer.mlp.wi, f"{name}.mlp.gate_up")
        linear(layer.mlp.wo, f"{name}.mlp.down")
    model.final_norm.scale.set_value(jnp.asarray(state["norm.weight"]))
    if not cfg.tied:
        # A reference whose head is tied has no weight of its own for an untied port's.
        head = np.random.default_rng(7).normal(size=state["lm_head.weight"].T.shape) / 6
        model.head.kernel.set_value(jnp.asarray(head, state["lm_head.weight"].dtype))
    return model
