"""The activations a port may have taken for one another."""

import jax

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x),
    "gelu_quick": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "silu": jax.nn.silu,
    "leaky": lambda x: jax.nn.leaky_relu(x, 0.1),
    "leaky_default": jax.nn.leaky_relu,
}
