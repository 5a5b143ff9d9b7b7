"""Law 8, on parameters that one side holds and does not read: their numbers stand in its code."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from laws import pairs
from laws.pairs import Pair
from torch import nn

X = pairs.draws(8, 6)


def net(body, **more):
    return pairs.net(body, fc1=nn.Linear(6, 9), fc2=nn.Linear(9, 4), **more)


def bias_stored() -> Pair:
    model = net(pairs.mlp)
    bias = model.fc1.bias.detach().numpy().astype(np.float64)

    def port(p, x, wrong):
        h = x @ p["fc1.weight"].T + (bias if wrong else p["fc1.bias"])
        return pairs.dense(p, "fc2", pairs.gelu(h))

    return Pair(model, port, (X,))


def temperature_stored() -> Pair:
    """exp of a scalar parameter stands in the code."""

    def body(m, x):
        return m.t.exp() * pairs.mlp(m, x)

    model = net(body, t=torch.tensor(2.659))
    factor = float(np.exp(np.float64(model.t.item())))

    def port(p, x, wrong):
        return (factor if wrong else jnp.exp(p["t"])) * pairs.mlp_port(p, x)

    return Pair(model, port, (X,))


def statistics_stored() -> Pair:
    """The running variance of a batch norm."""

    def body(m, x):
        return m.fc2(m.norm(m.fc1(x)))

    model = net(body, norm=nn.BatchNorm1d(9))
    variance = model.norm.running_var.numpy().astype(np.float64)

    def port(p, x, wrong):
        v = variance if wrong else p["norm.running_var"]
        y = (pairs.dense(p, "fc1", x) - p["norm.running_mean"]) / jnp.sqrt(v + 1e-5)
        return pairs.dense(p, "fc2", y * p["norm.weight"] + p["norm.bias"])

    return Pair(model, port, (X,))


def scale_left_out() -> Pair:
    """A normalisation's scale is one everywhere; the port holds it and leaves it out."""

    def body(m, x):
        return m.fc2(m.norm(m.fc1(x)))

    model = net(body, norm=nn.LayerNorm(9))
    nn.init.ones_(model.norm.weight)

    def port(p, x, wrong):
        y = pairs.dense(p, "fc1", x)
        y = (y - y.mean(-1, keepdims=True)) / jnp.sqrt(y.var(-1, keepdims=True) + 1e-5)
        y = y if wrong else y * p["norm.weight"]
        return pairs.dense(p, "fc2", y + p["norm.bias"])

    return Pair(model, port, (X,))


def bias_of_zeros_left_out() -> Pair:
    """A bias is zero everywhere; the port holds it and leaves it out."""
    model = net(pairs.mlp)
    nn.init.zeros_(model.fc1.bias)

    def port(p, x, wrong):
        y = x @ p["fc1.weight"].T
        return pairs.dense(p, "fc2", pairs.gelu(y if wrong else y + p["fc1.bias"]))

    return Pair(model, port, (X,))


def layer_in_a_stack() -> Pair:
    """One of three layers of equal shapes has its weight in the code."""

    def body(m, x):
        for k in range(3):
            x = F.gelu(m.layers[k](x))
        return m.fc2(m.fc1(x))

    model = net(body, layers=nn.ModuleList([nn.Linear(6, 6) for _ in range(3)]))
    weight = model.layers[1].weight.detach().numpy().astype(np.float64)

    def port(p, x, wrong):
        for k in range(3):
            w = weight if wrong and k == 1 else p[f"layers.{k}.weight"]
            x = pairs.gelu(x @ w.T + p[f"layers.{k}.bias"])
        return pairs.dense(p, "fc2", pairs.dense(p, "fc1", x))

    return Pair(model, port, (X,))


def head_of_the_table() -> Pair:
    """The head equals the table of words now and is another parameter; the port reads one for
    both."""

    def body(m, ids):
        return m.head(m.fc3(m.fc2(m.fc1(m.table(ids)))))

    model = net(
        body, table=nn.Embedding(13, 6), fc3=nn.Linear(4, 6), head=nn.Linear(6, 13, bias=False)
    )
    with torch.no_grad():
        model.head.weight.copy_(model.table.weight)

    def port(p, ids, wrong):
        y = p["table.weight"][ids]
        for name in ("fc1", "fc2", "fc3"):
            y = pairs.dense(p, name, y)
        return y @ p["table.weight" if wrong else "head.weight"].T

    return Pair(model, port, (np.arange(10).reshape(2, 5),))


