"""Layers and operations by the precision policy of `shared_vit.spec.precision.Policy`.

They stand where Flax's and JAX's own would round otherwise. Twin of `torch_vit/ops.py`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from jax_vit import fused
from shared_vit.spec.precision import Policy


def parameter(shape: tuple[int, ...], policy: Policy, trained: bool = True) -> nnx.Variable:
    """An array of zeros in the parameters' dtype, which the optimizer moves if `trained`."""
    return (nnx.Param if trained else nnx.Variable)(jnp.zeros(shape, policy.param))


def cast(x: Array, dtype: str) -> Array:
    """x in another dtype, given by its name in a Policy."""
    return x.astype(dtype)


class Linear(nnx.Module):
    """x [..., in] -> [..., out] by `product`; kernel [in, out] and bias [out], zero until set."""

    def __init__(self, in_features: int, out_features: int, policy: Policy):
        self.kernel = parameter((in_features, out_features), policy)
        self.bias = parameter((out_features,), policy)
        self.policy = policy

    def __call__(self, x: Array) -> Array:
        return product(x, self.kernel, self.bias, self.policy)


class Conv(nnx.Conv):
    """The weights of a convolution of stride `size`: kernel [size, size, in, out] and bias [out],
    zero until set."""

    def __init__(self, in_channels: int, out_channels: int, size: int, policy: Policy):
        super().__init__(
            in_channels,
            out_channels,
            (size, size),
            size,
            param_dtype=jnp.dtype(policy.param),
            kernel_init=nnx.initializers.zeros,
            rngs=nnx.Rngs(0),
        )


class LayerNorm(nnx.LayerNorm):
    """LayerNorm (Ba et al. 2016) in the parameters' dtype; the scale is one and the bias zero until
    set.

    The variance takes two passes: Flax's default, E[x^2] - E[x]^2, cancels in float32.
    """

    def __init__(self, width: int, eps: float, policy: Policy):
        super().__init__(
            width,
            epsilon=eps,
            dtype=jnp.dtype(policy.param),
            param_dtype=jnp.dtype(policy.param),
            use_fast_variance=False,
            rngs=nnx.Rngs(0),
        )


def product(x: Array, kernel: Array, bias: Array, policy: Policy) -> Array:
    """x [..., in] times kernel [in, out] plus bias [out].

    Inputs are rounded to the compute dtype, the sum and the bias are float32 or more, and the
    result is rounded once to the compute dtype.
    """
    kernel, bias = jnp.asarray(kernel), jnp.asarray(bias)
    return _product(cast(x, policy.compute), cast(kernel, policy.compute), bias, policy.tf32)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _product(x: Array, kernel: Array, bias: Array, tf32: bool) -> Array:
    return (_dot(x, kernel, (x.ndim - 1,), (0,), tf32) + bias).astype(x.dtype)


def _product_forward(x: Array, kernel: Array, bias: Array, tf32: bool):
    return _product(x, kernel, bias, tf32), (x, kernel, bias)


def _product_backward(tf32: bool, residuals: tuple, g: Array) -> tuple[Array, Array, Array]:
    # Written out because JAX would transpose the float32-summing product into products of float32
    # cotangents, several times slower than those of the compute dtype on a GPU.
    x, kernel, bias = residuals
    rows = tuple(range(x.ndim - 1))
    dx = _dot(g, kernel, (g.ndim - 1,), (1,), tf32).astype(x.dtype)
    dkernel = _dot(x, g, rows, rows, tf32).astype(kernel.dtype)
    return dx, dkernel, g.astype(bias.dtype).sum(rows)


_product.defvjp(_product_forward, _product_backward)


def _dot(a: Array, b: Array, a_axes: tuple[int, ...], b_axes: tuple[int, ...], tf32: bool) -> Array:
    return lax.dot_general(
        a,
        b,
        ((a_axes, b_axes), ((), ())),
        precision=_precision(tf32),
        preferred_element_type=_sum_dtype(a.dtype),
    )


def _precision(tf32: bool) -> lax.Precision:
    """JAX's default rounds float32 products to TF32 on GPUs; full float32 has to be asked for.

    It has no effect on bf16.
    """
    return lax.Precision.DEFAULT if tf32 else lax.Precision.HIGHEST


def _sum_dtype(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def gelu(x: Array, approximate: bool) -> Array:
    """GELU (Hendrycks and Gimpel 2016) in the dtype of x, computed in float32 or more.

    `approximate` takes the tanh form, else the erf form.
    """
    return jax.nn.gelu(x.astype(_sum_dtype(x.dtype)), approximate=approximate).astype(x.dtype)


def _gelu_forward(x: Array, approximate: bool) -> tuple[Array, Array]:
    return gelu(x, approximate), x


def _gelu_backward(approximate: bool, x: Array, g: Array) -> tuple[Array]:
    # Written out so that x alone is kept, in its own dtype: JAX would keep float32 intermediates,
    # four times the memory.
    wide = _sum_dtype(x.dtype)
    _, pull_back = jax.vjp(partial(jax.nn.gelu, approximate=approximate), x.astype(wide))
    (dx,) = pull_back(g.astype(wide))
    return (dx.astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def attention(qkv: Array, policy: Policy, num_tokens: int | None = None) -> Array:
    """softmax(q k^T / sqrt(d)) v [B, N, heads, d] of qkv [B, N, 3, heads, d], in its dtype.

    Scores are scaled before the softmax, which is float32 or more. `num_tokens` is the number of
    tokens without the padding of `jax_vit.fused`, N by default.
    """
    b, n, _, heads, d = qkv.shape
    if fused.applies((b, n, heads, d), policy):
        return fused.fused_attention(qkv, num_tokens or n)
    # XLA on CPUs lacks bf16 products of some other orders.
    q, k, v = (qkv[:, :, i].swapaxes(1, 2) for i in range(3))
    scores = _einsum("bhqd,bhkd->bhqk", q, k, policy.tf32) * (d**-0.5)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return _einsum("bhqk,bhkd->bhqd", weights, v, policy.tf32).astype(q.dtype).swapaxes(1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _einsum(spec: str, a: Array, b: Array, tf32: bool) -> Array:
    """Product of a and b, summed and given in float32 or more.

    Its gradients round the cotangent, as fused attention does.
    """
    return jnp.einsum(
        spec, a, b, precision=_precision(tf32), preferred_element_type=_sum_dtype(a.dtype)
    )


def _einsum_forward(spec: str, a: Array, b: Array, tf32: bool):
    return _einsum(spec, a, b, tf32), (a, b)


def _einsum_backward(spec: str, tf32: bool, residuals: tuple, g: Array) -> tuple[Array, Array]:
    a, b = residuals
    inputs, output = spec.split("->")
    of_a, of_b = inputs.split(",")
    g = g.astype(a.dtype)
    da = _einsum(f"{output},{of_b}->{of_a}", g, b, tf32).astype(a.dtype)
    db = _einsum(f"{output},{of_a}->{of_b}", g, a, tf32).astype(b.dtype)
    return da, db


_einsum.defvjp(_einsum_forward, _einsum_backward)
