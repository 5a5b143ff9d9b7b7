"""Law 2: outputs are paired by name, then by position, never by size; integers and booleans are
compared exactly; what was not compared is said."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from laws import pairs
from laws.pairs import Pair
from torch import nn

X = pairs.draws(7, 5)


class Heads(NamedTuple):
    logits: torch.Tensor
    aux: torch.Tensor


def two_heads(pack, packed, sizes=(6, 6)) -> Pair:
    """Two heads of one trunk; `pack(a, b)` and `packed(a, b, wrong)` make what is returned."""

    def body(m, x):
        h = torch.tanh(m.fc1(x))
        return pack(m.one(h), m.two(h))

    def port(p, x, wrong):
        h = jnp.tanh(pairs.dense(p, "fc1", x))
        return packed(pairs.dense(p, "one", h), pairs.dense(p, "two", h), wrong)

    one, two = sizes
    model = pairs.net(body, fc1=nn.Linear(5, 9), one=nn.Linear(9, one), two=nn.Linear(9, two))
    return Pair(model, port, (X,))


def aux_of_zeros() -> Pair:
    """The second of two outputs of other sizes is all zeros; JAX returns keys in another order."""
    return two_heads(
        lambda a, b: {"logits": a, "aux": b},
        lambda a, b, wrong: {"logits": a, "aux": b * (0.0 if wrong else 1.0)},
        (6, 4),
    )


def keys_in_another_order() -> Pair:
    """Equal shapes under two names: exchanging what stands under them is wrong."""
    return two_heads(
        lambda a, b: {"logits": a, "aux": b},
        lambda a, b, wrong: {"logits": b, "aux": a} if wrong else {"logits": a, "aux": b},
    )


def nested_keys() -> Pair:
    """Names below names, and equal last names."""
    return two_heads(
        lambda a, b: {"student": {"logits": a}, "ema": {"logits": b}},
        lambda a, b, wrong: {
            "ema": {"logits": a if wrong else b},
            "student": {"logits": b if wrong else a},
        },
    )


def named_tuple_against_dict() -> Pair:
    return two_heads(
        Heads, lambda a, b, wrong: dict(logits=b, aux=a) if wrong else dict(logits=a, aux=b)
    )


def tuple_against_keys_in_order() -> Pair:
    return two_heads(lambda a, b: (a, b), lambda a, b, wrong: {"a": a, "b": a if wrong else b})


def positions_exchanged() -> Pair:
    return two_heads(lambda a, b: (a, b), lambda a, b, wrong: (b, a) if wrong else (a, b))


def argmin_for_argmax() -> Pair:
    return two_heads(
        lambda a, b: (a, b.argmax(-1)),
        lambda a, b, wrong: (a, b.argmin(-1) if wrong else b.argmax(-1)),
    )


def indices_from_one() -> Pair:
    """The indices of the two largest, counted from one."""

    def packed(a, b, wrong):
        order = jnp.argsort(-b, axis=-1)[:, :2]
        return {"values": jnp.take_along_axis(b, order, -1), "indices": order + bool(wrong)}

    return two_heads(lambda a, b: dict(zip(("values", "indices"), torch.topk(b, 2))), packed)


def one_boolean() -> Pair:
    """One of 42 booleans is the other."""

    def packed(a, b, wrong):
        place = jnp.arange(42).reshape(7, 6) == 17
        return a, jnp.where(place & wrong, b <= 0, b > 0)

    return two_heads(lambda a, b: (a, b > 0), packed)


def scalar_beside_logits() -> Pair:
    """The loss is divided by one fewer; the logits are right."""
    return two_heads(
        lambda a, b: ((a**2).mean(), b),
        lambda a, b, wrong: ((a**2).sum() / (a.size - bool(wrong)), b),
    )


def square_output_transposed() -> Pair:
    """Guard: a square output is not turned until it fits."""

    def body(m, x):
        return m.fc(x)

    def port(p, x, wrong):
        y = pairs.dense(p, "fc", x)
        return y.T if wrong else y

    return Pair(pairs.net(body, fc=nn.Linear(5, 7)), port, (X,))


PAIRS = {
    f.__name__: f
    for f in (
        aux_of_zeros,
        keys_in_another_order,
        nested_keys,
        named_tuple_against_dict,
        tuple_against_keys_in_order,
        positions_exchanged,
        argmin_for_argmax,
        indices_from_one,
        one_boolean,
        scalar_beside_logits,
        square_output_transposed,
    )
}


@pytest.mark.parametrize("name", PAIRS)
def test_an_exact_port_is_the_same(name):
    report = PAIRS[name]().told()
    pairs.same(report)
    assert all(output.compared for output in report.outputs)


@pytest.mark.parametrize("name", PAIRS)
def test_a_wrong_output_is_different(name):
    """Guards are those by position, the scalar and the square."""
    pairs.different(PAIRS[name]().told(True))


def test_a_tuple_against_keys_in_another_order_is_no_false_alarm():
    """The port's dict was made in the tuple's order; JAX hands its keys out sorted."""
    report = two_heads(lambda a, b: (a, b), lambda a, b, wrong: dict(logits=a, aux=b)).told()
    assert report.verdict != "different", str(report)


def test_a_wrong_tuple_against_keys_in_another_order_is_not_the_same():
    pair = two_heads(lambda a, b: (a, b), lambda a, b, wrong: dict(logits=a, aux=0 * b), (6, 4))
    assert pair.told().verdict != "same"


def missing() -> Pair:
    """The port returns the first of the reference's two outputs."""
    return two_heads(lambda a, b: (a, b), lambda a, b, wrong: a * (1.001 if wrong else 1.0), (6, 4))


