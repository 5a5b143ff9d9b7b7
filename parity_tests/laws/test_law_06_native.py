"""Law 6: the port is also run as it is, jitted, in its own types; NaN or infinity where float64
has none is a difference, and the distance of both runs from float64 is always there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from laws import pairs
from laws.pairs import Pair
from torch import nn

FLOAT32_MIN = float(np.finfo(np.float32).min)
X = pairs.draws(8, 5)


def softmax(large: float) -> Pair:
    """A softmax over logits of some hundreds, with or without its maximum taken off."""

    def body(m, x):
        return m.fc2((large * m.fc1(x)).softmax(-1))

    def port(p, x, wrong):
        y = large * pairs.dense(p, "fc1", x)
        if wrong:
            e = jnp.exp(y)
            w = e / e.sum(-1, keepdims=True)
        else:
            w = jax.nn.softmax(y, -1)
        return pairs.dense(p, "fc2", w)

    return Pair(pairs.net(body, **pairs.perceptron()), port, (X,))


def twice_masked() -> Pair:
    """Two masks of finfo.min are added: in float32 a row that is masked whole is NaN."""

    def body(m, x, causal, real):
        y = m.fc1(x) + torch.where(causal & real, 0.0, FLOAT32_MIN)
        return m.fc2(y.softmax(-1))

    def port(p, x, causal, real, wrong):
        y = pairs.dense(p, "fc1", x)
        low = np.float32(FLOAT32_MIN)
        if wrong:
            y = y + jnp.where(causal, 0, low) + jnp.where(real, 0, low)
        else:
            y = y + jnp.where(causal & real, 0, low)
        return pairs.dense(p, "fc2", jax.nn.softmax(y, -1))

    causal, real = np.ones((8, 9), bool), np.ones((8, 9), bool)
    causal[:, 6:] = False
    real[1, 7:] = False
    causal[2], real[2] = False, False
    return Pair(pairs.net(body, **pairs.perceptron()), port, (X, causal, real))


def half_exponential() -> Pair:
    """exp(12) is beyond float16; the right port takes the maximum off first."""

    def body(m, x):
        return m.fc2(torch.softmax(12 * torch.tanh(m.fc1(3 * x)), -1))

    def port(p, x, wrong):
        y = 12 * jnp.tanh(pairs.dense(p, "fc1", 3 * x))
        y = y.astype(jnp.float16)
        if not wrong:
            y = y - y.max(-1, keepdims=True)
        e = jnp.exp(y)
        w = (e / e.sum(-1, keepdims=True)).astype(jnp.float32)
        return pairs.dense(p, "fc2", w)

    return Pair(pairs.net(body, **pairs.perceptron()), port, (X,))


def log_of_sum() -> Pair:
    """A log-sum-exp without its maximum: infinite in float32."""

    def body(m, x):
        return torch.logsumexp(150 * m.fc1(x), -1)

    def port(p, x, wrong):
        y = 150 * pairs.dense(p, "fc1", x)
        return jnp.log(jnp.exp(y).sum(-1)) if wrong else jax.scipy.special.logsumexp(y, -1)

    return Pair(pairs.net(body, **pairs.perceptron()), port, (X,))


OVERFLOWS = {
    "softmax without its maximum": (lambda: softmax(150.0), "nan"),
    "finfo.min twice": (twice_masked, "nan"),
    "exponential in float16": (half_exponential, "nan"),
    "log-sum-exp without its maximum": (log_of_sum, "inf"),
}


@pytest.mark.parametrize("name", OVERFLOWS)
def test_a_port_that_stays_finite_is_the_same(name):
    report = OVERFLOWS[name][0]().told()
    pairs.same(report)
    assert report.native


@pytest.mark.parametrize("name", OVERFLOWS)
def test_a_port_that_overflows_as_it_runs_is_different(name):
    make, kind = OVERFLOWS[name]
    report = make().told(True)
    pairs.different(report, kind)
    start = " ".join([str(report).splitlines()[0], report.reasons[0]]).lower()
    assert kind in start and "float64" in start, "it is said first"
    pairs.says(report, "test_law_06_native.py")


@pytest.mark.parametrize("large", [1.0, 80.0, 1e4])
def test_large_logits_alone_are_no_difference(large):
    pairs.same(softmax(large).told())


def test_an_overflow_and_a_wrong_formula_are_both_told():
    """A softmax without its maximum and GELU's tanh form."""

    def body(m, x):
        return m.fc2((150 * torch.nn.functional.gelu(m.fc1(x))).softmax(-1))

    def port(p, x, wrong):
        e = jnp.exp(150 * pairs.gelu(pairs.dense(p, "fc1", x), wrong))
        return pairs.dense(p, "fc2", e / e.sum(-1, keepdims=True))

    report = Pair(pairs.net(body, **pairs.perceptron()), port, (X,)).told(True)
    pairs.different(report, "nan")
    assert "gelu_tanh" in [finding.cause for finding in report.findings]


def bfloat16() -> Pair:
    """A port that computes in bfloat16 where the reference does not: right, and far."""

    def port(p, x, wrong):
        half = {k: v.astype(jnp.bfloat16) for k, v in p.items()}
        return pairs.mlp_port(half, x.astype(jnp.bfloat16)).astype(jnp.float32)

    return Pair(pairs.net(pairs.mlp, **pairs.perceptron()), port, (X,))


def test_a_narrower_type_is_no_difference_and_its_distance_is_told():
    report = bfloat16().told()
    assert report.verdict == "same", str(report)
    assert report.native
    pairs.says(report, "bfloat16")


def test_the_distance_of_both_runs_from_float64_is_printed():
    for pair, wrong in ((softmax(1.0), False), (bfloat16(), False), (log_of_sum(), True)):
        report = pair.told(wrong)
        assert report.native
        pairs.says(report, "as it runs" if wrong else "float64")


def test_an_overflow_that_the_reference_shares_is_not_the_port_s_mistake():
    """Beyond float32 on both sides, as they run: nothing is to be changed in the port."""

    def body(m, x):
        return torch.exp(40 * m.fc1(x))

    def port(p, x, wrong):
        return jnp.exp(40 * pairs.dense(p, "fc1", x))

    pair = Pair(pairs.net(body, fc1=nn.Linear(5, 9)), port, (3 * X,))
    assert not torch.isfinite(pair.torch(torch.tensor(3 * X))).all()
    report = pair.told()
    assert report.verdict != "different", str(report)
