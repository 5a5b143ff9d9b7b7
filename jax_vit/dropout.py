"""Dropout and stochastic depth whose masks are pure functions of key, site and global row (see
`shared_vit.spec.mask_keys`)."""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.random import threefry_2x32

Dropout = tuple[Array, Array] | None  # (keys uint32 [sites, 2], rows int32 [B])


def drop(x: Array, dropout: Dropout, site: int, rate: float) -> Array:
    """x [B, ...] with each element zeroed with probability `rate`, else divided by 1 - rate.

    Without `dropout`, x itself.
    """
    if dropout is None or rate == 0:
        return x
    keys, rows = dropout
    kept = mask(keys[site], rows, x.shape, 1 - rate)
    # In float32 or more, rounded once, as torch does it: 0.9 itself is 0.898 in bfloat16.
    scaled = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) / (1 - rate)).astype(x.dtype)
    return jnp.where(kept, scaled, jnp.zeros_like(x))


def drop_path(x: Array, dropout: Dropout, site: int, rate: float) -> Array:
    """x [B, ...] with each row zeroed with probability `rate`, else divided by 1 - rate.

    It is stochastic depth (Huang et al. 2016) where x is a branch. Without `dropout`, x itself.
    """
    if dropout is None or rate == 0:
        return x
    keys, rows = dropout
    kept = mask(keys[site], rows, (len(x), *[1] * (x.ndim - 1)), 1 - rate)
    return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))


def mask(key: Array, rows: Array, shape: tuple[int, ...], keep: float) -> Array:
    """bool `shape` [B, ...]: which elements of the global rows `rows` int32 [B] are kept under
    `key` uint32 [2]."""
    # Element (row, j) has the 64-bit number row * per_row + j, in two 32-bit words because x64 is
    # off in float32 runs.
    per_row = int(np.prod(shape[1:]))
    low, high = _multiply(rows.astype(jnp.uint32), per_row)
    j = jnp.arange(per_row, dtype=jnp.uint32)
    words = low[:, None] + j
    carry = (words < j).astype(jnp.uint32)
    count = jnp.concatenate([(high[:, None] + carry).ravel(), words.ravel()])
    bits = jnp.bitwise_xor(*jnp.split(threefry_2x32(key, count), 2))
    uniform = lax.bitcast_convert_type(
        (bits >> 9) | np.uint32(0x3F800000), jnp.float32
    ) - np.float32(1)
    return (uniform < np.float32(keep)).reshape(shape)


def _multiply(a: Array, b: int) -> tuple[Array, Array]:
    """The low and high words of uint32 `a` times a number below 2**32, by 16-bit halves."""
    b0, b1 = np.uint32(b & 0xFFFF), np.uint32(b >> 16)
    a0, a1 = a & np.uint32(0xFFFF), a >> 16
    middle = a0 * b1 + (a0 * b0 >> 16)  # below 2**32: (2**16 - 1)**2 + 2**16
    high = a1 * b1 + (middle >> 16)
    middle2 = a1 * b0 + (middle & np.uint32(0xFFFF))
    return a * np.uint32(b & 0xFFFFFFFF), high + (middle2 >> 16)
