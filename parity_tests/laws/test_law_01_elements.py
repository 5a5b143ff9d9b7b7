"""Law 1: every output is judged by itself, element by element; what is large hides nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from laws import pairs
from laws.pairs import Pair
from torch import nn

FLOAT32_MIN = float(np.finfo(np.float32).min)
EVEN = np.arange(6) % 2 == 0


def masked(constant: float) -> Pair:
    """Logits masked in two of six columns; the wrong port returns zeros, or GELU's tanh form.
    Masked by -1e9 or by -inf it is a guard."""

    def body(m, x):
        return pairs.mlp(m, x).masked_fill(torch.arange(6) >= 4, constant)

    def port(p, x, wrong):
        y = pairs.mlp_port(p, x, wrong == "tanh") * (0.0 if wrong == "zeros" else 1.0)
        return jnp.where(jnp.arange(6) >= 4, constant, y)

    return Pair(pairs.net(body, **pairs.perceptron()), port, (pairs.draws(7, 5),))


def second_output_larger() -> Pair:
    def body(m, x):
        return pairs.mlp(m, x), 1e14 * m.big(x)

    def port(p, x, wrong):
        return pairs.mlp_port(p, x, wrong), 1e14 * pairs.dense(p, "big", x)

    model = pairs.net(body, big=nn.Linear(5, 6), **pairs.perceptron())
    return Pair(model, port, (pairs.draws(7, 5),))


def columns_offset() -> Pair:
    """Half the columns stand at 3e12; the mistake is in the others alone."""

    def body(m, x):
        return pairs.mlp(m, x) + torch.as_tensor(np.where(EVEN, 3e12, 0.0))

    def port(p, x, wrong):
        y = jnp.where(EVEN, pairs.mlp_port(p, x), pairs.mlp_port(p, x, wrong))
        return y + np.where(EVEN, 3e12, 0.0)

    return Pair(pairs.net(body, **pairs.perceptron()), port, (pairs.draws(7, 5),))


def row_larger() -> Pair:
    """One row is 1e12 times the others; there both forms of GELU are the same."""
    x = pairs.draws(7, 5)
    x[0] *= 1e12
    return Pair(pairs.net(pairs.mlp, **pairs.perceptron()), pairs.mlp_port, (x,))


def column_smaller() -> Pair:
    """One class is scaled by 1e-12 by its weights, and wrong by one part in a hundred."""

    def port(p, x, wrong):
        return pairs.mlp_port(p, x) * jnp.where((jnp.arange(6) == 2) & wrong, 1.01, 1.0)

    model = pairs.net(pairs.mlp, **pairs.perceptron())
    with torch.no_grad():
        model.fc2.weight[2] *= 1e-12
        model.fc2.bias[2] *= 1e-12
    return Pair(model, port, (pairs.draws(7, 5),))


def one_element() -> Pair:
    """One of 10,000 numbers is wrong by 1e-11 of itself."""
    model = pairs.net(lambda m, x: m.fc(x), fc=nn.Linear(3, 100))
    x = pairs.draws(100, 3)
    with torch.no_grad():
        place = int(model(torch.tensor(x)).abs().argmax())

    def port(p, x, wrong):
        chosen = jnp.arange(10_000).reshape(100, 100) == place
        return pairs.dense(p, "fc", x) * jnp.where(chosen & wrong, 1 + 1e-11, 1.0)

    return Pair(model, port, (x,))


def one_sign() -> Pair:
    """One small row's sign is turned."""

    def body(m, x, scale):
        return pairs.mlp(m, x) * scale[:, None]

    def port(p, x, scale, wrong):
        turned = jnp.where((jnp.arange(7) == 3) & wrong, -1.0, 1.0)
        return pairs.mlp_port(p, x) * (scale * turned)[:, None]

    scale = np.array([1, 2, 3, 1e-14, 1, 5, 1], np.float32)
    return Pair(pairs.net(body, **pairs.perceptron()), port, (pairs.draws(7, 5), scale))


def other_places_masked() -> Pair:
    """Guard: each row masks as many places, at other ones, with a finite constant."""

    def body(m, x, keep):
        return pairs.mlp(m, x).masked_fill(~keep, FLOAT32_MIN)

    def port(p, x, keep, wrong):
        keep = jnp.roll(keep, 1, axis=0) if wrong else keep
        return jnp.where(keep, pairs.mlp_port(p, x), FLOAT32_MIN)

    keep = np.ones((7, 6), bool)
    keep[np.arange(7), np.arange(7) % 6] = False
    return Pair(pairs.net(body, **pairs.perceptron()), port, (pairs.draws(7, 5), keep))