def bias_stored_beside_a_folded_scale() -> Pair:
    """What is read was computed from another parameter than the one that is stored."""

    def body(m, x):
        return pairs.mlp(m, x) * m.scale.exp()

    model = net(body, scale=0.1 * torch.arange(4) + 0.1234567)
    bias = model.fc1.bias.detach().numpy().astype(np.float64)
    params = pairs.held(model)
    params["factor"] = np.exp(params["scale"].astype(np.float64))

    def port(p, x, wrong):
        h = x @ p["fc1.weight"].T + (bias if wrong else p["fc1.bias"])
        return pairs.dense(p, "fc2", pairs.gelu(h)) * p["factor"]

    return Pair(model, port, (X,), params=params)


WRONG = [
    head_of_the_table,
    bias_stored_beside_a_folded_scale,
    bias_stored,
    temperature_stored,
    statistics_stored,
    scale_left_out,
    bias_of_zeros_left_out,
    layer_in_a_stack,
]


@pytest.mark.parametrize("reference", ["torch", "jax"])
@pytest.mark.parametrize("make", WRONG)
def test_a_parameter_that_is_held_and_not_read_is_different(make: Callable[[], Pair], reference):
    pairs.same(make().told(reference=reference))
    report = make().told(True, reference=reference)
    pairs.different(report, "does not read it")
    assert report.explained and [f.kind for f in report.findings] == ["weights"], str(report)


def test_the_place_of_the_stored_numbers_is_told():
    report = bias_stored().told(True)
    assert report.findings[0].jax.startswith("parity_tests/laws/test_law_08_not_read.py:"), report
    pairs.says(report, "fc1.bias")


@pytest.mark.parametrize("reference", ["torch", "jax"])
def test_a_parameter_that_the_pytorch_model_does_not_read_is_different(reference):
    """The PyTorch model holds a scale that it never multiplies by; the JAX model does."""

    model = net(lambda m, x: m.fc2(F.gelu(m.fc1(x))), scale=torch.full((4,), 1.0))

    def port(p, x, wrong):
        y = pairs.mlp_port(p, x)
        return y * p["scale"] if wrong else y

    pairs.same(Pair(model, port, (X,)).told(reference=reference))
    pairs.different(Pair(model, port, (X,)).told(True, reference=reference), "does not read it")


def test_a_bias_that_cancels_need_not_be_read():
    """A bias of keys adds one number to all scores of a row."""

    def body(m, x):
        return m.fc2((m.q(x) @ m.k(x).T).softmax(-1) @ m.fc1(x))

    def port(p, x, wrong):
        k = x @ p["k.weight"].T
        w = jax.nn.softmax(pairs.dense(p, "q", x) @ k.T, -1)
        return pairs.dense(p, "fc2", w @ pairs.dense(p, "fc1", x))

    model = net(body, q=nn.Linear(6, 5), k=nn.Linear(6, 5))
    pairs.same(Pair(model, port, (X,)).told())


def test_folded_weights_beside_the_originals_are_the_same():
    """What is read was computed from what is not."""

    def body(m, x):
        return m.t.exp() * m.fc2(m.norm(m.fc1(x)))

    def port(p, x, wrong):
        y = x @ p["folded.weight"].T + p["folded.bias"]
        return pairs.dense(p, "fc2", y) * p["factor"]

    model = net(body, norm=nn.BatchNorm1d(9), t=torch.tensor(0.0))
    params = {k: v.astype(np.float64) for k, v in pairs.held(model).items()}
    scale = params["norm.weight"] / np.sqrt(params["norm.running_var"] + 1e-5)
    shift = params["norm.bias"] - params["norm.running_mean"] * scale
    params["folded.weight"] = params["fc1.weight"] * scale[:, None]
    params["folded.bias"] = params["fc1.bias"] * scale + shift
    params["factor"] = np.exp(params["t"])
    pairs.same(Pair(model, port, (X,), params=params).told())


def test_a_table_that_is_not_trained_may_be_computed():
    """Positions that the reference keeps as a parameter without gradient."""
    table = np.sin(np.arange(8)[:, None] / 10.0 ** np.arange(9))

    def body(m, x):
        return m.fc2(F.gelu(m.fc1(x)) + m.positions)

    def port(p, x, wrong):
        angle = jnp.arange(8.0)[:, None] / 10.0 ** jnp.arange(9.0)
        return pairs.dense(p, "fc2", pairs.gelu(pairs.dense(p, "fc1", x)) + jnp.sin(angle))

    model = net(body, positions=torch.from_numpy(table))
    model.positions.requires_grad_(False)
    pairs.same(Pair(model, port, (X,)).told())


def test_a_port_whose_weights_all_stand_in_its_code_is_the_same():
    model = net(pairs.mlp)
    params = pairs.held(model)

    def port(p, x, wrong):
        return pairs.mlp_port(params, x)

    pairs.same(Pair(model, port, (X,)).told())
    pairs.same(Pair(model, port, (X,), params={"unused": np.ones(3, np.float32)}).told())
