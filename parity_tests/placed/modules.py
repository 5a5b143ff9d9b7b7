"""The port in NNX, Linen, Equinox, Keras and as a function; `wrong` names its mistake."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
from flax import nnx

from placed.inner import block
from placed.reference import weights
from twinvit import port


class Nnx(nnx.Module):
    def __init__(self, wrong):
        w, rngs = weights(), nnx.Rngs(0)
        self.wrong = wrong
        self.first, self.last = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 5, rngs=rngs)
        self.norm = nnx.LayerNorm(8, epsilon=1e-2 if wrong == "eps" else 1e-5, rngs=rngs)
        for layer, name in ((self.first, "first"), (self.last, "last")):
            layer.kernel[...] = jnp.asarray(w[f"{name}.weight"].T)
            layer.bias[...] = jnp.asarray(w[f"{name}.bias"])
        self.norm.scale[...] = jnp.asarray(w["norm.weight"])
        self.norm.bias[...] = jnp.asarray(w["norm.bias"])

    def __call__(self, x):
        x = self.first(x)
        x = self.norm(x)  # nnx eps
        if self.wrong == "gelu":
            x = nnx.gelu(x)  # nnx gelu
        else:
            x = nnx.gelu(x, approximate=False)
        if self.wrong == "pool":
            x = x.max(1)  # nnx pool
        else:
            x = x.mean(1)
        return self.last(x)


class Linen(nn.Module):
    wrong: str

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, name="first")(x)
        x = nn.LayerNorm(epsilon=1e-2 if self.wrong == "eps" else 1e-5, name="norm")(x)  # linen eps
        if self.wrong == "gelu":
            x = nn.gelu(x)  # linen gelu
        else:
            x = nn.gelu(x, approximate=False)
        if self.wrong == "pool":
            x = x.max(1)  # linen pool
        else:
            x = x.mean(1)
        return nn.Dense(5, name="last")(x)


def linen(wrong):
    w = weights()
    dense = {n: {"kernel": w[f"{n}.weight"].T, "bias": w[f"{n}.bias"]} for n in ("first", "last")}
    norm = {"scale": w["norm.weight"], "bias": w["norm.bias"]}
    return Linen(wrong), {"params": {**dense, "norm": norm}}


class Equinox(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    last: eqx.nn.Linear
    wrong: str = eqx.field(static=True)

    def __call__(self, x):
        x = jax.vmap(self.first)(x)
        x = jax.vmap(self.norm)(x)  # equinox eps
        if self.wrong == "gelu":
            x = jax.nn.gelu(x)  # equinox gelu
        else:
            x = jax.nn.gelu(x, approximate=False)
        if self.wrong == "pool":
            x = x.max(0)  # equinox pool
        else:
            x = x.mean(0)
        return self.last(x)


def equinox(wrong):
    key, w = jax.random.key(0), weights()
    norm = eqx.nn.LayerNorm(8, eps=1e-2 if wrong == "eps" else 1e-5)
    model = Equinox(eqx.nn.Linear(6, 8, key=key), norm, eqx.nn.Linear(8, 5, key=key), wrong)
    names = [
        f"{layer}.{kind}" for layer in ("first", "norm", "last") for kind in ("weight", "bias")
    ]
    return eqx.tree_at(
        lambda m: [getattr(getattr(m, n.split(".")[0]), n.split(".")[1]) for n in names],
        model,
        [jnp.asarray(w[n]) for n in names],
    )


class Middle(keras.layers.Layer):
    def __init__(self, wrong):
        super().__init__(name="middle")
        self.wrong = wrong
        self.norm = keras.layers.LayerNormalization(epsilon=1e-2 if wrong == "eps" else 1e-5)

    def call(self, x):
        x = self.norm(x)  # keras eps
        if self.wrong == "gelu":
            x = keras.activations.gelu(x, approximate=True)  # keras gelu
        else:
            x = keras.activations.gelu(x, approximate=False)
        if self.wrong == "pool":
            return keras.ops.max(x, 1)  # keras pool
        return keras.ops.mean(x, 1)


def keras_model(wrong):
    w = weights()
    first, last = keras.layers.Dense(8, name="first"), keras.layers.Dense(5, name="last")
    middle = Middle(wrong)
    model = keras.Sequential([keras.layers.Input((4, 6)), first, middle, last])
    for layer, name in ((first, "first"), (last, "last")):
        layer.set_weights([w[f"{name}.weight"].T, w[f"{name}.bias"]])
    middle.norm.set_weights([w["norm.weight"], w["norm.bias"]])
    return model


def nested(wrong):
    """A function whose pieces are in another package."""

    def fn(p, x):
        x = x @ p["first.weight"].T + p["first.bias"]
        x = block.layer_norm(x, p["norm.weight"], p["norm.bias"], wrong == "eps")
        x = block.activation(x, wrong == "gelu")
        x = block.pooled(x, wrong == "pool")
        return x @ p["last.weight"].T + p["last.bias"]

    return port.Function(fn, {n: jnp.asarray(x) for n, x in weights().items()})