PAIRS = {
    "masked by finfo.min": (lambda: masked(FLOAT32_MIN), "zeros"),
    "masked by finfo.min, tanh": (lambda: masked(FLOAT32_MIN), "tanh"),
    "masked by -1e9": (lambda: masked(-1e9), "zeros"),
    "masked by -1e15, tanh": (lambda: masked(-1e15), "tanh"),
    "masked by -inf": (lambda: masked(-np.inf), "zeros"),
    "second output larger": (second_output_larger, True),
    "columns offset": (columns_offset, True),
    "row larger": (row_larger, True),
    "column smaller": (column_smaller, True),
    "one element of 10,000": (one_element, True),
    "one sign": (one_sign, True),
    "other places masked": (other_places_masked, True),
}
WITHOUT_TWINS = [name for name in PAIRS if not name.endswith("tanh")]


@pytest.mark.parametrize("name", WITHOUT_TWINS)
def test_an_exact_port_is_the_same(name):
    pairs.same(PAIRS[name][0]().told())


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_large_hides_no_mistake(name):
    make, wrong = PAIRS[name]
    pairs.different(make().told(wrong))


def rotary() -> Pair:
    """Rotary tables of positions up to 131,071; the wrong port's lowest frequency is 1e-10 off."""

    def body(m, x, positions):
        f = 1.0 / 500000.0 ** (torch.arange(0, 8, 2, dtype=torch.float64) / 8)
        angle = positions[:, None].double() * f
        y = m.fc(x)
        a, b = y[..., :4], y[..., 4:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def port(p, x, positions, wrong):
        f = np.exp(-np.log(500000.0) * np.arange(4) / 4)
        f = np.where((np.arange(4) == 3) & wrong, f * (1 + 1e-10), f)
        angle = positions[:, None] * f
        y = pairs.dense(p, "fc", x)
        a, b = y[..., :4], y[..., 4:]
        c, s = jnp.cos(angle), jnp.sin(angle)
        return jnp.concatenate([a * c - b * s, b * c + a * s], -1)

    positions = np.array([0, 1, 5, 4097, 65536, 131071])
    return Pair(pairs.net(body, fc=nn.Linear(5, 8)), port, (pairs.draws(6, 5), positions))


def test_large_angles_hide_no_small_one():
    pair = rotary()
    pairs.same(pair.told())
    pairs.different(pair.told(True))


def test_signs_of_zero_are_no_difference():
    """A product with a mask of zeros makes -0.0 where a choice makes 0.0."""

    def body(m, x, keep):
        return pairs.mlp(m, x) * keep

    def port(p, x, keep, wrong):
        return jnp.where(keep > 0, pairs.mlp_port(p, x), 0.0)

    keep = (np.arange(42).reshape(7, 6) % 3 > 0).astype(np.float32)
    model = pairs.net(body, **pairs.perceptron())
    with torch.no_grad():
        assert (
            torch.signbit(body(model, torch.tensor(pairs.draws(7, 5)), torch.tensor(keep)))
            & ~torch.tensor(keep).bool()
        ).any()
    pairs.same(Pair(model, port, (pairs.draws(7, 5), keep)).told())


def test_each_output_has_a_line_of_its_own():
    """The distances are told by output, and only the wrong one is far."""
    report = second_output_larger().told(True)
    first, second = report.outputs
    assert first.compared and second.compared
    assert first.worst > 100 * second.worst


def test_numbers_below_the_smallest_normal_one_are_no_difference():
    """XLA flushes them to zero and PyTorch does not."""

    def body(m, x):
        return torch.softmax(m.fc(x) - torch.tensor([0.0, 740.0, 0.0, 730.0, 0.0, 720.0]), -1)

    def port(p, x, wrong):
        y = pairs.dense(p, "fc", x) * (1 + 1e-6 * wrong)
        return jax.nn.softmax(y - np.array([0.0, 740.0, 0.0, 730.0, 0.0, 720.0]), -1)

    pair = Pair(pairs.net(body, fc=nn.Linear(5, 6)), port, (pairs.draws(7, 5),))
    pairs.same(pair.told())
    pairs.different(pair.told(True))
