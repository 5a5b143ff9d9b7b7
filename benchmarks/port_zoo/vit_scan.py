"""The ViT as plain functions: layers stacked and scanned, q, k, v apart, own names throughout."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .activations import ACTIVATIONS
from .vit_config import ViTConfig

Params = dict[str, Array]


def normalize(x: Array, gain: Array, shift: Array, eps: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + eps) * gain + shift


def layer(cfg: ViTConfig, x: Array, p: Params) -> Array:
    y = normalize(x, p["gain_a"], p["shift_a"], cfg.norm_eps)
    q, k, v = (jnp.einsum("bnw,whd->bhnd", y, p[f"w{s}"]) + p[f"b{s}"] for s in "qkv")
    scale = {"head_dim": cfg.head_dim, "width": cfg.width, "none": 1}[cfg.attention_scale] ** -0.5
    a = jax.nn.softmax(scale * jnp.einsum("bhnd,bhmd->bhnm", q, k), axis=cfg.softmax_axis)
    x = x + jnp.einsum("bhnm,bhmd,hdw->bnw", a, v, p["wo"]) + p["bo"]
    y = normalize(x, p["gain_m"], p["shift_m"], cfg.norm_eps)
    y = ACTIVATIONS[cfg.activation](y @ p["w_in"] + p["b_in"])
    return x + y @ p["w_out"] + p["b_out"]


def forward(cfg: ViTConfig, params: dict, images: Array) -> Array:
    """Images (batch, height, width, channels) to logits (batch, classes)."""
    (rows, columns), s = cfg.grid, cfg.patch
    x = images.reshape(-1, rows, s, columns, s, cfg.channels).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(-1, rows * columns, s * s * cfg.channels) @ params["w_patch"] + params["b_patch"]
    token = jnp.broadcast_to(params["token"], (x.shape[0], 1, cfg.width))
    x = jnp.concatenate([token, x], axis=1) + params["grid"]
    x, _ = jax.lax.scan(lambda x, p: (layer(cfg, x, p), None), x, params["layers"])
    x = normalize(x[:, 0], params["gain"], params["shift"], cfg.norm_eps)
    return x @ params["w_class"] + params["b_class"]


def convert(cfg: ViTConfig, state: dict[str, np.ndarray]) -> dict:
    """Parameters from a PyTorch `state_dict`."""
    w, h, d = cfg.width, cfg.heads, cfg.head_dim

    def stack(name: str) -> np.ndarray:
        return np.stack([state[f"blocks.{i}.{name}"] for i in range(cfg.depth)])

    layers = {
        "gain_a": stack("norm1.weight"),
        "shift_a": stack("norm1.bias"),
        "gain_m": stack("norm2.weight"),
        "shift_m": stack("norm2.bias"),
        "wo": stack("attn.proj.weight").transpose(0, 2, 1).reshape(-1, h, d, w),
        "bo": stack("attn.proj.bias"),
        "w_in": stack("mlp.fc1.weight").transpose(0, 2, 1),
        "b_in": stack("mlp.fc1.bias"),
        "w_out": stack("mlp.fc2.weight").transpose(0, 2, 1),
        "b_out": stack("mlp.fc2.bias"),
    }
    weights = stack("attn.qkv.weight").reshape(-1, 3, h, d, w)
    biases = stack("attn.qkv.bias").reshape(-1, 3, h, 1, d)
    for i, s in enumerate("qkv"):
        layers[f"w{s}"] = weights[:, i].transpose(0, 3, 1, 2)
        layers[f"b{s}"] = biases[:, i]
    params = {
        "w_patch": state["patch_embed.weight"].transpose(2, 3, 1, 0).reshape(-1, w),
        "b_patch": state["patch_embed.bias"],
        "token": state["cls_token"],
        "grid": state["pos_embed"],
        "layers": layers,
        "gain": state["norm.weight"],
        "shift": state["norm.bias"],
        "w_class": state["head.weight"].T,
        "b_class": state["head.bias"],
    }
    return jax.tree.map(jnp.asarray, params)


def load(cfg: ViTConfig, state: dict[str, np.ndarray]) -> tuple:
    """`(fn, params)`, fn(params, images)."""
    return lambda params, images: forward(cfg, params, images), convert(cfg, state)