def test_an_output_that_was_not_compared_leaves_the_verdict_open():
    report = missing().told()
    pairs.undecided(report, "not compared")
    assert [output.compared for output in report.outputs] == [True, False]


def test_a_difference_is_told_beside_an_output_that_was_not_compared():
    """Guard."""
    pairs.different(missing().told(True))


def test_a_chosen_output_is_the_whole_question():
    pairs.same(missing().told(output=lambda out: out[0] if isinstance(out, tuple) else out))


def test_a_named_choice_is_the_whole_question():
    pairs.same(aux_of_zeros().told(True, output="logits"))
    pairs.different(aux_of_zeros().told(True, output="aux"))


def test_what_the_port_returns_beyond_the_reference_is_no_difference():
    pairs.same(two_heads(lambda a, b: a, lambda a, b, wrong: (a, b), (6, 4)).told())


def test_what_the_port_returns_beyond_the_reference_under_names_is_no_difference():
    """The extra name stands first in JAX's order."""
    pair = two_heads(lambda a, b: {"logits": a}, lambda a, b, wrong: {"aux": b, "logits": a})
    pairs.same(pair.told())


def images(channels_last: bool) -> Pair:
    """A convolution whose port returns NHWC or NCHW."""

    def body(m, x):
        return m.conv(x).tanh()

    def port(p, x, wrong):
        w = p["conv.weight"] * (1.001 if wrong else 1.0)
        y = jnp.einsum("bchw,oc->bhwo", x, w[:, :, 0, 0]) + p["conv.bias"]
        y = jnp.tanh(y)
        return y if channels_last else y.transpose(0, 3, 1, 2)

    x = pairs.draws(2, 3, 4, 5)
    model = pairs.net(body, conv=nn.Conv2d(3, 6, 1))
    return Pair(model, port, (x,), {"jax_inputs": (x,)})


def first_line(report) -> str:
    return str(report).splitlines()[0].lower()


def test_permuted_axes_are_said_in_the_first_line():
    report = images(channels_last=True).told()
    pairs.same(report)
    assert any(word in first_line(report) for word in ("axes", "permuted", "nhwc")), str(report)
    straight = images(channels_last=False).told()
    pairs.same(straight)
    assert not any(word in first_line(straight) for word in ("axes", "permuted", "nhwc"))


def test_a_wrong_port_with_permuted_axes_is_different():
    """Guard."""
    pairs.different(images(channels_last=True).told(True))


@pytest.mark.parametrize("shape", ["(7, 1, 6)", "(42)", "(1, 7, 6)"])
def test_other_shapes_are_said_in_the_first_line(shape):
    target = tuple(int(n) for n in shape.strip("()").split(",") if n.strip())
    report = two_heads(lambda a, b: a, lambda a, b, wrong: a.reshape(target)).told()
    pairs.same(report)
    assert shape in first_line(report), str(report)


def test_a_loss_by_example_is_not_the_mean_loss():
    """Guard: another number of elements is a difference, whatever their values."""
    report = two_heads(lambda a, b: a.sum(-1), lambda a, b, wrong: jnp.tile(a.sum(-1), 2)).told()
    pairs.different(report)


def test_integers_alone_are_judged():
    """A model that returns classes: one of seven is another."""

    def pair(wrong):
        return two_heads(
            lambda a, b: a.argmax(-1),
            lambda a, b, _: a.argmax(-1) + (jnp.arange(7) == 3) * wrong,
        ).told()

    pairs.same(pair(0))
    pairs.different(pair(1))


def test_types_of_integers_are_no_difference():
    """int64 of PyTorch against int32 of JAX, and booleans against zeros and ones."""
    pairs.same(
        two_heads(
            lambda a, b: (a, b.argmax(-1), b > 0),
            lambda a, b, _: (a, b.argmax(-1).astype(np.int32), (b > 0).astype(np.int32)),
        ).told()
    )
