"""Law 12: the reference may be the JAX model; texts speak of the side that is to be changed."""

import jax.numpy as jnp
import pytest
from laws import pairs
from laws.pairs import Pair, activation
from torch import nn

from twinvit.port import PortError

X = pairs.draws(7, 5)


@pytest.mark.parametrize("reference", ["torch", "jax"])
def test_an_exact_port_is_the_same_either_way(reference):
    pairs.same(activation("").told(reference=reference))


def test_neither_side_is_called_what_it_is_not():
    """The reference is JAX: what is printed must not call PyTorch's model the reference."""
    text = str(activation("torch").told(reference="jax"))
    lines = [line.strip() for line in text.splitlines()]
    assert not any("gelu" in line and line.startswith("reference:") for line in lines), text
    assert "the port = the reference" not in lines[0], text
    assert any("pairs.py" in line and "JAX" in line for line in lines), text
    assert any("gelu" in line and "PyTorch" in line for line in lines), text


def test_what_the_reference_returns_must_be_compared_whichever_it_is():
    """The JAX model returns one output more: as the reference's it is missed, as the port's not."""

    def body(m, x):
        return {"logits": m.fc2(m.fc1(x))}

    def port(p, x, wrong):
        y = pairs.dense(p, "fc2", pairs.dense(p, "fc1", x))
        return {"logits": y, "mean": jnp.tanh(y).mean(-1)}

    pair = Pair(pairs.net(body, fc1=nn.Linear(5, 9), fc2=nn.Linear(9, 6)), port, (X,))
    pairs.same(pair.told())
    pairs.undecided(pair.told(reference="jax"), "not compared")


def test_another_reference_is_refused():
    with pytest.raises(PortError, match="reference"):
        activation("").told(reference="tensorflow")
