"""Layers and operations by the precision policy of `shared_vit/spec/precision.py`, where Flax's and JAX's own would round otherwise."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax


def Conv(in_channels: int, out_channels: int, size: int, param_dtype) -> nnx.Conv:  # noqa: N802 - torch has nn.Conv2d
    """A convolution of stride `size`: kernel [size, size, in, out] and bias [out], zero until weights are loaded."""
    zeros = nnx.initializers.zeros
    return nnx.Conv(
        in_channels, out_channels, (size, size), size, param_dtype=param_dtype, kernel_init=zeros, rngs=nnx.Rngs(0)
    )


def LayerNorm(width: int, eps: float, param_dtype) -> nnx.LayerNorm:  # noqa: N802 - torch has nn.LayerNorm
    """LayerNorm (Ba et al. 2016) whose variance takes two passes: Flax's default, E[x^2] - E[x]^2, cancels in float32."""
    return nnx.LayerNorm(
        width, epsilon=eps, dtype=param_dtype, param_dtype=param_dtype, use_fast_variance=False, rngs=nnx.Rngs(0)
    )


def product(x, kernel, bias, dtype, tf32: bool):
    """x [..., in] times kernel [in, out] plus bias [out]: inputs in `dtype`, sum and bias in float32 or more, one rounding."""
    return _product(x.astype(dtype), kernel.astype(dtype), bias, tf32)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _product(x, kernel, bias, tf32):
    return (_dot(x, kernel, (x.ndim - 1,), (0,), tf32) + bias).astype(x.dtype)


def _product_forward(x, kernel, bias, tf32):
    return _product(x, kernel, bias, tf32), (x, kernel, bias)


def _product_backward(tf32, residuals, g):
    # Written out because JAX would transpose the float32-summing product into products of float32 cotangents,
    # several times slower than those of the compute dtype on a GPU.
    x, kernel, bias = residuals
    rows = tuple(range(x.ndim - 1))
    dx = _dot(g, kernel, (g.ndim - 1,), (1,), tf32).astype(x.dtype)
    dkernel = _dot(x, g, rows, rows, tf32).astype(kernel.dtype)
    return dx, dkernel, g.astype(bias.dtype).sum(rows)


_product.defvjp(_product_forward, _product_backward)


def _dot(a, b, a_axes, b_axes, tf32):
    return lax.dot_general(
        a, b, ((a_axes, b_axes), ((), ())), precision=_precision(tf32), preferred_element_type=_sum_dtype(a.dtype)
    )


def _precision(tf32: bool) -> lax.Precision:
    """JAX's default rounds float32 products to TF32 on GPUs; full float32 has to be asked for. No effect on bf16."""
    return lax.Precision.DEFAULT if tf32 else lax.Precision.HIGHEST


def _sum_dtype(dtype):
    return jnp.promote_types(dtype, jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def gelu(x, approximate: bool):
    """GELU (Hendrycks and Gimpel 2016), in the dtype of x, computed in float32 or more and rounded once."""
    return jax.nn.gelu(x.astype(_sum_dtype(x.dtype)), approximate=approximate).astype(x.dtype)


def _gelu_forward(x, approximate):
    return gelu(x, approximate), x


def _gelu_backward(approximate, x, g):
    # Written out so that x alone is kept, in its own dtype: JAX would keep float32 intermediates, four times the memory.
    wide = _sum_dtype(x.dtype)
    _, pull_back = jax.vjp(partial(jax.nn.gelu, approximate=approximate), x.astype(wide))
    (dx,) = pull_back(g.astype(wide))
    return (dx.astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def attention(q, k, v, tf32: bool):
    """softmax(q k^T / sqrt(d)) v for q, k, v [B, N, heads, d], in their dtype; the softmax in float32 or more."""
    if _cudnn_applies(q):
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # XLA on CPUs lacks bf16 products of some other orders
    scores = _einsum("bhqd,bhkd->bhqk", q, k, tf32) * (q.shape[-1] ** -0.5)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return _einsum("bhqk,bhkd->bhqd", weights, v, tf32).astype(q.dtype).swapaxes(1, 2)


def _cudnn_applies(q) -> bool:
    """Whether cuDNN's fused attention takes q [B, N, heads, d] (the checks of jax/_src/cudnn/fused_attention_stablehlo.py)."""
    device = jax.devices()[0]
    if q.dtype != jnp.bfloat16 or device.platform != "gpu" or "rocm" in device.client.platform_version:
        return False
    capability = float(device.compute_capability)
    return capability >= 8 and q.shape[-1] % 8 == 0 and q.shape[-1] <= (256 if capability >= 9 else 128)


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _einsum(spec: str, a, b, tf32: bool):
    """Product of a and b, summed and given in float32 or more; its gradients round the cotangent, as fused attention does."""
    return jnp.einsum(spec, a, b, precision=_precision(tf32), preferred_element_type=_sum_dtype(a.dtype))


def _einsum_forward(spec, a, b, tf32):
    return _einsum(spec, a, b, tf32), (a, b)


def _einsum_backward(spec, tf32, residuals, g):
    a, b = residuals
    inputs, output = spec.split("->")
    of_a, of_b = inputs.split(",")
    g = g.astype(a.dtype)
    da = _einsum(f"{output},{of_b}->{of_a}", g, b, tf32).astype(a.dtype)
    db = _einsum(f"{output},{of_a}->{of_b}", g, a, tf32).astype(b.dtype)
    return da, db


_einsum.defvjp(_einsum_forward, _einsum_backward)
