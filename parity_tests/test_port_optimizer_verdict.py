"""Claim: two optimizers are called the same only where that was shown, and never by nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from twinvit.port.optimizer import explain_optimizer

TWO = {"linear.weight": (4, 3), "linear.bias": (4,)}
KERNELS = {"linear.weight": "linear/kernel", "linear.bias": "linear/bias"}


def sgd(lr=0.1, **kwargs):
    return lambda params: torch.optim.SGD(params, lr=lr, **kwargs)


def explained(factory, transform, **kwargs):
    kwargs = {"shapes": TWO, "jax_names": KERNELS, "steps": 8} | kwargs
    return explain_optimizer(factory, transform, **kwargs)


def replaced(make):
    """A transformation whose updates are `make(gradients)`."""
    return optax.GradientTransformation(lambda p: (), lambda g, s, p=None: (make(g), s))


def after(step, value):
    """Plain SGD whose updates are `value` from a step on."""

    def update(g, count, params=None):
        bad = jax.tree.map(lambda x: jnp.where(count >= step, value, -0.1 * x), g)
        return bad, count + 1

    return optax.GradientTransformation(lambda p: jnp.zeros((), int), update)


@pytest.fixture
def broken_from_step_4(monkeypatch):
    """PyTorch's SGD, with a NaN in each gradient from the fourth step on."""

    def factory(params):
        optimizer, count = torch.optim.SGD(params, lr=0.1), [0]

        def poison(parameters):
            count[0] += 1
            if count[0] >= 4:
                for p in parameters:
                    p.grad.mul_(float("nan"))

        return optimizer, poison

    return factory


def test_the_same_is_the_same():
    report = explained(sgd(), optax.sgd(0.1))
    assert report.verdict == "same" and report.distance < 1e-13 and not report.reasons


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_in_the_port_alone_are_different(value):
    report = explained(sgd(), after(3, value))
    assert report.verdict == "different" and not report.explained, report


def test_numbers_that_are_none_on_both_sides_decide_nothing(broken_from_step_4):
    report = explained(broken_from_step_4, after(3, np.nan))
    assert report.verdict == "undecided", report
    assert any("not finite from step 4 on" in r for r in report.reasons), report


def test_numbers_that_are_none_in_the_reference_alone_are_different(broken_from_step_4):
    assert explained(broken_from_step_4, optax.sgd(0.1)).verdict == "different"


def chaotic(lr):
    """A logistic map of the parameters: rounding grows a hundredfold each few steps."""

    def factory(params):
        class Chaos(torch.optim.SGD):
            def step(self):
                for p in self.param_groups[0]["params"]:
                    p.data = lr * p.data * (1 - p.data)

        for p in params:
            p.data = 0.3 + 0.01 * p.data.tanh()
        return Chaos(params, lr=0.1)

    return factory


def chaotic_port(lr):
    def update(g, state, params):
        # The reference's factory moves the start, too; here the first update does.
        count, _ = state
        start = jax.tree.map(lambda p: jnp.where(count == 0, 0.3 + 0.01 * jnp.tanh(p), p), params)
        new = jax.tree.map(lambda p: lr * p * (1 - p), start)
        return jax.tree.map(lambda n, p: n - p, new, params), (count + 1, 0)

    return optax.GradientTransformation(lambda p: (jnp.zeros((), int), 0), update)


def test_chaos_is_no_licence():
    """Rounding decides the last of 60 steps, not the first: what differs there is seen."""
    right = explained(chaotic(3.9), chaotic_port(3.9), steps=60)
    assert right.verdict == "undecided" and "rounding alone moves" in right.reasons[0], right
    wrong = explained(chaotic(3.9), chaotic_port(3.9 + 1e-8), steps=60)
    assert wrong.verdict == "different", wrong


@pytest.mark.parametrize("lr", [0.0, 1e-17])
def test_what_does_not_move_is_not_compared(lr):
    report = explained(sgd(lr), optax.sgd(lr))
    assert report.verdict == "undecided", report
    assert any("neither side moved" in r or "rounding alone" in r for r in report.reasons)
    assert explained(sgd(lr), optax.sgd(0.1)).verdict == "different"


