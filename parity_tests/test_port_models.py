"""Ports of each kind of model that the explainer takes: Equinox with state, Keras 3."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import equinox as eqx
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import torch
from keras import layers

from twinvit import port
from twinvit.port import models
from twinvit.port.places import is_library, short_path, user_place


class Reference(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.bn, self.b = torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), None
        self.b = torch.nn.Linear(8, 3)
        for tensor in (self.bn.weight, self.bn.bias, self.bn.running_mean):
            torch.nn.init.normal_(tensor)
        torch.nn.init.uniform_(self.bn.running_var, 0.5, 2.0)

    def forward(self, x):
        return self.b(torch.nn.functional.gelu(self.bn(self.a(x))))


@pytest.fixture
def reference():
    return Reference().eval()


def inputs(count=5):
    return (np.random.default_rng(0).normal(size=(count, 6)).astype(np.float32),)


class Module(eqx.Module):
    """The same in Equinox: a model of single examples with state."""

    a: eqx.nn.Linear
    bn: eqx.nn.BatchNorm
    b: eqx.nn.Linear
    approximate: bool = eqx.field(static=True)

    def __init__(self, approximate):
        first, second = jax.random.split(jax.random.key(0))
        self.a, self.b = eqx.nn.Linear(6, 8, key=first), eqx.nn.Linear(8, 3, key=second)
        self.bn = eqx.nn.BatchNorm(8, "batch", mode="batch", dtype=jnp.float32)
        self.approximate = approximate

    def __call__(self, x, state):
        x, state = self.bn(self.a(x), state)
        return self.b(jax.nn.gelu(x, approximate=self.approximate)), state


def equinox_port(reference, approximate=False):
    module, state = eqx.nn.make_with_state(Module)(approximate)
    names = ("a.weight", "a.bias", "bn.weight", "bn.bias", "b.weight", "b.bias")
    values = [jnp.asarray(reference.get_parameter(n).detach().numpy()) for n in names]
    module = eqx.tree_at(
        lambda m: [getattr(getattr(m, n.split(".")[0]), n.split(".")[1]) for n in names],
        module,
        values,
    )
    bn = reference.bn
    averages = (jnp.asarray(bn.running_mean.numpy()), jnp.asarray(bn.running_var.numpy()))
    return module, state.set(module.bn.batch_state_index, averages)


@pytest.mark.parametrize("count", [5, 1])
def test_an_equinox_module_with_state(reference, count):
    report = port.explain(reference, equinox_port(reference), inputs(count))
    assert report.verdict == "same", str(report)
    assert "mapped over the batch" in str(report)


def test_an_equinox_module_with_state_that_is_wrong(reference):
    report = port.explain(reference, equinox_port(reference, approximate=True), inputs())
    assert report.verdict == "different" and report.explained
    assert [f.cause for f in report.findings] == ["gelu_tanh"]
    assert report.findings[0].jax.startswith("parity_tests/test_port_models.py:")


def test_an_equinox_module_with_state_in_train_mode(reference):
    pure = models.pure(equinox_port(reference), train=True)
    x = jnp.asarray(inputs()[0])
    out, state = pure.batched(pure.leaves, x)
    assert pure.stateful and out.shape == (5, 3)
    assert any(np.shape(s) == (8,) for s in jax.tree.leaves(state))
    hidden = reference.a(torch.tensor(inputs()[0]))
    torch.testing.assert_close(
        torch.tensor(np.asarray(out)),
        reference.b(torch.nn.functional.gelu(reference.bn.train()(hidden))),
        atol=1e-5,
        rtol=1e-5,
    )


def keras_port(reference, approximate=False):
    x = layers.Input((6,))
    y = layers.Dense(8, name="a")(x)
    y = layers.BatchNormalization(epsilon=1e-5, name="bn")(y)
    y = Gelu(approximate, name="act")(y)
    model = keras.Model(x, layers.Dense(3, name="b")(y))
    bn = reference.bn
    for name, tensors in (
        ("a", (reference.a.weight.T, reference.a.bias)),
        ("bn", (bn.weight, bn.bias, bn.running_mean, bn.running_var)),
        ("b", (reference.b.weight.T, reference.b.bias)),
    ):
        model.get_layer(name).set_weights([t.detach().numpy() for t in tensors])
    return model


class Gelu(layers.Layer):
    def __init__(self, approximate, **kwargs):
        super().__init__(**kwargs)
        self.approximate = approximate

    def call(self, x):
        return keras.activations.gelu(x, approximate=self.approximate)


def test_a_keras_model(reference):
    report = port.explain(reference, keras_port(reference), inputs())
    assert report.verdict == "same", str(report)


def test_a_keras_model_that_is_wrong(reference):
    report = port.explain(reference, keras_port(reference, approximate=True), inputs())
    assert report.verdict == "different" and report.explained
    assert [f.cause for f in report.findings] == ["gelu_tanh"]
    assert report.findings[0].jax.startswith("parity_tests/test_port_models.py:")


def test_a_keras_model_of_layers_alone_names_the_layer(reference):
    wrong = keras.Sequential(
        [layers.Input((6,)), layers.Dense(8, name="a"), layers.Activation("elu", name="act")]
    )
    wrong.get_layer("a").set_weights([reference.a.weight.detach().numpy().T,
                                      reference.a.bias.detach().numpy()])  # fmt: skip
    right = torch.nn.Sequential(reference.a, torch.nn.CELU(0.5))
    report = port.explain(right, wrong, inputs())
    assert report.verdict == "different"
    assert all("keras/" not in f.jax for f in report.findings)
    assert "act" in report.findings[0].jax


def test_a_keras_model_that_is_not_built():
    with pytest.raises(port.PortError, match="no weights yet"):
        models.pure(keras.Sequential([layers.Dense(3)]))


def test_what_is_no_model():
    with pytest.raises(port.PortError, match="cannot be called"):
        models.pure(3)


def test_a_place_is_the_users():
    flax, here = jax.__file__.replace("/jax/", "/flax/"), __file__
    assert is_library(jax.__file__) and is_library(np.__file__) is False
    assert is_library("<string>") and not is_library("/home/flax/model.py")
    explain = (port.__file__, 7, "explain")
    assert user_place([(flax, 1, "f"), (here, 2, "g"), explain]) == f"{short_path(here)}:2"
    assert user_place([(flax, 1, "f"), explain, (here, 3, "main")]) == ""
    between = (port.__file__, 5, "__torch_dispatch__")
    assert user_place([between, (torch.__file__, 1, "f"), (here, 4, "g")]).endswith(":4")


def test_models_of_transformers_are_no_library_and_its_helpers_are():
    import transformers

    root = os.path.dirname(transformers.__file__)
    assert not is_library(os.path.join(root, "models", "bert", "modeling_bert.py"))
    assert is_library(os.path.join(root, "activations.py"))
