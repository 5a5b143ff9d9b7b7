"""Claim: the dropout masks are one pure function of seed, step, site and global row, the same in
both twins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_vit.dropout
import torch_vit.dropout
from shared_vit.spec.mask_keys import num_sites, site_keys

SHAPE = (6, 5, 7)


def masks(keys, site, rows, shape=SHAPE, keep=0.9):
    a = jax_vit.dropout.mask(jnp.asarray(keys)[site], jnp.asarray(rows, jnp.int32), shape, keep)
    b = torch_vit.dropout.mask(
        torch_vit.dropout.to_keys(keys)[site], torch.as_tensor(rows), shape, keep
    )
    return np.asarray(a), b.numpy()


@pytest.mark.parametrize("seed, step", [(0, 0), (7, 3), (2**40 + 5, 100_000)])
def test_equal_to_jax_random_bernoulli(seed, step, precision):
    """With the same key, `jax.random.bernoulli` of a float32 probability draws this very mask."""
    keys = site_keys(seed, step, depth=2)
    for site in range(num_sites(2)):
        a, b = masks(keys, site, np.arange(6))
        key = jax.random.wrap_key_data(jnp.array([seed >> 32, seed & 0xFFFFFFFF], jnp.uint32))
        key = jax.random.fold_in(jax.random.fold_in(key, step), site)
        expected = jax.random.bernoulli(key, np.float32(0.9), SHAPE)
        assert np.array_equal(a, b) and np.array_equal(a, expected)


def test_kept_elements_are_scaled_alike_in_bf16():
    """Bit for bit, with their gradients: 0.9 rounded to bfloat16 would scale all by 1.0018 more."""
    keys, rows = site_keys(0, 0, depth=1), np.arange(64)
    x, g = np.random.default_rng(0).standard_normal((2, 64, 128)).astype(np.float32)

    def in_jax(x):
        return jax_vit.dropout.drop(x, (jnp.asarray(keys), jnp.asarray(rows, jnp.int32)), 1, 0.1)

    y, pull_back = jax.vjp(in_jax, jnp.asarray(x, jnp.bfloat16))
    a = [np.asarray(v.astype(jnp.float32)) for v in (y, *pull_back(jnp.asarray(g, jnp.bfloat16)))]
    t = torch.tensor(x).bfloat16().requires_grad_()
    given = (torch_vit.dropout.to_keys(keys), torch.as_tensor(rows))
    y = torch_vit.dropout.drop(t, given, 1, 0.1)
    y.backward(torch.tensor(g).bfloat16())
    b = [v.detach().float().numpy() for v in (y, t.grad)]
    assert all(np.array_equal(p, q) for p, q in zip(a, b))
    exact = torch.tensor(x).bfloat16().float().numpy() / np.float32(0.9)
    kept = a[0] != 0
    assert abs((a[0][kept] / exact[kept]).mean() - 1) < 2e-4


def test_any_rows_alone():
    """A device or a microbatch draws just its rows of the global mask."""
    keys = site_keys(1, 2, depth=1)
    whole, _ = masks(keys, 1, np.arange(6))
    for rows in ([0, 1], [4, 5], [3], [5, 2, 0]):
        for part in masks(keys, 1, np.array(rows), (len(rows), 5, 7)):
            assert np.array_equal(part, whole[rows])


def test_numbers_beyond_32_bits():
    """Row x elements passes 2**32 in large batches; both twins carry into the high word."""
    keys = site_keys(1, 2, depth=1)
    rows = np.array([70_000, 2**31 - 1, 12])
    a, b = masks(keys, 0, rows, (3, 197, 768))
    assert np.array_equal(a, b)
    number = rows[:, None].astype(object) * (197 * 768) + np.arange(3)
    from shared_vit.spec.mask_keys import threefry2x32

    for i in range(3):
        for j in range(3):
            n = int(number[i, j])
            x0, x1 = threefry2x32(tuple(int(k) for k in keys[0]), n >> 32, n & 0xFFFFFFFF)
            uniform = (((x0 ^ x1) >> 9) | 0x3F800000).to_bytes(4, "little")
            assert a[i].ravel()[j] == (
                np.frombuffer(uniform, np.float32)[0] - np.float32(1) < np.float32(0.9)
            )


def test_rate_and_independence():
    keys = site_keys(0, 0, depth=1)
    a, _ = masks(keys, 0, np.arange(64), (64, 50, 40))
    assert abs(a.mean() - 0.9) < 4 * np.sqrt(0.09 / a.size)
    for other in (
        masks(keys, 1, np.arange(64), (64, 50, 40))[0],
        masks(site_keys(0, 1, 1), 0, np.arange(64), (64, 50, 40))[0],
    ):
        assert abs(np.corrcoef(a.ravel(), other.ravel())[0, 1]) < 0.02


def test_kept_values_are_scaled(precision):
    dtype = np.float64 if precision == "fp64" else np.float32
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(dtype)
    keys = site_keys(3, 4, depth=1)
    a = np.asarray(
        jax_vit.dropout.drop(jnp.asarray(x), (jnp.asarray(keys), jnp.arange(6)), 2, 0.25)
    )
    b = torch_vit.dropout.drop(
        torch.from_numpy(x), (torch_vit.dropout.to_keys(keys), torch.arange(6)), 2, 0.25
    ).numpy()
    kept = a != 0
    np.testing.assert_allclose(a[kept], x[kept] / dtype(0.75), rtol=1e-6)
    np.testing.assert_allclose(a, b, rtol=3e-7)
    assert a.dtype == b.dtype == dtype and 0.6 < kept.mean() < 0.9
