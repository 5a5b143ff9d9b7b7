"""Law 8, on inputs that show little: ones, zeros, palindromes. Others are drawn in their place, and
a right port follows them."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from laws import pairs
from laws.pairs import Pair
from torch import nn

X = pairs.draws(4, 5, 6)
WORDS = "constant inputs with other numbers"


def net(body, **more):
    return pairs.net(body, fc1=nn.Linear(6, 9), fc2=nn.Linear(9, 6), **more)


def flipped(x: np.ndarray) -> Pair:
    """Tokens in reverse; the wrong port leaves them."""

    def body(m, x):
        return pairs.mlp(m, x) + x.flip(1)

    def port(p, x, wrong):
        return pairs.mlp_port(p, x) + (x if wrong else x[:, ::-1])

    return Pair(net(body), port, (x,))


INPUTS = {
    "ones": np.ones((2, 5, 6), np.float32),
    "zeros": np.zeros((2, 5, 6), np.float32),
    "halves": np.full((2, 5, 6), 0.5, np.float32),
    "palindrome": X + X[:, ::-1],
    "same tokens": np.broadcast_to(X[:, :1], X.shape).copy(),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_a_flip_that_the_inputs_do_not_show_is_different(kind):
    pairs.same(flipped(INPUTS[kind]).told())
    pairs.different(flipped(INPUTS[kind]).told(True), "on others")


def mask(kind: str) -> Pair:
    """Keys are masked, of which none is; the wrong port ignores the mask."""
    ones = np.ones((4, 5))
    given = {
        "bool": ones.astype(bool),
        "int": ones.astype(np.int64),
        "float": ones.astype(np.float32),
        "padding": ~ones.astype(bool),
    }[kind]

    def body(m, x, keep):
        hidden = keep if kind == "padding" else keep == 0
        scores = x @ x.transpose(-1, -2)
        return m.fc1(scores.masked_fill(hidden[:, None], -1e9).softmax(-1) @ x)

    def port(p, x, keep, wrong):
        seen = ~keep if kind == "padding" else keep > 0
        scores = x @ x.swapaxes(-1, -2)
        scores = scores if wrong else jnp.where(seen[:, None], scores, -1e9)
        e = jnp.exp(scores - scores.max(-1, keepdims=True))
        return pairs.dense(p, "fc1", e / e.sum(-1, keepdims=True) @ x)

    return Pair(net(body), port, (X, given))


@pytest.mark.parametrize("kind", ["bool", "int", "float", "padding"])
def test_a_mask_without_a_masked_place_is_tried_with_some(kind):
    report = mask(kind).told()
    pairs.same(report)
    assert not any("is constant" in text for text in report.unseen), report.unseen
    pairs.different(mask(kind).told(True), WORDS)


def kinds_of_zero() -> Pair:
    """The port ignores the kinds of tokens, which are all zero."""

    def body(m, x, kind):
        return m.fc2(F.gelu(m.fc1(x) + m.table(kind)))

    def port(p, x, kind, wrong):
        h = pairs.dense(p, "fc1", x) + p["table.weight"][0 * kind if wrong else kind]
        return pairs.dense(p, "fc2", pairs.gelu(h))

    return Pair(net(body, table=nn.Embedding(3, 9)), port, (X, np.zeros((4, 5), np.int64)))


def test_rows_of_a_table_that_are_all_the_first_are_tried_with_others():
    pairs.same(kinds_of_zero().told())
    pairs.different(kinds_of_zero().told(True), WORDS)


def test_words_alone_that_are_all_one_word_are_tried_with_others():
    """Ids of one word hide an order of the words."""

    def body(m, ids):
        return m.fc2(F.gelu(m.table(ids))) + m.places(torch.arange(5))

    def port(p, ids, wrong):
        ids = ids[:, ::-1] if wrong else ids
        y = pairs.dense(p, "fc2", pairs.gelu(p["table.weight"][ids]))
        return y + p["places.weight"][jnp.arange(5)]

    model = net(body, table=nn.Embedding(7, 9), places=nn.Embedding(5, 6))
    pair = Pair(model, port, (np.full((2, 5), 3),))
    pairs.same(pair.told())
    pairs.different(pair.told(True), WORDS)


def test_inputs_that_must_not_be_zero_prove_nothing_when_they_are():
    """Levels of noise that are one everywhere: at zero both divide by it."""

    def body(m, x, level):
        return pairs.mlp(m, x) / level[:, None, None].log1p()

    def port(p, x, level, wrong):
        level = level + 1e-3 if wrong else level
        return pairs.mlp_port(p, x) / jnp.log1p(level)[:, None, None]

    pair = Pair(net(body), port, (X, np.ones(4, np.float32)))
    pairs.same(pair.told())
    pairs.different(pair.told(True))


def test_what_is_right_for_symmetric_inputs_alone_is_said():
    """Where a right port agrees on asymmetric ones too, nothing is unseen."""

    def body(m, a):
        return m.fc2(F.gelu(m.fc1(a)))

    def port(p, a, wrong):
        return pairs.mlp_port(p, a.T if wrong else a)

    a = pairs.draws(6, 6)
    pair = Pair(net(body), port, (a + a.T,))
    report = pair.told()
    pairs.same(report)
    assert not any("symmetric" in text for text in report.unseen), report.unseen
    pairs.says(pair.told(True), "symmetric inputs alone")
