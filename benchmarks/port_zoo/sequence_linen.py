"""The text-line net in Flax Linen: `nn.RNN` over Flax's own LSTM and GRU cells."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from .activations import ACTIVATIONS
from .resize import bicubic, bilinear
from .sequence_config import SequenceConfig


class ClippedLSTMCell(nn.OptimizedLSTMCell):
    """A cell state kept within bounds."""

    def __call__(self, carry, inputs):
        (c, h), y = super().__call__(carry, inputs)
        return (jnp.clip(c, -0.21, 0.33), h), y


class TextNet(nn.Module):
    cfg: SequenceConfig
    param_dtype: jnp.dtype = jnp.float32

    def resize_linear(self, x: jax.Array) -> jax.Array:
        cfg = self.cfg
        if cfg.linear == "align_corners":
            rows, columns = (bilinear(a, b, True) for a, b in zip(x.shape[1:3], cfg.middle))
            x = jnp.tensordot(x, jnp.asarray(rows, x.dtype), (1, 1))
            x = jnp.tensordot(x, jnp.asarray(columns, x.dtype), (1, 1))
            return x.transpose(0, 2, 3, 1)
        shape = (x.shape[0], *cfg.middle, x.shape[-1])
        return jax.image.resize(x, shape, "linear", antialias=cfg.linear == "antialias")

    def resize_cubic(self, x: jax.Array) -> jax.Array:
        cfg = self.cfg
        if cfg.cubic == "jax":
            return jax.image.resize(x, (x.shape[0], *cfg.middle, x.shape[-1]), "bicubic")
        rows, columns = (bicubic(a, b) for a, b in zip(x.shape[1:3], cfg.middle))
        x = jnp.einsum("bhwc,ih->biwc", x, jnp.asarray(rows, x.dtype))
        return jnp.einsum("biwc,jw->bijc", x, jnp.asarray(columns, x.dtype))

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        cfg = self.cfg
        x = nn.Conv(cfg.features, (3, 3), padding="SAME", name="conv")(images)
        x = nn.GroupNorm(num_groups=cfg.groups, epsilon=cfg.norm_eps, name="norm")(x)
        x = ACTIVATIONS[cfg.activation](x)
        pads = "SAME" if cfg.same_padding else [(1, 2), (1, 2)]
        x = nn.ConvTranspose(cfg.up, (3, 3), strides=(2, 2), padding=pads, name="up")(x)
        if "up_abs" in cfg.extra:
            x = jnp.abs(x)
        x = self.resize_linear(x)
        skip = nn.Conv(cfg.up, (1, 1), name="skip")(self.resize_cubic(images))
        x = x + skip * (0.9 if "skip_scale" in cfg.extra else 1)
        x = jnp.max(x, axis=1) if "column_max" in cfg.extra else jnp.mean(x, axis=1)
        cell = ClippedLSTMCell if "clip_state" in cfg.extra else nn.OptimizedLSTMCell
        x = nn.RNN(cell(cfg.lstm, param_dtype=self.param_dtype, parent=None), name="lstm")(x)
        x = nn.RNN(nn.GRUCell(cfg.gru, param_dtype=self.param_dtype, parent=None), name="gru")(x)
        x = jnp.tanh(nn.Dense(cfg.gru, name="hidden")(x))
        return nn.Dense(cfg.classes, name="head")(x)


def load(cfg: SequenceConfig, state: dict[str, np.ndarray]) -> tuple[nn.Module, dict]:
    """The module and its variables, with the weights of a PyTorch `state_dict`."""
    kernel = state["up.weight"].transpose(2, 3, 0, 1)
    lstm: dict = {}
    weights = [np.split(state[f"lstm.{kind}_l0"], 4) for kind in ("weight_ih", "weight_hh")]
    biases = [np.split(state[f"lstm.{kind}_l0"], 4) for kind in ("bias_ih", "bias_hh")]
    for i, gate in enumerate(cfg.lstm_order):
        bias = biases[0][i] + biases[1][i] if cfg.second_bias else biases[0][i]
        lstm[f"i{gate}"] = {"kernel": weights[0][i].T}
        lstm[f"h{gate}"] = {"kernel": weights[1][i].T, "bias": bias}
    gru: dict = {}
    weights = [np.split(state[f"gru.{kind}_l0"], 3) for kind in ("weight_ih", "weight_hh")]
    biases = [np.split(state[f"gru.{kind}_l0"], 3) for kind in ("bias_ih", "bias_hh")]
    for i, gate in enumerate(cfg.gru_order):
        gru[f"i{gate}"] = {"kernel": weights[0][i].T, "bias": biases[0][i] + biases[1][i]}
        gru[f"h{gate}"] = {"kernel": weights[1][i].T}
    gru["in"]["bias"], gru["hn"]["bias"] = biases[0][2], biases[1][2]
    hidden = state["hidden.weight"]
    params = {
        "conv": {"kernel": state["conv.weight"].transpose(2, 3, 1, 0), "bias": state["conv.bias"]},
        "norm": {"scale": state["norm.weight"], "bias": state["norm.bias"]},
        "up": {"kernel": kernel[::-1, ::-1] if cfg.flip else kernel, "bias": state["up.bias"]},
        "skip": {"kernel": state["skip.weight"].transpose(2, 3, 1, 0), "bias": state["skip.bias"]},
        "lstm": {"cell": lstm},
        "gru": {"cell": gru},
        "hidden": {
            "kernel": hidden if cfg.head_transposed else hidden.T,
            "bias": state["hidden.bias"],
        },
        "head": {"kernel": state["head.weight"].T, "bias": state["head.bias"]},
    }
    return TextNet(cfg, hidden.dtype), {"params": jax.tree.map(jnp.asarray, params)}
