"""Law 8, on what only a word can show: inputs that cannot be drawn."""

import numpy as np
import pytest
import torch.nn.functional as F
from laws import pairs
from laws.pairs import Pair
from torch import nn

X = pairs.draws(8, 6)


def net(body, **more):
    return pairs.net(body, fc1=nn.Linear(6, 9), fc2=nn.Linear(9, 4), **more)


def symmetric_inputs() -> Pair:
    """Inputs equal their transpose: the port transposes."""

    def body(m, a):
        return m.fc2(F.gelu(m.fc1(a)))

    def port(p, a, wrong):
        return pairs.mlp_port(p, a.T if wrong else a)

    a = pairs.draws(6, 6)
    return Pair(net(body), port, (a + a.T,))


def mask_of_ones() -> Pair:
    """The port ignores a mask that is one for every row."""

    def body(m, x, keep):
        return m.fc2(F.gelu(m.fc1(x)) * keep)

    def port(p, x, keep, wrong):
        h = pairs.gelu(pairs.dense(p, "fc1", x))
        return pairs.dense(p, "fc2", h if wrong else h * keep)

    return Pair(net(body), port, (X, np.ones((8, 9), np.float32)))


def kinds_of_zero() -> Pair:
    """The port ignores the kinds of tokens, which are all zero."""

    def body(m, x, kind):
        return m.fc2(F.gelu(m.fc1(x) + m.table(kind)))

    def port(p, x, kind, wrong):
        h = pairs.dense(p, "fc1", x) + p["table.weight"][0 * kind if wrong else kind]
        return pairs.dense(p, "fc2", pairs.gelu(h))

    return Pair(net(body, table=nn.Embedding(3, 9)), port, (X, np.zeros(8, np.int64)))


@pytest.mark.parametrize("make", [mask_of_ones, kinds_of_zero])
def test_inputs_that_cannot_be_drawn_are_said(make):
    for wrong in (False, True):
        report = make().told(wrong)
        assert report.verdict == "same" or wrong
        if report.verdict == "same":
            pairs.says(report, "constant")


def test_symmetric_inputs_are_drawn_or_said():
    """A port that transposes them is wrong for all others."""
    pairs.same(symmetric_inputs().told())
    report = symmetric_inputs().told(True)
    assert report.verdict == "different" or "symmetric" in str(report).lower(), str(report)
