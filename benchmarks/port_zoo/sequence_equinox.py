"""The text-line net in Equinox: one image at a time, channels first, Equinox's recurrent cells."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .activations import ACTIVATIONS
from .resize import bicubic, bilinear
from .sequence_config import SequenceConfig


def matrices(x: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    """x (channels, height, width), one matrix an axis."""
    return jnp.asarray(rows, x.dtype) @ x @ jnp.asarray(columns.T, x.dtype)


class TextNet(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    up: Array
    up_bias: Array
    skip: eqx.nn.Conv2d
    lstm: eqx.nn.LSTMCell
    gru: eqx.nn.GRUCell
    hidden: eqx.nn.Linear
    head: eqx.nn.Linear
    cfg: SequenceConfig = eqx.field(static=True)

    def resize(self, x: Array, method: str) -> Array:
        cfg = self.cfg
        shape = (x.shape[0], *cfg.middle)
        sizes = list(zip(x.shape[1:], cfg.middle))
        if method == "bicubic":
            if cfg.cubic == "jax":
                return jax.image.resize(x, shape, "bicubic")
            return matrices(x, *(bicubic(a, b) for a, b in sizes))
        if cfg.linear == "antialias":
            return jax.image.resize(x, shape, "bilinear")
        align = cfg.linear == "align_corners"
        return matrices(x, *(bilinear(a, b, align) for a, b in sizes))

    def upsample(self, x: Array) -> Array:
        """A transposed convolution as a convolution of the spread input."""
        pads = ((2, 1), (2, 1)) if self.cfg.same_padding else ((1, 2), (1, 2))
        numbers = ("NCHW", "IOHW", "NCHW")
        kernel = jnp.flip(self.up, (2, 3)) if self.cfg.flip else self.up
        y = jax.lax.conv_general_dilated(
            x[None], kernel, (1, 1), pads, lhs_dilation=(2, 2), dimension_numbers=numbers
        )
        return y[0] + self.up_bias[:, None, None]

    def one(self, image: Array) -> Array:
        cfg = self.cfg
        x = self.upsample(ACTIVATIONS[cfg.activation](self.norm(self.conv(image))))
        if "up_abs" in cfg.extra:
            x = jnp.abs(x)
        skip = self.skip(self.resize(image, "bicubic"))
        if "skip_scale" in cfg.extra:
            skip = 0.9 * skip
        x = self.resize(x, "bilinear") + skip
        x = x.max(axis=1) if "column_max" in cfg.extra else x.mean(axis=1)

        def long_term(carry, xt):
            h, c = self.lstm(xt, carry)
            if "clip_state" in cfg.extra:
                c = jnp.clip(c, -0.21, 0.33)
            return (h, c), h

        zeros = jnp.zeros(cfg.lstm, x.dtype)
        _, x = jax.lax.scan(long_term, (zeros, zeros), x.T)

        def gated(h, xt):
            h = self.gru(xt, h)
            return h, h

        _, x = jax.lax.scan(gated, jnp.zeros(cfg.gru, x.dtype), x)
        return jax.vmap(lambda y: self.head(jnp.tanh(self.hidden(y))))(x)

    def __call__(self, images: Array) -> Array:
        return jax.vmap(self.one)(images)


def load(cfg: SequenceConfig, state: dict[str, np.ndarray]) -> TextNet:
    """The port with the weights of a PyTorch `state_dict`."""
    key = jax.random.key(0)
    arrays = {name: jnp.asarray(value) for name, value in state.items()}

    def filled(layer, **values):
        names = list(values)
        return eqx.tree_at(lambda m: [getattr(m, n) for n in names], layer, list(values.values()))

    def conv(name: str, size: int, padding: int) -> eqx.nn.Conv2d:
        weight, bias = arrays[f"{name}.weight"], arrays[f"{name}.bias"].reshape(-1, 1, 1)
        out, inputs = weight.shape[:2]
        layer = eqx.filter_eval_shape(eqx.nn.Conv2d, inputs, out, size, padding=padding, key=key)
        return filled(layer, weight=weight, bias=bias)

    def linear(name: str, transposed: bool = False) -> eqx.nn.Linear:
        weight = arrays[f"{name}.weight"]
        layer = eqx.filter_eval_shape(eqx.nn.Linear, weight.shape[1], weight.shape[0], key=key)
        weight = weight.T if transposed else weight
        return filled(layer, weight=weight, bias=arrays[f"{name}.bias"])

    def blocks(name: str, kind: str, order: str, reference: str) -> Array:
        parts = dict(zip(order, jnp.split(arrays[f"{name}.{kind}_l0"], len(order))))
        return jnp.concatenate([parts[gate] for gate in reference])

    def gates(name: str, order: str, reference: str) -> dict[str, Array]:
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return {kind: blocks(name, kind, order, reference) for kind in kinds}

    g = gates("lstm", cfg.lstm_order, "ifgo")
    bias = g["bias_ih"] + g["bias_hh"] if cfg.second_bias else g["bias_ih"]
    lstm = eqx.filter_eval_shape(eqx.nn.LSTMCell, cfg.up, cfg.lstm, key=key)
    lstm = filled(lstm, weight_ih=g["weight_ih"], weight_hh=g["weight_hh"], bias=bias)
    g = gates("gru", cfg.gru_order, "rzn")
    n = cfg.gru
    bias = g["bias_ih"] + g["bias_hh"].at[2 * n :].set(0)
    gru = eqx.filter_eval_shape(eqx.nn.GRUCell, cfg.lstm, n, key=key)
    gru = filled(
        gru,
        weight_ih=g["weight_ih"],
        weight_hh=g["weight_hh"],
        bias=bias,
        bias_n=g["bias_hh"][2 * n :],
    )
    norm = eqx.filter_eval_shape(eqx.nn.GroupNorm, cfg.groups, cfg.features, eps=cfg.norm_eps)
    norm = filled(norm, weight=arrays["norm.weight"], bias=arrays["norm.bias"])
    return TextNet(
        conv("conv", 3, 1),
        norm,
        arrays["up.weight"],
        arrays["up.bias"],
        conv("skip", 1, 0),
        lstm,
        gru,
        linear("hidden", cfg.head_transposed),
        linear("head"),
        cfg,
    )
