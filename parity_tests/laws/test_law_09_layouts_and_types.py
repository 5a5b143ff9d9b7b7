"""Law 9, on what shapes and types do not show: layouts, rounded weights."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from laws import pairs
from laws.pairs import Pair
from torch import nn

from twinvit import port

X = pairs.draws(8, 6)


def parts() -> dict:
    return {"fc1": nn.Linear(6, 9), "fc2": nn.Linear(9, 4)}


def checked_type() -> Pair:
    """A port that insists on float32."""

    def port(p, x, wrong):
        if x.dtype != jnp.float32:
            raise TypeError(f"float32 is expected, {x.dtype} was given")
        return pairs.mlp_port(p, x, wrong)

    return Pair(pairs.net(pairs.mlp, **parts()), port, (X,))


def cube(channels_last: bool = True) -> Pair:
    """Images of as many rows and columns as channels: a port takes either layout."""

    def body(m, x):
        return m.two(F.gelu(m.one(x)))

    def conv(p, name, x):
        w = p[name + ".weight"].transpose(2, 3, 1, 0)
        y = jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + p[name + ".bias"]

    def given(p, x, wrong):
        x = x if channels_last else x.transpose(0, 2, 3, 1)
        y = conv(p, "two", pairs.gelu(conv(p, "one", x), wrong))
        return y if channels_last else y.transpose(0, 3, 1, 2)

    model = pairs.net(body, one=nn.Conv2d(6, 6, 3, padding=1), two=nn.Conv2d(6, 6, 3, padding=1))
    return Pair(model, given, (pairs.draws(2, 6, 6, 6),))


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_layout_that_shapes_do_not_show_is_found(channels_last):
    pairs.same(cube(channels_last).told())


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_mistake_is_named_in_a_layout_that_shapes_do_not_show(channels_last):
    report = cube(channels_last).told(True)
    pairs.different(report)
    assert report.explained and [f.cause for f in report.findings] == ["gelu_tanh"]


@pytest.mark.parametrize("channels_last", [True, False])
def test_rows_exchanged_for_columns_are_different(channels_last):
    """Guard: images that come out transposed are no other layout."""
    pair = cube(channels_last)
    rows = 1 if channels_last else 2

    def turned(p, x, wrong):
        return pair.port(p, x, False).swapaxes(rows, rows + 1)

    pairs.different(Pair(pair.torch, turned, pair.inputs).told())


def test_channels_that_come_out_last_are_different_where_they_went_in_first():
    """Guard: without images as NHWC an output of equal shape is taken as it is."""
    pair = cube(False)

    def last(p, x, wrong):
        return pair.port(p, x, False).transpose(0, 2, 3, 1)

    pairs.different(Pair(pair.torch, last, pair.inputs).told())


def test_a_layout_of_inputs_that_were_given_is_the_outputs_too():
    pair = cube()
    pair.options["jax_inputs"] = tuple(x.transpose(0, 2, 3, 1) for x in pair.inputs)
    pairs.same(pair.told())
    assert pair.told(True).explained


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_that_were_rounded_are_judged_with_the_reference_rounded_alike(dtype):
    model = pairs.net(pairs.mlp, **parts())
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    rounded = {k: v.astype(kind).astype(np.float32) for k, v in pairs.held(model).items()}
    pair = Pair(model, pairs.mlp_port, (X,), params=rounded)
    report = pair.told()
    pairs.different(report)
    assert report.explained and [f.kind for f in report.findings] == ["weights"]
    pairs.says(report, dtype)
    wrong = pair.told(True)
    pairs.different(wrong)
    assert "gelu_tanh" in [finding.cause for finding in wrong.findings]


def test_a_reference_that_was_rounded_is_judged_with_the_port_rounded_alike():
    model = pairs.net(pairs.mlp, **parts())
    params = pairs.held(model)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16().float())
    report = Pair(model, pairs.mlp_port, (X,), params=params).told()
    pairs.different(report)
    assert report.explained and [f.kind for f in report.findings] == ["weights"]
    pairs.says(report, "weights of the port rounded to bfloat16")


def test_one_weight_that_was_rounded_alone_is_different():
    """Guard: a converter that rounds one array by mistake is no model in a narrow type."""
    model = pairs.net(pairs.mlp, **parts())
    params = pairs.held(model)
    params["fc1.weight"] = params["fc1.weight"].astype(ml_dtypes.bfloat16).astype(np.float32)
    pairs.different(Pair(model, pairs.mlp_port, (X,), params=params).told())


def test_other_weights_of_a_narrow_type_are_not_taken_for_rounded_ones():
    """Guard: numbers of bfloat16 that are not the reference's."""
    model = pairs.net(pairs.mlp, **parts())
    params = {
        k: (v * 1.01).astype(ml_dtypes.bfloat16).astype(np.float32)
        for k, v in pairs.held(model).items()
    }
    try:
        report = Pair(model, pairs.mlp_port, (X,), params=params).told()
    except port.PortError as error:
        assert "other weights" in str(error)
    else:
        pairs.different(report)


def checked_integers() -> Pair:
    """A port that insists on ids of int32."""

    def body(m, x, ids):
        return m.fc(x) + m.table(ids)

    def looked_up(p, x, ids, wrong):
        if ids.dtype != jnp.int32:
            raise TypeError(f"int32 is expected, {ids.dtype} was given")
        return pairs.dense(p, "fc", x) + p["table.weight"][ids + (1 if wrong else 0)]

    model = pairs.net(body, fc=nn.Linear(6, 5), table=nn.Embedding(30, 5))
    return Pair(model, looked_up, (X, np.arange(8) * 3))


@pytest.mark.parametrize("make", [checked_type, checked_integers])
def test_what_runs_is_not_refused(make):
    report = make().told()
    pairs.same(report)
    pairs.says(report, "recorded with inputs and parameters of its own types")
    assert not report.narrowings, "the types that it was given are none of its own making"
    pairs.different(make().told(True))


def test_gradients_of_a_port_that_refuses_float64_are_compared():
    report = checked_type().told(what=("forward", "grad"))
    pairs.same(report)
    pairs.says(report, "parameters compared, 0 without an equal")
