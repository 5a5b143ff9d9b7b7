"""Fused attention on NVIDIA GPUs: cuDNN's, by JAX's public function, where it takes the shape.

JAX refuses the gradient at odd numbers of tokens, which most models have: the class token makes 196
patches 197. So one token of zeros is appended for the length of an attention module and hidden from
the softmax.
"""

import sys
from functools import cache

import jax
import jax.numpy as jnp
from jax import Array

from jax_vit.gpu import nvidia_gpu
from shared_vit.spec.precision import Policy


def pad_tokens(x: Array, num_heads: int, policy: Policy) -> Array:
    """x [B, N, width] with a token of zeros appended if fused attention applies and N is odd."""
    b, n, width = x.shape
    if n % 2 == 0 or not applies((b, n + 1, num_heads, width // num_heads), policy):
        return x
    return jnp.pad(x, ((0, 0), (0, 1), (0, 0)))


def applies(shape: tuple[int, int, int, int], policy: Policy) -> bool:
    """Whether q, k and v of `shape` [B, N, heads, d] go to fused attention on this device."""
    return takes(shape, policy.compute)


def takes(shape: tuple[int, ...], dtype: str) -> bool:
    """Whether fused attention takes q, k and v of `shape` [B, N, heads, d] on this device.

    It takes bf16, from compute capability 8.0, even numbers of tokens, and head widths that are
    multiples of 8 up to 128 (256 from 9.0). A shape that JAX refuses all the same is named in one
    notice.
    """
    gpu = nvidia_gpu()
    if gpu is None or dtype != "bfloat16":
        return False
    capability, n, d = float(gpu.compute_capability), shape[1], shape[3]
    if capability < 8 or n % 2 or d % 8 or d > (256 if capability >= 9 else 128):
        return False
    return _taken((n, shape[2], d), capability)


@cache
def _taken(shape: tuple[int, int, int], capability: float) -> bool:
    """Whether JAX takes shape [N, heads, d] in the forward pass and in the gradient."""
    each = jax.ShapeDtypeStruct((1, *shape), jnp.bfloat16)

    def total(q: Array, k: Array, v: Array) -> Array:
        return fused_attention(q, k, v, shape[0] - 1).sum()

    try:
        jax.eval_shape(jax.grad(total, (0, 1, 2)), each, each, each)
    except (NotImplementedError, ValueError, RuntimeError) as error:
        if jax.process_index() == 0:
            n, heads, d = shape
            notice = (
                f"notice: JAX's fused attention does not take {n} tokens, {heads} heads of {d} "
                f"({error}): attention is computed from products and a softmax"
            )
            print(notice, file=sys.stderr, flush=True)
        return False
    return True


def fused_attention(q: Array, k: Array, v: Array, num_tokens: int) -> Array:
    """softmax(q k^T / sqrt(d)) v [B, N, heads, d] of q, k and v [B, N, heads, d], in their dtype.

    Only the first `num_tokens` keys count. What comes out for the queries behind them has no
    meaning, and no gradient comes back to them.
    """
    b, n = q.shape[:2]
    # All queries count, so that no row of the output is left unwritten. Lengths are given even
    # where nothing is padded: without a padding mask cuDNN's gradient can be NaN if the keys end
    # inside a tile (NVIDIA/cudnn-frontend, issues 160 and 1072).
    queries, keys = jnp.full(b, n, jnp.int32), jnp.full(b, num_tokens, jnp.int32)
    if num_tokens < n:
        # For the gradient alone: what cuDNN may leave in these rows must not reach it.
        counts = (jnp.arange(n) < num_tokens)[:, None, None]
        q, k, v = (jnp.where(counts, x, 0) for x in (q, k, v))
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        query_seq_lengths=queries,
        key_value_seq_lengths=keys,
        implementation="cudnn",
    )
