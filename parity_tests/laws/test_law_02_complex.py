"""Law 2, on complex outputs: the conjugate has the same real parts and the same lengths."""

import jax.numpy as jnp
import torch
from laws import pairs
from laws.pairs import Pair
from torch import nn


def complex_conjugates() -> Pair:
    def body(m, x):
        return m.fc(x), torch.fft.rfft(m.fc(x))

    def port(p, x, wrong):
        y = pairs.dense(p, "fc", x)
        z = jnp.fft.rfft(y)
        return y, jnp.conj(z) if wrong else z

    return Pair(pairs.net(body, fc=nn.Linear(5, 6)), port, (pairs.draws(7, 5),))


def test_complex_numbers_are_judged_whole():
    pairs.same(complex_conjugates().told())
    pairs.different(complex_conjugates().told(True))
