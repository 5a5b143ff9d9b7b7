"""Mistakes in recurrent cells: every step's place at once, and no false cause behind them."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from twinvit import port

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import port_zoo  # noqa: E402


def explained(style: str, name: str) -> port.Report:
    case = port_zoo.build("sequence", style, mutations=[name])
    return port.explain(
        case.torch_model, case.explainable(), case.inputs, jax_inputs=case.jax_inputs
    )


@pytest.mark.parametrize(
    ("style", "name", "cause", "layer"),
    [
        ("nnx", "forget_bias", "forget_bias", "lstm"),
        ("linen", "gru_order", "gate_order", "gru"),
        # At the first step, whose state is zero, the edit leaves a product of zeros.
        ("nnx", "second_bias", "bias_missing", "lstm"),
        # There a gate that is missing would explain it as well.
        ("nnx", "gru_reset", "gru_reset", "gru"),
    ],
)
def test_a_mistake_in_every_step_is_one_finding(style, name, cause, layer):
    report = explained(style, name)
    assert [f.cause for f in report.findings] == [cause], report
    assert report.explained and report.findings[0].torch.startswith(layer)


@pytest.mark.slow
def test_a_mistake_outside_the_catalogue_in_a_cell_is_one_expression():
    report = explained("linen", "clip_state")
    assert [f.kind for f in report.findings] == ["expression"] and report.explained, report
    assert "lstm" in report.findings[0].torch
    assert report.findings[0].formulas["jax"] == "clip(lstm.add, -0.21, 0.33)"


@pytest.mark.parametrize(
    ("own", "dtype"), [(True, "float64"), (True, "float32"), (False, "float64")]
)
def test_a_bias_that_a_gru_cell_lacks_is_named_in_every_step(own, dtype):
    """The biases of reset and update can be added up; that of the new gate's state cannot."""
    torch.manual_seed(0)
    model = torch.nn.GRU(6, 10, batch_first=True)
    mine = {k: v.numpy().astype(dtype) for k, v in model.state_dict().items()}
    bias = mine["bias_ih_l0"] + np.where(np.arange(30) < 20, mine["bias_hh_l0"], 0)
    params = {
        "given": mine["weight_ih_l0"].T, "state": mine["weight_hh_l0"].T, "bias": bias,
        "new": mine["bias_hh_l0"][20:],
    }  # fmt: skip

    def call(p, x):
        def step(h, given):
            a, b = jnp.split(given @ p["given"] + p["bias"], [20], -1)
            c, d = jnp.split(h @ p["state"], [20], -1)
            reset, update = jnp.split(jax.nn.sigmoid(a + c), 2, -1)
            new = jnp.tanh(b + reset * (d + p["new"] if own else d))
            h = (1 - update) * new + update * h
            return h, h

        first = jnp.zeros((x.shape[0], 10), x.dtype)
        return jax.lax.scan(step, first, x.swapaxes(0, 1))[1].swapaxes(0, 1)

    x = np.random.default_rng(0).standard_normal((4, 5, 6))
    report = port.explain(model, port.Function(call, params), x, output=lambda o: (
        o[0] if isinstance(o, tuple) else o
    ))  # fmt: skip
    assert report.explained and report.same is (own and dtype == "float64"), report
    causes = [f for f in report.findings if f.kind == "cause"]
    assert [f.cause for f in causes] == ["bias_missing"] * (not own), report
    if dtype == "float32":  # a converter that adds in its own type
        assert "but for the last third, folded in float32" in str(report)
    if not own:
        assert "b_hn" in causes[0].text


def test_the_order_of_gates_whose_biases_are_added_up():
    """The port holds each step's product without its bias, as if that were missing, and the sum of
    the two products nowhere."""
    torch.manual_seed(0)
    model = torch.nn.LSTM(5, 9, batch_first=True)
    mine = {k: v.numpy().astype("float64") for k, v in model.state_dict().items()}
    mine["bias"] = mine["bias_ih_l0"] + mine["bias_hh_l0"]
    params = {
        name: np.concatenate([np.split(mine[name], 4)["ifgo".index(k)] for k in "ifog"])
        for name in ("weight_ih_l0", "weight_hh_l0", "bias")
    }

    def run(p, x):
        h = c = jnp.zeros((x.shape[0], 9), x.dtype)
        outs = []
        for t in range(x.shape[1]):
            given = jnp.split(x[:, t] @ p["weight_ih_l0"].T, 4, -1)
            state = jnp.split(h @ p["weight_hh_l0"].T + p["bias"], 4, -1)
            i, f, g, o = (a + b for a, b in zip(given, state))
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            outs.append(h)
        return jnp.stack(outs, 1)

    x = np.random.default_rng(0).standard_normal((3, 10, 5))
    report = port.explain(
        model, port.Function(run, params), (x,), output=lambda y: y[0] if type(y) is tuple else y
    )
    assert [f.cause for f in report.findings] == ["gate_order"] and report.explained, report
