"""Law 3, on floats that are made of whole numbers: of the default type, which is float64 when
rounding is measured as when the reference is recorded."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from laws import pairs
from laws.pairs import Pair
from torch import nn

D = 8
X = pairs.draws(3, 5, D)


def frequencies() -> Pair:
    """Steps times frequencies of a division of whole numbers; the wrong port's are others."""

    def body(m, x, t):
        angle = t[:, None] * torch.exp(-torch.arange(4) / 2)
        return m.fc(x) + torch.cat([angle.sin(), angle.cos()], -1)[:, None]

    def port(p, x, t, wrong):
        angle = t[:, None] * jnp.exp(-jnp.arange(4) / (3 if wrong else 2))
        table = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
        return pairs.dense(p, "fc", x) + table[:, None]

    return Pair(pairs.net(body, fc=nn.Linear(D, D)), port, (X, np.array([10, 250, 999])))


def lengths() -> Pair:
    """Sums are divided by the root of lengths; the wrong port's are one more."""

    def body(m, x, n):
        return m.fc(x).sum(1) / n.sqrt()[:, None]

    def port(p, x, n, wrong):
        return pairs.dense(p, "fc", x).sum(1) / jnp.sqrt(n + 1 if wrong else n)[:, None]

    return Pair(pairs.net(body, fc=nn.Linear(D, D)), port, (X, np.array([3, 5, 4])))


def slopes() -> Pair:
    """A bias of powers of whole numbers, as attention with linear biases has."""

    def body(m, x):
        return m.fc(x) * torch.pow(2.0, -torch.arange(1, D + 1) * (8 / math.sqrt(D)))

    def port(p, x, wrong):
        powers = -jnp.arange(0 if wrong else 1, D if wrong else D + 1) * (8 / math.sqrt(D))
        return pairs.dense(p, "fc", x) * 2.0**powers

    return Pair(pairs.net(body, fc=nn.Linear(D, D)), port, (X,))


@pytest.mark.parametrize("make", [frequencies, lengths, slopes])
def test_floats_made_of_whole_numbers_are_judged(make):
    pairs.same(make().told())
    pairs.different(make().told(True))