def test_an_empty_tensor_proves_nothing():
    empty = explained(sgd(), optax.sgd(0.1), shapes={"a": (0, 3)}, jax_names={"a": "a"})
    assert empty.verdict == "undecided" and "nothing was compared" in empty.reasons[0]
    names = {"a": "a", **KERNELS}
    beside = explained(sgd(), optax.sgd(0.1), shapes={"a": (0, 3), **TWO}, jax_names=names)
    assert beside.verdict == "same" and any("a (empty)" in text for text in beside.unseen)
    other = explained(sgd(), optax.sgd(0.2), shapes={"a": (0, 3), **TWO}, jax_names=names)
    assert other.verdict == "different" and other.explained


@pytest.mark.parametrize("at", [1e3, 1e-5])
def test_a_clip_that_usual_gradients_never_reach_is_seen(at):
    """1e3: no usual norm reaches it; 1e-5: all do, and a side that always scales looks alike."""
    if at > 1:
        report = explained(sgd(), optax.chain(optax.clip_by_global_norm(at), optax.sgd(0.1)))
        assert report.explained and [f.cause for f in report.findings] == ["clip_value"], report
        assert "1000" in report.findings[0].text
    else:
        always = replaced(
            lambda g: jax.tree.map(lambda x: -0.1 * at * x / (optax.global_norm(g) + 1e-6), g)
        )
        report = explained(lambda p: (sgd()(p), at), always)
    assert report.verdict == "different", report


def test_a_clip_that_no_gradient_reaches_decides_nothing():
    report = explained(lambda p: (sgd()(p), 1e12), optax.sgd(0.1))
    assert report.verdict == "undecided" and "below the reference's clip" in report.reasons[0]


def test_a_clip_beside_another_difference_is_not_explained_away():
    """Another momentum explains the usual gradients, and not the large ones."""
    port = optax.chain(optax.clip_by_global_norm(1e3), optax.sgd(0.1, momentum=0.8))
    report = explained(sgd(momentum=0.9), port)
    assert report.verdict == "different" and not report.explained, report
    assert any("100000 times as large" in f.text for f in report.findings), report


def biases_do_not_decay(model):
    groups = [
        {"params": [p for n, p in model.named_parameters() if "bias" not in n]},
        {"params": [p for n, p in model.named_parameters() if "bias" in n], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=0.1, weight_decay=0.1)


def kernels(params):
    return jax.tree_util.tree_map_with_path(lambda path, p: "kernel" in str(path[-1]), params)


def test_names_that_choose_decay_are_the_models():
    port = optax.chain(optax.add_decayed_weights(0.1, mask=kernels), optax.sgd(0.1))
    given = explained(biases_do_not_decay, port)
    assert given.verdict == "same", given
    half = explained(biases_do_not_decay, port, jax_names=None, shapes={"a.kernel": (4, 3)})
    assert half.verdict == "undecided" and "the Optax side goes by" in half.reasons[0], half
    by_rank = optax.chain(
        optax.add_decayed_weights(0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
        optax.sgd(0.1),
    )
    none = explain_optimizer(biases_do_not_decay, by_rank, steps=8)
    assert none.verdict in ("undecided", "different")
    assert none.verdict == "different" or "the PyTorch side goes by" in none.reasons[0], none


def test_a_tensor_that_moves_little_is_not_hidden_by_one_that_moves_far():
    """Its own group has a rate of 1e-9, in the port one of 1.01e-9."""

    def two_rates(model):
        named = dict(model.named_parameters())
        groups = [{"params": [named["linear.weight"]], "lr": 0.1},
                  {"params": [named["linear.bias"]], "lr": 1e-6}]  # fmt: skip
        return torch.optim.SGD(groups, lr=0.1)

    def port(small):
        rates = {"linear": {"kernel": 0.1, "bias": small}}
        return replaced(lambda g: jax.tree.map(lambda x, r: -r * x, g, rates))

    assert explained(two_rates, port(1e-6)).verdict == "same"
    report = explained(two_rates, port(1e-6 * (1 + 1e-6)))
    assert report.verdict == "different" and not report.explained, report
    assert "linear.bias" in report.reasons[0]
