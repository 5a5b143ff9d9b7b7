"""Layers and operations by the precision policy of `shared_vit.spec.precision.Policy`.

They replace Flax's and JAX's layers where these would round otherwise. Twin of `torch_vit/ops.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from jax_vit import fused
from jax_vit.dropout import Dropout
from jax_vit.gpu import row_major
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.precision import Policy


def parameter(shape: tuple[int, ...], policy: Policy, trained: bool = True) -> nnx.Variable:
    """An array of zeros in the parameters' dtype, which the optimizer updates if `trained`."""
    return (nnx.Param if trained else nnx.Variable)(jnp.zeros(shape, policy.param))


def cast(x: Array, dtype: str) -> Array:
    """x in another dtype, given by its name in a Policy."""
    return x.astype(dtype)


def widened(weights: Array, dtype: Any) -> Array:
    """Weights in the parameters' dtype, where they are held in a narrower one."""
    return weights.astype(jnp.promote_types(weights.dtype, dtype))


def identity(x: Array) -> Array:
    """x itself, for a layer that a model does not have."""
    return x


class Linear(nnx.Module):
    """x [..., in] -> [..., out] by `product`; kernel [in, out] and bias [out], zero until set.

    Without `bias` there is none.
    """

    def __init__(self, in_features: int, out_features: int, policy: Policy, bias: bool = True):
        self.kernel = parameter((in_features, out_features), policy)
        self.bias = parameter((out_features,), policy) if bias else None
        self.policy = policy

    def __call__(self, x: Array) -> Array:
        return product(x, self.kernel, self.bias, self.policy)


class QkvWithoutKeyBias(Linear):
    """`Linear` to queries, keys and values whose keys have no bias: that third of `bias` does not
    count, and its gradient is exactly zero."""

    def __init__(self, width: int, policy: Policy):
        super().__init__(width, 3 * width, policy)
        self.width = width

    def __call__(self, x: Array) -> Array:
        kept = np.repeat([True, False, True], self.width)
        return product(x, self.kernel, jnp.where(kept, self.bias, 0), self.policy)


class Conv(nnx.Conv):
    """The weights of a convolution of stride `size`: kernel [size, size, in, out] and bias [out],
    zero until set. Without `bias` there is none."""

    def __init__(
        self, in_channels: int, out_channels: int, size: int, policy: Policy, bias: bool = True
    ):
        super().__init__(
            in_channels,
            out_channels,
            (size, size),
            size,
            use_bias=bias,
            param_dtype=jnp.dtype(policy.param),
            kernel_init=nnx.initializers.zeros,
            rngs=nnx.Rngs(0),
        )


def add_positions(x: Array, pos_embed: Array) -> Array:
    """x [B, N, width] plus pos_embed [1, N, width]."""
    return row_major(x + pos_embed)


def stream(x: Array) -> Array:
    """x [B, N, width] without positions, laid out row by row as `add_positions` gives it: XLA would
    choose another layout on GPUs, and transpose in each block."""
    return row_major(x)


def make_norm(cfg: ModelConfig, width: int, policy: Policy) -> LayerNorm | RMSNorm:
    """The model's kind of norm, over the last axis, of `width` units."""
    return (RMSNorm if cfg.norm == "rms" else LayerNorm)(width, cfg.norm_eps, policy)


class LayerNorm(nnx.LayerNorm):
    """LayerNorm (Ba et al. 2016) in the parameters' dtype; scale one and bias zero until set."""

    def __init__(self, width: int, eps: float, policy: Policy):
        dtype = jnp.dtype(policy.param)
        super().__init__(width, epsilon=eps, param_dtype=dtype, rngs=nnx.Rngs(0))

    def __call__(self, x: Array) -> Array:
        scale, bias = (widened(p[...], self.param_dtype) for p in (self.scale, self.bias))
        return _layer_norm(x.astype(scale.dtype), scale, bias, self.epsilon)


