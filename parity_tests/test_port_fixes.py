"""What a finding says to write, on either side."""

import jax
import numpy as np
import pytest
import torch
from torch import nn

from twinvit import port
from twinvit.port.fixes import fix_of
from twinvit.port.report import Finding

ROWS = [
    ("activation", "the port computes softplus; the reference computes silu", "jax.nn.silu(x)", ""),
    ("activation", "the port's leaky ReLU has slope 0.2; the reference's 0.01",
     "negative_slope=0.01", "negative_slope=0.2"),
    ("norm_eps", "the port's norm has eps 1e-06; the reference's is 1e-05", "epsilon=1e-05",
     "eps=1e-06"),
    ("norm_ddof", "the port divides the variance by n - 1 (ddof=1); the reference by n", "ddof=0",
     "correction=1"),
    ("norm_groups", "the port's GroupNorm has 4 groups; the reference's 8 of neighbouring channels",
     "num_groups=8", "num_groups=4"),
    ("mask_value", "the port masks with -1e+09; the reference with -inf",
     "jnp.where(mask, scores, -inf)", "masked_fill(mask, -1e+09)"),
    ("mask_value", "the port leaves the weights of rows without any key as its softmax makes them",
     "jnp.where(mask.any(-1, keepdims=True), weights, 0)",
     "without zeros in rows without any key"),
    ("padding", "the port pads this convolution by (0, 2) on each axis; the reference by (1, 1) on"
     " both sides", "padding=((1, 1), (1, 1))",
     "torch.nn.functional.pad(x, (0, 2, 0, 2)), then padding=0"),
    ("padding", "the port pads this convolution by VALID, none; the reference by (1, 2) on both "
     "sides", "padding=((1, 1), (2, 2))", "padding=(0, 0)"),
    ("padding", "the port pads this convolution by SAME, ((0, 1), (1, 1)); the reference by (1, 1)"
     " on both sides", "padding=((1, 1), (1, 1))",
     "torch.nn.functional.pad(x, (1, 1, 0, 1)), then padding=0"),
    ("stride", "the port's stride is 1 with the same padding; the reference's (2, 2)",
     "strides=(2, 2)", "stride=1"),
    ("position_offset", "the port looks this table up +2 rows off", "index -2", "index +2"),
    ("loss_reduction", "the port takes the sum; the reference the mean", ".mean()",
     'reduction="sum"'),
]  # fmt: skip


def finding(cause: str, text: str, kind: str = "cause") -> Finding:
    return Finding(kind, cause, text, "", "", 1.0, 0.0)


@pytest.mark.parametrize("cause, text, in_jax, in_torch", ROWS)
def test_what_to_write_is_told_for_the_side_that_is_wrong(cause, text, in_jax, in_torch) -> None:
    assert fix_of(finding(cause, text), "torch") == in_jax
    assert fix_of(finding(cause, text), "jax") == in_torch


def test_a_tie_a_guess_and_a_rounded_constant_have_none() -> None:
    text = "the port's norm has eps 1e-06; the reference's is 1e-05"
    assert not fix_of(finding("norm_eps", f"{text}; a tie: scale (x) explains it"), "torch")
    assert not fix_of(finding("norm_eps", text, "precision"), "torch")


@pytest.mark.parametrize("reference", ["torch", "jax"])
def test_a_convolutions_padding_is_told_as_it_is_written(reference: str) -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    params = {n: t.detach().numpy() for n, t in model.state_dict().items()}

    def convolved(p: dict, x: jax.Array) -> jax.Array:
        y = jax.lax.conv_general_dilated(x, p["weight"], (2, 2), "SAME")
        return y + p["bias"][:, None, None]

    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8), np.float32)
    report = port.explain(model, port.Function(convolved, params), (x,), reference=reference)
    assert report.explained and [f.cause for f in report.findings] == ["padding"]
    wanted = "padding=((1, 1), (1, 1))"
    if reference == "jax":
        wanted = "torch.nn.functional.pad(x, (0, 1, 0, 1)), then padding=0"
    assert report.findings[0].fix == wanted
