"""Mistakes in recurrent cells: every step's place at once, and no false cause behind them."""

import sys
from pathlib import Path

import pytest

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
