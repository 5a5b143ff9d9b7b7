"""What a choice is made by, states that are zero for all weights, and numbers below the smallest
normal one: right ports that are written otherwise, and wrong ones that choose alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from laws import pairs
from laws.pairs import Pair, dense, draws, net
from torch import nn

X = draws(2, 7, 6)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def quantised(written_out: bool) -> Pair:
    """The nearest of 11 codes, by distances; the port's are expanded, squared, and without the part
    that all codes share."""

    def body(m, x):
        z = F.gelu(m.q(x)).reshape(-1, 6)
        far = ((z[:, None] - m.code) ** 2).sum(-1) if written_out else torch.cdist(z, m.code)
        return m.o(m.code[far.argmin(1)])

    def port(p, x, wrong):
        z, code = pairs.gelu(dense(p, "q", x), wrong == "gelu").reshape(-1, 6), p["code"]
        near = 2 * z @ code.T - (code * code).sum(-1)
        if wrong == "cosine":
            near = z @ code.T / jnp.linalg.norm(code, axis=-1)
        if wrong == "slope":
            near = near * (1 + 1e-6 * jnp.arange(11))
        return dense(p, "o", code[near.argmax(1)])

    parts = {"q": nn.Linear(6, 6), "o": nn.Linear(6, 6), "code": drawn(11, 6)}
    return Pair(net(body, **parts), port, (X,))


def classes(theirs: str) -> Pair:
    """A class by logits or by probabilities; the port's by logits, or by what increases with
    them."""
    forms = {
        "softmax": lambda z: z.softmax(-1),
        "sigmoid": torch.sigmoid,
        "logits": lambda z: z,
        "masked": lambda z: z.index_fill(-1, torch.tensor([2]), -1e30),
    }

    def body(m, x):
        return forms[theirs](m.q(F.gelu(m.k(x)))).argmax(-1)

    def port(p, x, wrong):
        z = dense(p, "q", pairs.gelu(dense(p, "k", x), wrong == "gelu"))
        if theirs == "masked":
            z = z.at[..., 2].set(-1e9)
        if theirs == "logits":
            z = jax.nn.log_softmax(z / 0.7)
        if wrong == "slope":
            z = z * (1 + 1e-4 * jnp.arange(6))
        return z.argmax(-1)

    return Pair(net(body, q=nn.Linear(6, 6), k=nn.Linear(6, 6)), port, (draws(5, 7, 6),))


def state_space(batch: int) -> Pair:
    """A recurrence from a state of zeros; the port's is a product with a matrix of decays, which
    does not hold the first decay: it multiplies zeros."""

    def body(m, x):
        a, b, c, v = -F.softplus(m.q(x)[..., 0]), m.k(x), m.o(x), m.v(x)
        h, out = torch.zeros(batch, 6, 6), []
        for t in range(7):
            h = h * a[:, t, None, None].exp() + b[:, t, :, None] * v[:, t, None]
            out.append((c[:, t, None] @ h)[:, 0])
        return torch.stack(out, 1)

    def port(p, x, wrong):
        total = jnp.cumsum(-jax.nn.softplus(dense(p, "q", x)[..., 0]), 1)
        decay = jnp.exp(total[:, :, None] - total[:, None])
        decay = jnp.where(np.tril(np.ones((7, 7), bool)), decay, 0)
        if wrong:
            decay = decay.at[:, 6, 0].set(0)
        b, c, v = (dense(p, name, x) for name in "kov")
        return jnp.einsum("btn,bsn,bts,bsd->btd", c, b, decay, v)

    parts = {name: nn.Linear(6, 6) for name in "qkvo"}
    return Pair(net(body, **parts), port, (draws(batch, 7, 6),))


def small() -> Pair:
    """An output below float32's smallest normal number, which XLA makes zeros of."""

    def port(p, x, wrong):
        return dense(p, "o", x) * (2e-42 if wrong else 1e-42), dense(p, "o", x)

    return Pair(net(lambda m, x: (m.o(x) * 1e-42, m.o(x)), o=nn.Linear(6, 6)), port, (X,))


EXACT = {
    "distances": lambda: quantised(False),
    "squared differences": lambda: quantised(True),
    **{f"classes by {k}": lambda k=k: classes(k) for k in ("softmax", "sigmoid", "logits")},
    "classes under another mask": lambda: classes("masked"),
    "first state of a recurrence": lambda: state_space(2),
    "first state of a larger batch": lambda: state_space(9),
    "below the normal numbers": small,
}


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_port_is_the_same(name):
    pairs.same(EXACT[name]().told())


@pytest.mark.parametrize("name", EXACT)
def test_a_wrong_one_is_different(name):
    pairs.different(EXACT[name]().told("gelu"))


@pytest.mark.parametrize("make", [lambda: quantised(True), lambda: classes("softmax")])
def test_other_numbers_that_lead_to_the_same_choice_are_not_the_same(make):
    pairs.undecided(make().told("slope"), "chooses by other numbers")


def test_another_measure_of_distance_is_different():
    pairs.different(quantised(True).told("cosine"))


def test_numbers_changed_between_logits_and_choice_are_not_the_same():
    """The reference's logits are held by the port, which chooses by others."""
    pair = classes("masked")
    pairs.undecided(pair.told("slope"), "chooses by other numbers")


def test_a_first_decay_that_counts_is_judged():
    """From a state that is a parameter, here zero, the first decay counts with other weights."""

    def body(m, x):
        return m.o(m.h * m.q(x).exp() + m.k(x))

    parts = {name: nn.Linear(6, 6) for name in "qko"}
    pair = Pair(
        net(body, h=torch.zeros(6), **parts),
        lambda p, x, wrong: dense(p, "o", p["h"] + dense(p, "k", x)),
        (X,),
    )
    pairs.different(pair.told(), "h is zero")


def test_a_comparison_with_one_result_is_said():
    model = net(lambda m, x: m.o(x), o=nn.Linear(6, 6))
    report = Pair(model, lambda p, x, wrong: dense(p, "o", jnp.where(x > 50, 50, x)), (X,)).told()
    pairs.says(report, "is false for every number")