class RMSNorm(nnx.RMSNorm):
    """RMSNorm (Zhang and Sennrich 2019) in the parameters' dtype; scale one until set."""

    def __init__(self, width: int, eps: float, policy: Policy):
        dtype = jnp.dtype(policy.param)
        super().__init__(width, epsilon=eps, param_dtype=dtype, rngs=nnx.Rngs(0))

    def __call__(self, x: Array) -> Array:
        scale = widened(self.scale[...], self.param_dtype)
        return _rms_norm(x.astype(scale.dtype), scale, self.epsilon)


class LayerScale(nnx.Module):
    """x [..., width] times a learned scale [width] in the parameters' dtype, zero until set."""

    def __init__(self, width: int, policy: Policy):
        self.gamma, self.policy = parameter((width,), policy), policy

    def __call__(self, x: Array) -> Array:
        gamma = widened(self.gamma[...], self.policy.param)
        return x.astype(gamma.dtype) * gamma


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    return _layer_norm_forward(x, scale, bias, eps)[0]


def _layer_norm_forward(x: Array, scale: Array, bias: Array, eps: float) -> tuple[Array, tuple]:
    mean = x.mean(-1, keepdims=True)
    # In two passes: Flax's default, E[x^2] - E[x]^2, cancels in float32.
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    inverse = lax.rsqrt(variance + eps)
    return (x - mean) * (inverse * scale) + bias, (x, mean, inverse, scale)


def _layer_norm_backward(eps: float, residuals: tuple, g: Array) -> tuple[Array, Array, Array]:
    # Written out because XLA fuses it into fewer passes over x and g than JAX's derivative.
    x, mean, inverse, scale = residuals
    normal = (x - mean) * inverse
    rows = tuple(range(x.ndim - 1))
    scaled = g * scale
    along = (scaled * normal).mean(-1, keepdims=True)
    dx = inverse * (scaled - scaled.mean(-1, keepdims=True) - normal * along)
    return dx, (g * normal).sum(rows), g.sum(rows)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rms_norm(x: Array, scale: Array, eps: float) -> Array:
    return _rms_norm_forward(x, scale, eps)[0]


def _rms_norm_forward(x: Array, scale: Array, eps: float) -> tuple[Array, tuple]:
    inverse = lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)
    return x * inverse * scale, (x, inverse, scale)


def _rms_norm_backward(eps: float, residuals: tuple, g: Array) -> tuple[Array, Array]:
    x, inverse, scale = residuals
    normal = x * inverse
    scaled = g * scale
    dx = inverse * (scaled - normal * (scaled * normal).mean(-1, keepdims=True))
    return dx, (g * normal).sum(tuple(range(x.ndim - 1)))


_rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


def remat(block: nnx.Module) -> Callable[..., Array]:
    """`block` with activation checkpointing: only its input is stored, and the backward pass
    recomputes it."""

    def call(
        x: Array, dropout: Dropout, positions: tuple[Array, ...], *where: int | float
    ) -> Array:
        again = nnx.remat(lambda block, x, *given: block(x, *given, *where))
        return again(block, x, dropout, positions)

    return call


def product(x: Array, kernel: Array, bias: Array | None, policy: Policy) -> Array:
    """x [..., in] times kernel [in, out] plus bias [out], where there is one.

    Inputs are rounded to the compute dtype, the sum and the bias are float32 or more, and the
    result is rounded once to the compute dtype.
    """
    kernel, bias = jnp.asarray(kernel), None if bias is None else jnp.asarray(bias)
    # In two dimensions: of a product over several axes XLA makes transposed copies on GPUs.
    rows = cast(x, policy.compute).reshape(-1, x.shape[-1])
    y = _product(rows, cast(kernel, policy.compute), bias, policy.tf32)
    return y.reshape(*x.shape[:-1], -1)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _product(x: Array, kernel: Array, bias: Array | None, tf32: bool) -> Array:
    y = _dot(x, kernel, 1, 0, tf32)
    return (y if bias is None else y + bias).astype(x.dtype)


