"""Law 7: a finding is an edit that was made and proven, never stored numbers; a name is not given
for what it does not explain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from laws import pairs
from laws.pairs import Pair
from torch import nn

X = pairs.draws(6, 5)
OTHER = pairs.draws(6, 5, seed=9, scale=1.7)


def mlp() -> dict:
    return {"fc1": nn.Linear(5, 12), "norm": nn.LayerNorm(12), "fc2": nn.Linear(12, 7)}


def holds(report, *inputs) -> float:
    """The largest distance of any output on other inputs."""
    return max(report.verify(inputs).values())


def proven_or_open(report, *inputs) -> None:
    """Different, and explained only if the explanation holds on other inputs."""
    pairs.different(report)
    if report.explained:
        assert holds(report, *inputs) < 1e-9, str(report)


def normalised(m, x):
    return m.fc2(F.gelu(m.norm(m.fc1(x))))


def normalised_port(p, x, wrong):
    h = pairs.layer_norm(p, "norm", pairs.dense(p, "fc1", x), 1e-3 if "eps" in wrong else 1e-5)
    y = pairs.dense(p, "fc2", pairs.gelu(h, "tanh" in wrong))
    return y - p["fc2.bias"] if "bias" in wrong else y


CATALOGUED = {
    ("tanh",): {"gelu_tanh"},
    ("eps",): {"norm_eps"},
    ("bias",): {"bias_missing"},
    ("tanh", "eps"): {"gelu_tanh", "norm_eps"},
    ("tanh", "bias"): {"gelu_tanh", "bias_missing"},
    ("eps", "bias", "tanh"): {"gelu_tanh", "bias_missing", "norm_eps"},
}


@pytest.mark.parametrize("wrong", CATALOGUED, ids="+".join)
def test_a_named_mistake_holds_on_other_inputs(wrong):
    """Each once and nothing else, and the edits hold."""
    report = Pair(pairs.net(normalised, **mlp()), normalised_port, (X,)).told(wrong)
    pairs.different(report)
    assert report.explained and len(report.findings) == len(wrong)
    assert {finding.cause for finding in report.findings} == CATALOGUED[wrong]
    assert holds(report, OTHER) < 1e-9
    assert report.verify((X,)).keys() == report.verify((OTHER,)).keys()


def activated(theirs, ours) -> Pair:
    """An MLP whose middle is `theirs(h)` in the reference and `ours(h, wrong)` in the port."""

    def body(m, x):
        return m.fc2(theirs(m.fc1(x)))

    def port(p, x, wrong):
        return pairs.dense(p, "fc2", ours(pairs.dense(p, "fc1", x), wrong))

    return Pair(pairs.net(body, fc1=nn.Linear(5, 12), fc2=nn.Linear(12, 7)), port, (X,))


def choose(right, wrong):
    return lambda h, flag: wrong(h) if flag else right(h)


# Middles that no cause of the catalogue is; many come down to one number on the given inputs.
OUTSIDE = {
    "slope of the data": (
        F.leaky_relu,
        choose(
            lambda h: jax.nn.leaky_relu(h, 0.01),
            lambda h: jnp.where(h > 0, h, h * 0.1 * h.std()),
        ),
    ),
    "clip of the data": (
        lambda h: h.clamp(-2, 2),
        choose(
            lambda h: jnp.clip(h, -2, 2),
            lambda h: jnp.clip(h, -0.4 * jnp.abs(h).max(), 0.4 * jnp.abs(h).max()),
        ),
    ),
    "scale of the data": (torch.tanh, choose(jnp.tanh, lambda h: jnp.tanh(h) * jnp.abs(h).mean())),
    "offset of the data": (torch.tanh, choose(jnp.tanh, lambda h: jnp.tanh(h) - h.mean())),
    "beta of the data": (
        F.softplus,
        choose(
            jax.nn.softplus,
            lambda h: jnp.logaddexp(h * h.std(), 0.0) / h.std(),
        ),
    ),
    "eps of the data": (
        lambda h: F.layer_norm(h, (12,), eps=1e-5),
        choose(
            lambda h: (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5),
            lambda h: (
                (h - h.mean(-1, keepdims=True))
                / jnp.sqrt(h.var(-1, keepdims=True) + 1e-3 * h.var())
            ),
        ),
    ),
    "mean absolute deviation": (
        lambda h: F.layer_norm(h, (12,), eps=1e-5),
        choose(
            lambda h: (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5),
            lambda h: (
                (h - h.mean(-1, keepdims=True))
                / (jnp.abs(h - h.mean(-1, keepdims=True)).mean(-1, keepdims=True) + 1e-5)
            ),
        ),
    ),
    "cap by arctan": (F.gelu, choose(pairs.gelu, lambda h: jnp.arctan(pairs.gelu(h)))),
    "mixture of two": (F.gelu, choose(pairs.gelu, lambda h: 0.9 * pairs.gelu(h) + 0.1 * h * h)),
    "softmax of a temperature of the data": (
        lambda h: h.softmax(-1),
        choose(lambda h: jax.nn.softmax(h, -1), lambda h: jax.nn.softmax(h / h.std(), -1)),
    ),
    "masked by the smallest": (
        lambda h: h.masked_fill(torch.arange(12) > 9, -5.0),
        choose(
            lambda h: jnp.where(jnp.arange(12) > 9, -5.0, h),
            lambda h: jnp.where(jnp.arange(12) > 9, h.min() - 1, h),
        ),
    ),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_number_that_holds_on_these_inputs_alone_explains_nothing(name):
    """Guards are those that have always been left unexplained."""
    pair = activated(*OUTSIDE[name])
    pairs.same(pair.told())
    proven_or_open(pair.told(True), OTHER)


# The same with a constant of the port's own: the number is solved, and holds.
CONSTANTS = {
    "slope": (
        F.leaky_relu,
        choose(lambda h: jax.nn.leaky_relu(h, 0.01), lambda h: jax.nn.leaky_relu(h, 0.2)),
        "activation",
    ),
    "alpha": (F.elu, choose(jax.nn.elu, lambda h: jax.nn.elu(h, 0.7)), "activation"),
    "eps": (
        lambda h: F.layer_norm(h, (12,), eps=1e-5),
        lambda h, wrong: (
            (h - h.mean(-1, keepdims=True))
            / jnp.sqrt(h.var(-1, keepdims=True) + (1e-2 if wrong else 1e-5))
        ),
        "norm_eps",
    ),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_number_of_the_port_s_own_explains(name):
    """Guard: what is asked of the numbers above costs no true constant its name."""
    *middles, cause = CONSTANTS[name]
    pair = activated(*middles)
    pairs.same(pair.told())
    report = pair.told(True)
    pairs.different(report)
    assert report.explained and [f.cause for f in report.findings] == [cause], str(report)
    assert holds(report, OTHER) < 1e-9


def test_a_mistake_of_one_layer_is_told_of_that_layer_alone():
    def body(m, x):
        for fc in (m.one, m.two, m.three):
            x = x + F.gelu(fc(x))
        return x

    def port(p, x, wrong):
        for name in ("one", "two", "three"):
            x = x + pairs.gelu(pairs.dense(p, name, x), wrong and name == "two")
        return x

    parts = {n: nn.Linear(8, 8) for n in ("one", "two", "three")}
    report = Pair(pairs.net(body, **parts), port, (pairs.draws(6, 8),)).told(True)
    pairs.different(report)
    assert report.explained and [f.cause for f in report.findings] == ["gelu_tanh"]
    assert len(report.findings[0].places) == 1
    assert holds(report, pairs.draws(6, 8, seed=3)) < 1e-9


def test_the_eps_of_a_vector_s_length_is_no_activation():
    """`F.normalize` divides by max(length, eps); the port adds eps inside the root."""

    def body(m, x):
        return m.fc2(F.normalize(m.fc1(x), dim=-1))

    def port(p, x, wrong):
        h = pairs.dense(p, "fc1", x)
        if wrong:
            h = h / jnp.sqrt((h * h).sum(-1, keepdims=True) + 1e-2)
        else:
            h = h / jnp.maximum(jnp.sqrt((h * h).sum(-1, keepdims=True)), 1e-12)
        return pairs.dense(p, "fc2", h)

    pair = Pair(pairs.net(body, fc1=nn.Linear(5, 12), fc2=nn.Linear(12, 7)), port, (X,))
    pairs.same(pair.told())
    report = pair.told(True)
    proven_or_open(report, OTHER)
    assert all(finding.cause != "activation" for finding in report.findings), str(report)
    assert "squared" not in str(report).lower()


def scaled_twice() -> Pair:
    """Attention's scale, and a residual's: the second hides the first's sign of progress."""

    def body(m, x):
        w = (m.q(x) @ m.k(x).transpose(-1, -2) / 8**0.5).softmax(-1)
        return m.fc2(F.gelu(x + w @ m.v(x)))

    def port(p, x, wrong):
        q, k, v = (pairs.dense(p, n, x) for n in "qkv")
        w = jax.nn.softmax(q @ k.swapaxes(-1, -2) * (2**-0.5 if wrong else 8**-0.5), -1)
        return pairs.dense(p, "fc2", pairs.gelu(x + w @ v, wrong))

    parts = {n: nn.Linear(8, 8) for n in "qkv"}
    model = pairs.net(body, fc2=nn.Linear(8, 7), **parts)
    return Pair(model, port, (pairs.draws(2, 6, 8),))


def test_two_mistakes_in_a_row_are_both_named_and_hold():
    report = scaled_twice().told(True)
    pairs.different(report)
    assert report.explained
    assert {f.cause for f in report.findings} == {"attention_scale", "gelu_tanh"}
    assert holds(report, pairs.draws(2, 6, 8, seed=3)) < 1e-9


def test_stored_values_explain_nothing():
    """The middle is replaced by what it was on these inputs: no edit of the reference is that."""
    model = pairs.net(
        lambda m, x: m.fc2(F.gelu(m.fc1(x))), fc1=nn.Linear(5, 12), fc2=nn.Linear(12, 7)
    )
    with torch.no_grad():
        stored = (F.gelu(model.fc1(torch.tensor(X))) * 1.01).numpy()

    def port(p, x, wrong):
        return pairs.dense(p, "fc2", jnp.asarray(stored))

    report = Pair(model, port, (X,)).told(True)
    proven_or_open(report, OTHER)
    assert np.isfinite(report.distance)
