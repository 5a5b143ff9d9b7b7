"""Law 4, where a share cancels. What cancels with all weights and inputs may be left out; what
cancels with these alone is hidden and must be found."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
import torch
import torch.nn.functional as F
from laws import pairs
from laws.pairs import Pair
from torch import nn

D, TOKENS = 8, 5
X = pairs.draws(2, TOKENS, D)


def net(body, **more):
    return pairs.net(body, up=nn.Linear(D, 11), down=nn.Linear(11, 7), **more)


def length_by_hand() -> Pair:
    """The reference scales before it squares, and the port does not."""

    def body(m, x):
        y = F.gelu(m.up(x))
        size = y.abs().amax(-1, keepdim=True)
        return m.down(y / (size * (y / size).square().sum(-1, keepdim=True).sqrt()))

    def port(p, x, wrong):
        y = pairs.gelu(pairs.dense(p, "up", x), wrong)
        return pairs.dense(p, "down", y / jnp.sqrt(jnp.square(y).sum(-1, keepdims=True)))

    return Pair(net(body), port, (X,))


def softmax_by_hand() -> Pair:
    """The reference takes the maximum away first; the wrong port divides by another sum."""

    def body(m, x):
        y = m.up(x)
        e = (y - y.amax(-1, keepdim=True)).exp()
        return m.down(e / e.sum(-1, keepdim=True))

    def port(p, x, wrong):
        e = jnp.exp(pairs.dense(p, "up", x))
        return pairs.dense(p, "down", e / e.sum(-2 if wrong else -1, keepdims=True))

    return Pair(net(body), port, (X,))


def mean_taken_twice() -> Pair:
    """A mean is taken away before a normalisation that takes it away itself."""

    def body(m, x):
        y = m.up(x)
        return m.down(m.norm(y - y.mean(-1, keepdim=True)))

    def port(p, x, wrong):
        y = pairs.dense(p, "up", x)
        return pairs.dense(p, "down", pairs.layer_norm(p, "norm", y, 1e-3 if wrong else 1e-5))

    return Pair(net(body, norm=nn.LayerNorm(11)), port, (X,))


def scale_in_a_closed_branch() -> Pair:
    """A scale cancels in a branch that a zero gate hides; the wrong port errs behind it."""

    def body(m, x):
        y = m.up(x)
        size = y.abs().amax(-1, keepdim=True) + 1
        y = (y / size).square() * size.square()
        return m.down(F.gelu(m.up(x)) + m.gate * F.gelu(y))

    def port(p, x, wrong):
        y = pairs.dense(p, "up", x)
        return pairs.dense(p, "down", pairs.gelu(y) + p["gate"] * pairs.gelu(y * y, wrong))

    return Pair(net(body, gate=torch.zeros(())), port, (X,))


def twins() -> Pair:
    """Two equal last layers, one taken from the other: the model starts without its branch."""

    def body(m, x):
        y = F.gelu(m.up(x))
        return m.head(x) + m.down(y) - m.down2(y)

    def port(p, x, wrong):
        y = pairs.gelu(pairs.dense(p, "up", x), wrong)
        return pairs.dense(p, "head", x) + pairs.dense(p, "down", y) - pairs.dense(p, "down2", y)

    model = net(body, down2=nn.Linear(11, 7), head=nn.Linear(D, 7))
    model.down2.load_state_dict(model.down.state_dict())
    return Pair(model, port, (X,))


def one_position() -> Pair:
    """A softmax by hand over one position is 1, whatever it is of."""

    def body(m, x):
        score = m.q(x) @ m.k(x).transpose(-1, -2)
        e = score.exp()
        return m.down(m.up((e / e.sum(-1, keepdim=True)) @ x))

    def port(p, x, wrong):
        k = pairs.dense(p, "k", jax.nn.gelu(x) if wrong else x)
        e = jnp.exp(pairs.dense(p, "q", x) @ k.swapaxes(-1, -2))
        w = e / e.sum(-1, keepdims=True)
        return pairs.dense(p, "down", pairs.dense(p, "up", w @ x))

    model = net(body, q=nn.Linear(D, D), k=nn.Linear(D, D))
    return Pair(model, port, (pairs.draws(9, 1, D),))


CANCEL = [length_by_hand, softmax_by_hand, mean_taken_twice, scale_in_a_closed_branch]


@pytest.mark.parametrize("make", CANCEL)
def test_what_cancels_with_all_weights_may_be_left_out(make: Callable[[], Pair]):
    pairs.same(make().told())
    pairs.different(make().told(True))


@pytest.mark.parametrize("make", [twins, one_position])
def test_what_cancels_with_these_weights_or_shapes_alone_is_hidden(make: Callable[[], Pair]):
    pairs.same(make().told())
    pairs.different(make().told(True), "hidden")
