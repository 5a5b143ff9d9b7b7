"""What the model asks about the device, and does on NVIDIA GPUs alone."""

import jax
from jax import Array
from jax.experimental.layout import Layout, with_layout_constraint


def nvidia_gpu() -> jax.Device | None:
    """The first device, if it is an NVIDIA GPU; asked while a program is traced."""
    device = jax.devices()[0]
    if device.platform != "gpu" or "rocm" in device.client.platform_version:
        return None
    return device


def row_major(x: Array) -> Array:
    """x, and its cotangent, with the last axis contiguous on an NVIDIA GPU.

    XLA lays out the operand of a large sum for that sum. The position embedding's gradient, a sum
    over the batch, would put the batch innermost in the whole residual stream, where a LayerNorm
    takes five passes.
    """
    return x if nvidia_gpu() is None else _row_major(x)


@jax.custom_vjp
def _row_major(x: Array) -> Array:
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


_row_major.defvjp(lambda x: (_row_major(x), None), lambda _, g: (_row_major(g),))
