"""A block of a port in a nested package: what the outer module calls."""

import jax
import jax.numpy as jnp


def pooled(x, wrong):
    if wrong:
        return x.max(1)  # nested pool
    return x.mean(1)


def activation(x, wrong):
    if wrong:
        x = jax.nn.gelu(x)  # nested gelu
        return x
    return jax.nn.gelu(x, approximate=False)


def layer_norm(x, weight, bias, wrong):
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    deviation = jnp.sqrt(variance + 1e-5)
    if wrong:
        deviation = jnp.sqrt(variance + 1e-2)  # nested eps
    return centred / deviation * weight + bias
