"""Law 5: NaN proves nothing; numbers that are not finite are compared by kind and place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from laws import pairs
from laws.pairs import Pair

X = pairs.draws(10, 5)


def with_columns(theirs, ours, **more) -> Pair:
    """Logits (10, 10) of an MLP, changed at their end by either side."""

    def body(m, x):
        return theirs(pairs.mlp(m, x))

    def port(p, x, wrong):
        return ours(pairs.mlp_port(p, x, wrong == "tanh"), wrong)

    return Pair(pairs.net(body, **pairs.perceptron(10)), port, (X,), **more)


def column(number: int) -> np.ndarray:
    return np.arange(10) == number


def filled(number: int, value: float) -> Pair:
    """One column is filled by a value that is not finite; the wrong ports fill another, or fill
    with another, or differ elsewhere."""
    wrongs = {"+inf": np.inf, "-inf": -np.inf, "nan": np.nan, "finite": 0.0, "lowest": -3.4e38}

    def ours(y, wrong):
        place = number + (wrong == "place")
        y = jnp.where(jnp.arange(10) == place, wrongs.get(wrong, value), y)
        return y * 1.0001 if wrong == "rest" else y

    return with_columns(lambda y: y.masked_fill(torch.tensor(column(number)), value), ours)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_equal_places_without_numbers_are_the_same(value):
    pairs.same(filled(3, value).told())


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        (-np.inf, "+inf"),
        (-np.inf, "nan"),
        (-np.inf, "place"),
        (-np.inf, "rest"),
        (-np.inf, "lowest"),
        (-np.inf, "tanh"),
        (np.inf, "-inf"),
        (np.inf, "nan"),
        (np.inf, "finite"),
        (np.nan, "-inf"),
        (np.nan, "finite"),
        (np.nan, "place"),
        (np.nan, "tanh"),
    ],
)
def test_other_kinds_and_places_are_different(value, wrong):
    """Guards are those that change a place or a finite number."""
    pairs.different(filled(3, value).told(wrong))


def test_one_nan_of_the_port_is_different():
    def ours(y, wrong):
        place = (jnp.arange(10)[:, None] == 2) & (jnp.arange(10) == 7)
        return jnp.where(place & bool(wrong), jnp.nan, y)

    pair = with_columns(lambda y: y, ours)
    pairs.same(pair.told())
    report = pair.told("one")
    pairs.different(report, "nan")
    assert not any("nan" in finding.cause for finding in report.findings)


def test_one_nan_of_the_reference_alone_is_different():
    nowhere = np.zeros((10, 10), bool)
    nowhere[4, 4] = True
    pair = with_columns(lambda y: y.masked_fill(torch.tensor(nowhere), np.nan), lambda y, wrong: y)
    pairs.different(pair.told(), "nan")


@pytest.mark.parametrize("wrong", [False, "tanh"])
def test_inputs_of_nan_prove_nothing(wrong):
    pair = with_columns(lambda y: y, lambda y, wrong: y)
    pair.inputs = (np.full_like(X, np.nan),)
    pairs.undecided(pair.told(wrong), "finite")


def test_one_row_of_nan_in_the_inputs_leaves_the_others_to_be_judged():
    x = X.copy()
    x[3, 1] = np.nan
    pair = with_columns(lambda y: y, lambda y, wrong: y)
    pair.inputs = (x,)
    pairs.same(pair.told())
    pairs.different(pair.told("tanh"))


def in_weights(name: str, place) -> Pair:
    pair = with_columns(lambda y: y, lambda y, wrong: y)
    with torch.no_grad():
        pair.torch.get_parameter(name)[place] = np.nan
    return pair


def test_a_nan_in_the_first_bias_makes_everything_nan():
    pairs.undecided(in_weights("fc1.bias", 0).told(), "finite", "fc1.bias")
    assert in_weights("fc1.bias", 0).told("tanh").verdict != "same"


def test_a_nan_in_one_class_leaves_the_others_to_be_judged():
    pairs.same(in_weights("fc2.bias", 4).told())
    pairs.different(in_weights("fc2.bias", 4).told("tanh"))


@pytest.mark.parametrize(
    ("theirs", "ours", "operation"),
    [
        (lambda y: torch.log(-y.abs()), lambda y: jnp.log(-jnp.abs(y)), "log"),
        (lambda y: (y * 0) / (y * 0), lambda y: (y * 0) / (y * 0), "div"),
        (lambda y: torch.sqrt(-1 - y**2), lambda y: jnp.sqrt(-1 - y**2), "sqrt"),
        (
            lambda y: (y.sign() * np.inf - y.sign() * np.inf) + y,
            lambda y: (jnp.sign(y) * jnp.inf - jnp.sign(y) * jnp.inf) + y,
            "sub",
        ),
    ],
    ids=["log", "0/0", "sqrt", "inf-inf"],
)
def test_nan_born_inside_on_both_sides_is_undecided_and_its_place_is_said(theirs, ours, operation):
    pair = with_columns(lambda y: theirs(y) + 1, lambda y, wrong: ours(y) + 1)
    pairs.undecided(pair.told(), "finite", operation, "test_law_05_nan.py")


def few() -> Pair:
    """Five of a hundred outputs are finite."""
    keep = np.zeros((10, 10), bool)
    keep[[0, 2, 3, 7, 9], [1, 1, 4, 5, 9]] = True

    def ours(y, wrong):
        return jnp.where(keep, y * (1.001 if wrong == "scaled" else 1.0), jnp.nan)

    return with_columns(lambda y: y.masked_fill(~torch.tensor(keep), np.nan), ours)


def test_five_finite_numbers_of_a_hundred_prove_nothing():
    pairs.undecided(few().told(), "finite")


def test_five_finite_numbers_that_differ_are_different():
    """Guard."""
    pairs.different(few().told("scaled"))


def equal_numbers() -> Pair:
    """Of a hundred outputs twenty are finite, and all the same number."""

    def ours(y, wrong):
        return jnp.where(jnp.arange(10) < 2, 1.5 + 0 * y, jnp.nan)

    def theirs(y):
        return torch.where(torch.arange(10) < 2, 1.5 + 0 * y, torch.full_like(y, np.nan))

    return with_columns(theirs, ours)


def test_finite_numbers_that_are_all_equal_prove_nothing_beside_nan():
    pairs.undecided(equal_numbers().told(), "finite")


def masked_rows(kind: str) -> Pair:
    """A softmax in which whole rows are masked: NaN inside the reference, zeros at its end."""

    def body(m, x, keep):
        w = m.fc1(x).masked_fill(~keep, -np.inf).softmax(-1)
        return m.fc2(torch.nan_to_num(w))

    def port(p, x, keep, wrong):
        y = jnp.where(keep, pairs.dense(p, "fc1", x), -1e9 if wrong else -jnp.inf)
        if kind == "never" and not wrong:
            y = jnp.where(keep.any(-1, keepdims=True), y, 0.0)
        w = jax.nn.softmax(y, -1)
        if wrong:
            pass
        elif kind == "never":
            w = jnp.where(keep, w, 0.0)
        else:
            w = jnp.nan_to_num(w)
        return pairs.dense(p, "fc2", w)

    keep = np.arange(9)[None] < np.array([[9], [4], [0], [1], [0], [9], [9], [3], [5], [8]])
    return Pair(pairs.net(body, **pairs.perceptron(10)), port, (X, keep))


@pytest.mark.parametrize("kind", ["mended", "never"])
def test_nan_inside_that_is_mended_before_the_end_is_no_obstacle(kind):
    pairs.same(masked_rows(kind).told())


def test_masked_rows_that_are_means_in_the_port_are_different():
    """Guard."""
    pairs.different(masked_rows("mended").told(True))


def test_a_nan_is_never_a_cause_beside_a_true_mistake():
    """The port has GELU's tanh form, and NaN in one row."""

    def ours(y, wrong):
        return jnp.where((jnp.arange(10) == 2)[:, None] & bool(wrong), jnp.nan, y)

    report = with_columns(lambda y: y, ours).told("tanh")
    pairs.different(report, "nan")
    named = [f for f in report.findings if f.kind == "cause"]
    assert all("nan" not in f.cause and np.isfinite(f.after) for f in named)
