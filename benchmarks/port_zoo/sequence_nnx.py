"""The text-line net in Flax NNX: NHWC, recurrent cells by hand over `lax.scan`."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .activations import ACTIVATIONS
from .resize import bicubic, bilinear
from .sequence_config import SequenceConfig


class LSTM(nnx.Module):
    def __init__(self, cfg: SequenceConfig, rngs: nnx.Rngs) -> None:
        self.cfg = cfg
        self.input = nnx.Linear(cfg.up, 4 * cfg.lstm, rngs=rngs)
        self.recurrent = nnx.Linear(cfg.lstm, 4 * cfg.lstm, use_bias=cfg.second_bias, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.cfg

        def step(carry, xt):
            h, c = carry
            parts = jnp.split(xt + self.recurrent(h), 4, axis=-1)
            gates = dict(zip(cfg.lstm_order, parts))
            gates["f"] = gates["f"] + cfg.forget_bias if cfg.forget_bias else gates["f"]
            c = jax.nn.sigmoid(gates["f"]) * c + jax.nn.sigmoid(gates["i"]) * jnp.tanh(gates["g"])
            if "clip_state" in cfg.extra:
                c = jnp.clip(c, -0.21, 0.33)
            h = jax.nn.sigmoid(gates["o"]) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros((x.shape[0], cfg.lstm), x.dtype)
        _, y = jax.lax.scan(step, (zeros, zeros), self.input(x).swapaxes(0, 1))
        return y.swapaxes(0, 1)


class GRU(nnx.Module):
    def __init__(self, cfg: SequenceConfig, rngs: nnx.Rngs) -> None:
        self.cfg = cfg
        self.input = nnx.Linear(cfg.lstm, 3 * cfg.gru, rngs=rngs)
        self.recurrent = nnx.Linear(cfg.gru, 3 * cfg.gru, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.cfg

        def step(h, xt):
            a = dict(zip(cfg.gru_order, jnp.split(xt, 3, axis=-1)))
            b = dict(zip(cfg.gru_order, jnp.split(self.recurrent(h), 3, axis=-1)))
            r, z = jax.nn.sigmoid(a["r"] + b["r"]), jax.nn.sigmoid(a["z"] + b["z"])
            if cfg.reset == "before":
                n = jnp.split(self.recurrent(r * h), 3, axis=-1)[cfg.gru_order.index("n")]
            else:
                n = r * b["n"]
            n = jnp.tanh(a["n"] + n)
            h = (1 - z) * n + z * h
            return h, h

        zeros = jnp.zeros((x.shape[0], cfg.gru), x.dtype)
        _, y = jax.lax.scan(step, zeros, self.input(x).swapaxes(0, 1))
        return y.swapaxes(0, 1)


def resize(x: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """x (batch, height, width, channels), one matrix an axis."""
    rows, columns = jnp.asarray(rows, x.dtype), jnp.asarray(columns, x.dtype)
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x)


class SequenceNet(nnx.Module):
    """Images (batch, height, width, channels) to logits (batch, columns, classes)."""

    def __init__(self, cfg: SequenceConfig, rngs: nnx.Rngs) -> None:
        self.cfg = cfg
        self.conv = nnx.Conv(cfg.channels, cfg.features, (3, 3), padding=1, rngs=rngs)
        self.norm = nnx.GroupNorm(
            cfg.features, num_groups=cfg.groups, epsilon=cfg.norm_eps, rngs=rngs
        )
        self.up = nnx.ConvTranspose(
            cfg.features,
            cfg.up,
            (3, 3),
            strides=(2, 2),
            padding="SAME" if cfg.same_padding else ((1, 2), (1, 2)),
            rngs=rngs,
        )
        self.skip = nnx.Linear(cfg.channels, cfg.up, rngs=rngs)
        self.lstm = LSTM(cfg, rngs)
        self.gru = GRU(cfg, rngs)
        self.hidden = nnx.Linear(cfg.gru, cfg.gru, rngs=rngs)
        self.head = nnx.Linear(cfg.gru, cfg.classes, rngs=rngs)

    def linear_resize(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[0], *self.cfg.middle, x.shape[-1])
        if self.cfg.linear == "align_corners":
            pairs = zip(x.shape[1:3], self.cfg.middle)
            return resize(x, *(bilinear(a, b, align_corners=True) for a, b in pairs))
        return jax.image.resize(x, shape, "bilinear", antialias=self.cfg.linear == "antialias")

    def cubic_resize(self, x: jax.Array) -> jax.Array:
        if self.cfg.cubic == "jax":
            return jax.image.resize(x, (x.shape[0], *self.cfg.middle, x.shape[-1]), "cubic")
        return resize(x, *(bicubic(a, b) for a, b in zip(x.shape[1:3], self.cfg.middle)))

    def __call__(self, images: jax.Array) -> jax.Array:
        cfg = self.cfg
        x = ACTIVATIONS[cfg.activation](self.norm(self.conv(images)))
        x = self.up(x)
        if "up_abs" in cfg.extra:
            x = jnp.abs(x)
        x = self.linear_resize(x)
        skip = self.skip(self.cubic_resize(images))
        x = x + (0.9 * skip if "skip_scale" in cfg.extra else skip)
        x = x.max(axis=1) if "column_max" in cfg.extra else x.mean(axis=1)
        x = self.gru(self.lstm(x))
        return self.head(jnp.tanh(self.hidden(x)))


def load(cfg: SequenceConfig, state: dict[str, np.ndarray]) -> SequenceNet:
    """The port with the weights of a PyTorch `state_dict`."""
    model = nnx.eval_shape(lambda: SequenceNet(cfg, nnx.Rngs(0)))

    def put(layer, kernel: np.ndarray, bias: np.ndarray | None) -> None:
        layer.kernel.set_value(jnp.asarray(kernel))
        if bias is not None:
            layer.bias.set_value(jnp.asarray(bias))

    put(model.conv, state["conv.weight"].transpose(2, 3, 1, 0), state["conv.bias"])
    model.norm.scale.set_value(jnp.asarray(state["norm.weight"]))
    model.norm.bias.set_value(jnp.asarray(state["norm.bias"]))
    kernel = state["up.weight"].transpose(2, 3, 0, 1)
    put(model.up, kernel[::-1, ::-1] if cfg.flip else kernel, state["up.bias"])
    put(model.skip, state["skip.weight"][:, :, 0, 0].T, state["skip.bias"])
    for name in ("lstm", "gru"):
        layer = getattr(model, name)
        put(layer.input, state[f"{name}.weight_ih_l0"].T, state[f"{name}.bias_ih_l0"])
        bias = state[f"{name}.bias_hh_l0"] if layer.recurrent.bias is not None else None
        put(layer.recurrent, state[f"{name}.weight_hh_l0"].T, bias)
    hidden = state["hidden.weight"]
    put(model.hidden, hidden if cfg.head_transposed else hidden.T, state["hidden.bias"])
    put(model.head, state["head.weight"].T, state["head.bias"])
    return model
