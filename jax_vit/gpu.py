"""What the model reads about the device, and does on NVIDIA GPUs alone."""

import jax
from jax import Array
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh


def nvidia_gpu() -> jax.Device | None:
    """The device that a program is traced for, if it is an NVIDIA GPU.

    It is JAX's default device where one is set (`jax.default_device`), else the first.
    """
    device = jax.config.jax_default_device
    if not isinstance(device, jax.Device):  # the name of a platform, or None
        device = jax.devices(device)[0]
    if device.platform != "gpu" or "rocm" in device.client.platform_version:
        return None
    return device


def row_major(x: Array) -> Array:
    """x [B, N, width], and its cotangent, with the last axis contiguous on an NVIDIA GPU.

    XLA lays out the operand of a large sum for that sum. The position embedding's gradient, a sum
    over the batch, would put the batch innermost in the whole residual stream, where a LayerNorm
    takes five passes.
    """
    return x if nvidia_gpu() is None else _row_major(x)


@custom_partitioning
def _pin(x: Array) -> Array:
    """x [B, N, width], the last axis contiguous."""
    return with_layout_constraint(x, Layout((0, 1, 2)))


def _partition(mesh: Mesh, args: tuple, result: jax.ShapeDtypeStruct) -> tuple:
    # XLA cannot split the constraint by itself: it would gather x on every device.
    sharding = args[0].sharding
    return mesh, _pin.fun, sharding, (sharding,)


_pin.def_partition(
    partition=_partition,
    infer_sharding_from_operands=lambda mesh, args, result: args[0].sharding,
    sharding_rule="b n d -> b n d",
)


@jax.custom_vjp
def _row_major(x: Array) -> Array:
    return _pin(x)


_row_major.defvjp(lambda x: (_pin(x), None), lambda _, g: (_pin(g),))
