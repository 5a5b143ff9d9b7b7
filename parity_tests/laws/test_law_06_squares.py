"""Law 6, on squares that the reference avoids and the port makes: beyond float32, same in
float64."""

import jax.numpy as jnp
import pytest
from laws import pairs
from laws.pairs import Pair

X = pairs.draws(8, 5)


def lengths() -> Pair:
    """The length of vectors of 1e20: their squares are beyond float32."""

    def body(m, x):
        y = m.fc1(x) * 1e20
        top = y.abs().amax(-1)
        return top * (y / top[:, None]).square().sum(-1).sqrt() * 1e-20

    def port(p, x, wrong):
        y = pairs.dense(p, "fc1", x) * 1e20
        if wrong:
            return jnp.sqrt((y * y).sum(-1)) * 1e-20
        top = jnp.abs(y).max(-1)
        return top * jnp.sqrt(jnp.square(y / top[:, None]).sum(-1)) * 1e-20

    return Pair(pairs.net(body, **pairs.perceptron()), port, (X,))


def underflow() -> Pair:
    """A variance below float32's smallest number without an eps: 0 / 0."""

    def body(m, x):
        y = m.fc1(x) * 1e-25
        top = y.abs().amax(-1, keepdim=True)
        y = y / top
        return m.fc2(y / y.square().mean(-1, keepdim=True).sqrt())

    def port(p, x, wrong):
        y = pairs.dense(p, "fc1", x) * 1e-25
        if not wrong:
            y = y / jnp.abs(y).max(-1, keepdims=True)
        return pairs.dense(p, "fc2", y / jnp.sqrt(jnp.square(y).mean(-1, keepdims=True)))

    return Pair(pairs.net(body, **pairs.perceptron()), port, (X,))


def exponentials() -> Pair:
    """A softmax by hand of scores about 100, whose exponentials are beyond float32."""

    def body(m, x):
        y = m.fc1(x) * 60
        e = (y - y.amax(-1, keepdim=True)).exp()
        return m.fc2(e / e.sum(-1, keepdim=True))

    def port(p, x, wrong):
        y = pairs.dense(p, "fc1", x) * 60
        e = jnp.exp(y if wrong else y - y.max(-1, keepdims=True))
        return pairs.dense(p, "fc2", e / e.sum(-1, keepdims=True))

    return Pair(pairs.net(body, **pairs.perceptron()), port, (X,))


@pytest.mark.parametrize(
    ("make", "kind"), [(lengths, "infinity"), (underflow, "nan"), (exponentials, "nan")]
)
def test_squares_beyond_the_type_are_different(make, kind):
    pairs.same(make().told())
    report = make().told(True)
    pairs.different(report, kind, "float64", "test_law_06_squares.py")
    assert not report.findings, "in float64 the two are the same"
