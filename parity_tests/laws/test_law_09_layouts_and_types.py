"""Law 9, on what shapes and types do not show: layouts."""

import jax
import pytest
import torch.nn.functional as F
from laws import pairs
from laws.pairs import Pair
from torch import nn


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

    def port(p, x, wrong):
        x = x if channels_last else x.transpose(0, 2, 3, 1)
        y = conv(p, "two", pairs.gelu(conv(p, "one", x), wrong))
        return y if channels_last else y.transpose(0, 3, 1, 2)

    model = pairs.net(body, one=nn.Conv2d(6, 6, 3, padding=1), two=nn.Conv2d(6, 6, 3, padding=1))
    return Pair(model, port, (pairs.draws(2, 6, 6, 6),))


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