def _product_forward(
    x: Array, kernel: Array, bias: Array | None, tf32: bool
) -> tuple[Array, tuple]:
    return _product(x, kernel, bias, tf32), (x, kernel, bias)


def _product_backward(tf32: bool, residuals: tuple, g: Array) -> tuple[Array, Array, Array | None]:
    # Written out because JAX would transpose the float32-summing product into products of float32
    # cotangents, several times slower than those of the compute dtype on a GPU.
    x, kernel, bias = residuals
    # Rounded by the product itself; the kernel's gradient is yet to be summed over devices.
    dx = _dot(g, kernel, 1, 1, tf32, x.dtype)
    dkernel = _dot(x, g, 0, 0, tf32).astype(kernel.dtype)
    return dx, dkernel, None if bias is None else g.astype(bias.dtype).sum(0)


_product.defvjp(_product_forward, _product_backward)


def _dot(
    a: Array, b: Array, a_axis: int, b_axis: int, tf32: bool, dtype: jnp.dtype | None = None
) -> Array:
    """The product of two matrices over one axis of each, summed in float32 or more."""
    return lax.dot_general(
        a,
        b,
        (((a_axis,), (b_axis,)), ((), ())),
        precision=_precision(tf32),
        preferred_element_type=dtype or _sum_dtype(a.dtype),
    )


def _precision(tf32: bool) -> lax.Precision:
    """JAX's default rounds float32 products to TF32 on GPUs; full float32 has to be requested.

    It has no effect on bf16.
    """
    return lax.Precision.DEFAULT if tf32 else lax.Precision.HIGHEST


def _sum_dtype(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "erf": partial(jax.nn.gelu, approximate=False),
    "tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
}


def activation_of(cfg: ModelConfig) -> Callable[[Array], Array]:
    """The MLPs' activation: GELU in two forms (Hendrycks and Gimpel 2016), their quick
    approximation, or SiLU; gated (Shazeer 2020) where the model has it.

    The result has the dtype of x; the activation is computed in float32 or more. A gated one takes
    [..., 2 h] and gives [..., h]: the activation of the first half, rounded, times the second.
    """
    name = cfg.gelu if cfg.activation == "gelu" else cfg.activation
    return partial(activate, name=name, gated=cfg.gated)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def activate(x: Array, name: str, gated: bool) -> Array:
    """x through one of `_ACTIVATIONS`, in the dtype of x."""
    if gated:
        gate, value = jnp.split(x, 2, axis=-1)
        return activate(gate, name, False) * value
    return _ACTIVATIONS[name](x.astype(_sum_dtype(x.dtype))).astype(x.dtype)


def _activate_forward(x: Array, name: str, gated: bool) -> tuple[Array, Array]:
    return activate(x, name, gated), x


def _activate_backward(name: str, gated: bool, x: Array, g: Array) -> tuple[Array]:
    # Written out so that x alone is stored, in its dtype: JAX would store float32 intermediates,
    # four times the memory. Without the barrier XLA would find them in the forward pass and keep
    # them all the same.
    x, g = lax.optimization_barrier((x, g))
    if not gated:
        return (_pulled(name, x, g),)
    gate, value = jnp.split(x, 2, axis=-1)
    wide = _sum_dtype(x.dtype)
    opened = _ACTIVATIONS[name](gate.astype(wide)).astype(x.dtype)
    return (jnp.concatenate([_pulled(name, gate, g * value), g * opened], axis=-1),)


def _pulled(name: str, x: Array, g: Array) -> Array:
    """The cotangent of x where `g` is that of its activation."""
    wide = _sum_dtype(x.dtype)
    _, pull_back = jax.vjp(_ACTIVATIONS[name], x.astype(wide))
    (dx,) = pull_back(g.astype(wide))
    return dx.astype(x.dtype)


activate.defvjp(_activate_forward, _activate_backward)


def unstack(qkv: Array) -> tuple[Array, Array, Array]:
    """q, k and v [B, N, heads, d] of qkv [B, N, 3, heads, d]."""
    b, n, _, heads, d = qkv.shape
    if fused.takes((b, n, heads, d), str(qkv.dtype)):  # there a stack is a kernel more a block
        return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    return _unstack(qkv)


