"""Keys of the masks of dropout and stochastic depth, computed on the host for both twins.

A key is one function of seed, step and site. A mask's bits are threefry2x32 (Salmon et al. 2011, 20
rounds) of the element's number in the global [batch, ...] tensor, so a device or a microbatch draws
just its rows; with the same key `jax.random.bits` gives the same bits.
"""

import numpy as np

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA  # the key schedule's constant (Skein)


def num_sites(depth: int, paths: bool = False) -> int:
    """Number of sites of masks, with those of stochastic depth under `paths`.

    Site 0 is the embedding; 1 + 3 block + {0, 1, 2} are attention output, GELU and second MLP
    product; 1 + 3 depth + 2 block + {0, 1} are the attention's and the MLP's branch.
    """
    return 1 + (5 if paths else 3) * depth


def path_site(depth: int, block: int) -> int:
    """The site of stochastic depth in a block's attention branch; the MLP's comes next."""
    return num_sites(depth) + 2 * block


def site_keys(seed: int, step: int, depth: int, paths: bool = False) -> np.ndarray:
    """Keys uint32 [sites, 2] of update `step`: `jax.random.fold_in` of the seed's key with the
    step, then the site. `paths`: also those of stochastic depth."""
    key = (seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF)
    key = threefry2x32(key, 0, step)
    sites = range(num_sites(depth, paths))
    return np.array([threefry2x32(key, 0, site) for site in sites], np.uint32)


def threefry2x32(key: tuple[int, int], x0: int, x1: int) -> tuple[int, int]:
    """Two output words of the counter (x0, x1) under a key; all are 32-bit unsigned integers."""
    mask = 0xFFFFFFFF
    ks = (key[0], key[1], key[0] ^ key[1] ^ PARITY)
    x0, x1 = (x0 + ks[0]) & mask, (x1 + ks[1]) & mask
    for i in range(5):
        for r in ROTATIONS[i % 2]:
            x0 = (x0 + x1) & mask
            x1 = ((x1 << r | x1 >> (32 - r)) & mask) ^ x0
        x0 = (x0 + ks[(i + 1) % 3]) & mask
        x1 = (x1 + ks[(i + 2) % 3] + i + 1) & mask
    return x0, x1
