"""The decoder in Flax Linen: heads as axes of the kernels, gate and up as two layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from .activations import ACTIVATIONS
from .decoder_config import DecoderConfig
from .losses import next_token_loss


class RMSNorm(nn.Module):
    cfg: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        variance = (x * x).sum(axis=-1, keepdims=True) / x.shape[-1]
        if self.cfg.unit_offset:
            scale = scale + 1.0
        return x / jnp.sqrt(variance + self.cfg.norm_eps) * scale


def rotary_table(cfg: DecoderConfig, length: int, offset: int, dtype) -> jax.Array:
    """Complex (length, 1, head_dim / 2)."""
    frequencies = 1.0 / cfg.rope_base ** (
        jnp.arange(0, cfg.head_dim, 2, dtype=dtype) / cfg.head_dim
    )
    angles = jnp.outer(jnp.arange(length, dtype=dtype) + offset, frequencies)
    return jnp.exp(1j * angles)[:, None, :]


def rotary(cfg: DecoderConfig, x: jax.Array, offset: int = 0) -> jax.Array:
    """x (batch, length, heads, head_dim), pairs as complex numbers."""
    table = rotary_table(cfg, x.shape[1], offset, x.dtype)
    if cfg.rope_layout == "interleaved":
        y = jax.lax.complex(x[..., ::2], x[..., 1::2]) * table
        return jnp.stack([y.real, y.imag], axis=-1).reshape(x.shape)
    half = cfg.head_dim // 2
    y = jax.lax.complex(x[..., :half], x[..., half:]) * table
    return jnp.concatenate([y.real, y.imag], axis=-1)


class GroupedAttention(nn.Module):
    cfg: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.cfg
        dim, groups = cfg.head_dim, cfg.heads // cfg.kv_heads

        def project(heads: int, name: str) -> jax.Array:
            return nn.DenseGeneral((heads, dim), use_bias=cfg.qkv_bias, name=name)(x)

        q = rotary(cfg, project(cfg.heads, "q"))
        k = rotary(cfg, project(cfg.kv_heads, "k"), cfg.key_offset)
        v = project(cfg.kv_heads, "v")
        if "unit_queries" in cfg.extra:
            q = q / jnp.linalg.norm(q, axis=-1, keepdims=True)
        # query heads by the key head that they share
        if cfg.repeat == "tile":
            q = q.reshape(*q.shape[:2], groups, cfg.kv_heads, dim).swapaxes(2, 3)
        else:
            q = q.reshape(*q.shape[:2], cfg.kv_heads, groups, dim)
        scores = jnp.einsum("bqkgd,bskd->bkgqs", q, k)
        scale = {"head_dim": dim, "width": cfg.width, "none": 1}[cfg.attention_scale]
        scores = scores / jnp.sqrt(scale)
        n = x.shape[1]
        visible = jnp.arange(n)[:, None] + cfg.mask_offset >= jnp.arange(n)[None, :]
        scores = jnp.where(visible, scores, cfg.mask_value)
        weights = nn.softmax(scores, axis=cfg.softmax_axis)
        out = jnp.einsum("bkgqs,bskd->bqkgd", weights, v)
        if cfg.repeat == "tile":
            out = out.swapaxes(2, 3)
        out = out.reshape(*out.shape[:2], cfg.heads, dim)
        return nn.DenseGeneral(cfg.width, axis=(-2, -1), use_bias=False, name="o")(out)


class FeedForward(nn.Module):
    cfg: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.cfg
        gate = nn.Dense(cfg.mlp, use_bias=False, name="gate")(x)
        up = nn.Dense(cfg.mlp, use_bias=False, name="up")(x)
        if "clip_gate" in cfg.extra:
            gate = jnp.clip(gate, -1.3, 0.9)
        x = ACTIVATIONS[cfg.activation](gate) * up
        return nn.Dense(cfg.width, use_bias=False, name="down")(x)


class Decoder(nn.Module):
    cfg: DecoderConfig

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        cfg = self.cfg
        embed = nn.Embed(cfg.vocab, cfg.width, name="embed")
        x = embed(ids)
        if cfg.scaled_embedding:
            x = x * jnp.sqrt(cfg.width)
        for i in range(cfg.depth):
            h = RMSNorm(cfg, name=f"norm_a_{i}")(x)
            h = GroupedAttention(cfg, name=f"attention_{i}")(h) + x
            y = RMSNorm(cfg, name=f"norm_m_{i}")(h)
            y = FeedForward(cfg, name=f"mlp_{i}")(y)
            if "branch_scale" in cfg.extra:
                y = 1.03 * y
            x = y + (x if "residual_source" in cfg.extra else h)
        x = RMSNorm(cfg, name="norm")(x)
        if cfg.tied:
            logits = embed.attend(x)
        else:
            logits = nn.Dense(cfg.vocab, use_bias=False, name="head")(x)
        if "logit_cap" in cfg.extra:
            logits = 5 * jnp.tanh(logits / 5)
        return next_token_loss(logits, ids, cfg.loss) if cfg.loss else logits


def load(cfg: DecoderConfig, state: dict[str, np.ndarray]) -> tuple[nn.Module, dict]:
    """The module and its variables, with the weights of a PyTorch `state_dict`."""
    w, d = cfg.width, cfg.head_dim
    params: dict = {"embed": {"embedding": state["embed.weight"]}}
    for i in range(cfg.depth):
        name = f"layers.{i}"
        attention = {}
        for short, heads in (("q", cfg.heads), ("k", cfg.kv_heads), ("v", cfg.kv_heads)):
            full = f"{name}.attention.{short}_proj"
            attention[short] = {"kernel": state[f"{full}.weight"].T.reshape(w, heads, d)}
            if cfg.qkv_bias:
                attention[short]["bias"] = state[f"{full}.bias"].reshape(heads, d)
        out = state[f"{name}.attention.o_proj.weight"].T.reshape(cfg.heads, d, w)
        attention["o"] = {"kernel": out}
        params[f"attention_{i}"] = attention
        gate, up = np.split(state[f"{name}.mlp.gate_up.weight"], 2)
        if not cfg.gate_first:
            gate, up = up, gate
        params[f"mlp_{i}"] = {
            "gate": {"kernel": gate.T},
            "up": {"kernel": up.T},
            "down": {"kernel": state[f"{name}.mlp.down.weight"].T},
        }
        params[f"norm_a_{i}"] = {"scale": state[f"{name}.input_norm.weight"]}
        params[f"norm_m_{i}"] = {"scale": state[f"{name}.post_norm.weight"]}
    params["norm"] = {"scale": state["norm.weight"]}
    if not cfg.tied:
        # A reference whose head is tied has no weight of its own for an untied port's.
        head = np.random.default_rng(7).normal(size=(w, cfg.vocab)) / 6
        params["head"] = {"kernel": head.astype(state["embed.weight"].dtype)}
    return Decoder(cfg), {"params": jax.tree.map(jnp.asarray, params)}