@jax.custom_vjp
def _unstack(qkv: Array) -> tuple[Array, Array, Array]:
    return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]


def _unstack_forward(qkv: Array) -> tuple[tuple[Array, Array, Array], None]:
    return _unstack(qkv), None


def _unstack_backward(_: None, g: tuple[Array, Array, Array]) -> tuple[Array]:
    # Each padded and added, as JAX's derivative has it, XLA on CPUs rounds otherwise in bf16.
    return (jnp.stack(g, axis=2),)


_unstack.defvjp(_unstack_forward, _unstack_backward)


def attention(
    q: Array,
    k: Array,
    v: Array,
    policy: Policy,
    num_tokens: int | None = None,
    bias: Array | None = None,
) -> Array:
    """softmax(q k^T / sqrt(d) + bias) v [B, M, heads, d] of q [B, M, heads, d] and k and v
    [B, N, heads, d], in their dtype; `bias` is [1, heads, M, N], none by default.

    Scores are scaled before the softmax, which is float32 or more. `num_tokens` is the number of
    tokens without the padding of `jax_vit.fused`, N by default. Fused attention takes no bias.
    """
    if bias is None and q.shape == k.shape and fused.applies(q.shape, policy):
        return fused.fused_attention(q, k, v, num_tokens or k.shape[1])
    bias = None if bias is None else bias.astype(q.dtype)
    return _attention(q, k, v, bias, policy.tf32)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q: Array, k: Array, v: Array, bias: Array | None, tf32: bool) -> Array:
    return _attention_forward(q, k, v, bias, tf32)[0]


def _attention_forward(
    q: Array, k: Array, v: Array, bias: Array | None, tf32: bool
) -> tuple[Array, tuple]:
    # XLA on CPUs lacks bf16 products of some other orders.
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    scores = _heads("bhqd,bhkd->bhqk", q, k, tf32) * (q.shape[-1] ** -0.5)
    if bias is not None:
        scores = scores + bias
    weights = jax.nn.softmax(scores, axis=-1)
    out = _heads("bhqk,bhkd->bhqd", weights.astype(q.dtype), v, tf32).astype(q.dtype)
    return out.swapaxes(1, 2), (q, k, v, bias, weights, out)


def _attention_backward(
    tf32: bool, residuals: tuple, g: Array
) -> tuple[Array, Array, Array, Array | None]:
    # Written out as fused attention has it (Dao et al. 2022, appendix B): cotangents of products
    # are rounded, and the softmax's sum is taken over d instead of over N.
    q, k, v, bias, weights, out = residuals
    g = g.swapaxes(1, 2)
    dv = _heads("bhqk,bhqd->bhkd", weights.astype(g.dtype), g, tf32)
    dweights = _heads("bhqd,bhkd->bhqk", g, v, tf32)
    wide = dweights.dtype
    total = (g.astype(wide) * out.astype(wide)).sum(-1, keepdims=True)
    dbias = None
    if bias is not None:
        dbias = (weights * (dweights - total)).sum(0, keepdims=True).astype(bias.dtype)
    dscores = (weights * (dweights - total) * (q.shape[-1] ** -0.5)).astype(q.dtype)
    dq = _heads("bhqk,bhkd->bhqd", dscores, k, tf32)
    dk = _heads("bhqk,bhqd->bhkd", dscores, q, tf32)
    dq, dk, dv = (x.astype(q.dtype).swapaxes(1, 2) for x in (dq, dk, dv))
    return dq, dk, dv, dbias


_attention.defvjp(_attention_forward, _attention_backward)


def _heads(spec: str, a: Array, b: Array, tf32: bool) -> Array:
    """The products of each image and head, summed and given in float32 or more."""
    return jnp.einsum(
        spec, a, b, precision=_precision(tf32), preferred_element_type=_sum_dtype(a.dtype)
    )
