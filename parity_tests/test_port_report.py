"""A report of a port: it cannot contradict itself, and its words say the verdict first."""

import math
from dataclasses import replace
from typing import Any

import pytest

from twinvit import port
from twinvit.port.report import Draw, Finding, Native, Output, Report
from twinvit.port.report_text import verdict_line

CAUSE = Finding("cause", "gelu_tanh", "the port computes tanh", "act: gelu", "port.py:3", 1e-4, 0.0)
UNKNOWN = Finding("unknown", "", "no known cause", "act: gelu", "port.py:3", 1e-4, math.nan)
PRECISION = replace(CAUSE, kind="precision", cause="")
OUT = Output("logits", "logits", (2, 9), (2, 9), before=1e-16, after=1e-16, worst=2.0)


def same(**changes: Any) -> Report:
    return Report(**{"verdict": "same", "explained": True, "distance": 1e-16, "remaining": 1e-16,
                     "outputs": [OUT]} | changes)  # fmt: skip


def different(**changes: Any) -> Report:
    return Report(**{"verdict": "different", "explained": True, "distance": 1e-4,
                     "remaining": 1e-16, "findings": [CAUSE]} | changes)  # fmt: skip


def undecided(**changes: Any) -> Report:
    return Report(**{"verdict": "undecided", "explained": False, "distance": 1e-16,
                     "remaining": 1e-16, "reasons": ["logits are NaN"]} | changes)  # fmt: skip


LIES = {
    "a proven cause": lambda: same(findings=[CAUSE]),
    "an unknown cause": lambda: same(findings=[UNKNOWN], explained=True),
    "exchanged weights": lambda: same(findings=[replace(CAUSE, kind="weights")]),
    "an expression": lambda: same(findings=[replace(CAUSE, kind="expression")]),
    "an output left out": lambda: same(outputs=[OUT, replace(OUT, compared=False)]),
    "more than rounding": lambda: same(outputs=[replace(OUT, worst=101.0)]),
    "NaN for a difference": lambda: same(outputs=[replace(OUT, worst=math.nan)]),
    "NaN on one side": lambda: same(outputs=[replace(OUT, worst=math.inf)]),
    "apart on other inputs": lambda: same(verified=[Draw("inputs", {"logits": 1e-3})]),
    "NaN on other inputs": lambda: same(verified=[Draw("inputs", {"logits": math.nan})]),
    "apart in roundings": lambda: same(verified=[Draw("weights", {"logits": 0.0}, worst=1e3)]),
    "same and not explained": lambda: same(explained=False),
    "different from nothing": lambda: different(findings=[]),
    "undecided for no reason": lambda: undecided(reasons=[]),
    "explained by a guess": lambda: different(findings=[CAUSE, UNKNOWN]),
    "same and far apart": lambda: same(distance=1e-3),
    "same and NaN apart": lambda: same(distance=math.nan),
    "explained and far apart": lambda: different(remaining=1e-3),
    "no such verdict": lambda: same(verdict="equal"),
    "no such side": lambda: same(reference="numpy"),
    "no such kind": lambda: different(findings=[replace(CAUSE, kind="guess")]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_report_that_contradicts_itself_cannot_be_made(lie):
    with pytest.raises(ValueError, match="contradicts itself"):
        LIES[lie]()


def test_true_reports_can_be_made():
    assert same(findings=[PRECISION]).exit_status == 0
    assert same(verified=[Draw("inputs", {"logits": 1e-12}), Draw("given", {}, worst=99.0)]).same
    extra = Output(None, "aux", None, (3,), compared=False, note="the port's alone")
    assert same(outputs=[OUT, extra]).same  # what only the port returns was not asked for
    assert different().exit_status == 1 and not different().same
    assert different(findings=[], reasons=["the port returns NaN"]).exit_status == 1
    assert different(findings=[UNKNOWN], explained=False).exit_status == 1
    assert undecided().exit_status == 2 and not undecided().same


def test_with_jax_as_the_reference_its_outputs_are_the_ones_that_count():
    extra = Output(None, "aux", None, (3,), compared=False)
    with pytest.raises(ValueError, match="aux was not compared"):
        same(outputs=[OUT, extra], reference="jax")
    assert same(outputs=[OUT, Output("aux", None, (3,), None, compared=False)], reference="jax")


def test_a_report_that_was_changed_into_a_lie_is_not_written(tmp_path):
    report = same()
    report.findings.append(CAUSE)
    for write in (report.to_json, report.to_html):
        with pytest.raises(ValueError, match="contradicts itself"):
            write(tmp_path / "report")
        assert not (tmp_path / "report").exists()


def test_the_first_line_is_the_verdict_and_its_reason():
    def first(report: Report) -> str:
        return str(report).splitlines()[0]

    assert first(same()).startswith("SAME  the port computes what the reference computes")
    assert first(different()) == ("DIFFERENT, explained: the port = the reference + this edit")
    assert first(different(explained=False)) == "DIFFERENT, not fully explained"
    nan = "in float64 the same, but the port as it runs returns NaN"
    assert first(different(reasons=[nan])) == f"DIFFERENT  {nan}"
    assert "explained: the port = the reference + this edit" in str(different(reasons=[nan]))
    assert first(undecided()) == "UNDECIDED: logits are NaN"
    assert all(verdict_line(r) == first(r) for r in (same(), different(), undecided()))


def test_permuted_axes_and_other_shapes_are_in_the_first_line():
    moved = replace(OUT, shape_torch=(2, 9, 4), shape_jax=(2, 4, 9), permuted=(0, 2, 1))
    line = verdict_line(same(outputs=[moved]))
    assert "axes of logits are in another order" in line and "(0, 2, 1)" in line
    assert "shape" not in line  # the order explains it
    reshaped = replace(OUT, shape_torch=(2, 9), shape_jax=(2, 3, 3))
    line = verdict_line(same(outputs=[reshaped]))
    assert "logits has shape (2, 9) in the PyTorch model and (2, 3, 3) in the JAX model" in line


def test_several_outputs_are_a_table_and_native_distances_are_always_said():
    other = Output("aux", "other", (3,), (3,), before=2e-3, after=3e-16, worst=math.inf)
    left = Output("mask", None, (3,), None, compared=False, note="the port returns none")
    text = str(different(outputs=[OUT, other, left], explained=False))
    assert "aux (other in the JAX model)" in text and "2.0e-03, 3.0e-16; inf" in text
    assert "not compared  (the port returns none)" in text
    native = Native(3.1e-7, None, "float32", "bfloat16", "the JAX model did not run: no GPU")
    for report in (same(native=native), different(native=native), undecided(native=native)):
        assert (
            "PyTorch (float32) 3.1e-07 from float64, JAX (bfloat16) did not run; "
            "the JAX model did not run: no GPU"
        ) in str(report)


def test_with_jax_as_the_reference_the_texts_speak_of_the_pytorch_model():
    finding = replace(
        CAUSE,
        text="the port computes tanh; the reference erf",
        torch_line="model.py:7",
        fix='nn.GELU(approximate="tanh")',
    )
    text = str(different(findings=[finding], reference="jax"))
    first, *rest = text.splitlines()
    assert first == "DIFFERENT, explained: the JAX model = the PyTorch model + this edit"
    assert "1. gelu_tanh  model.py:7" in rest
    assert "   the JAX model computes tanh; the PyTorch model erf" in rest
    assert '   fix: nn.GELU(approximate="tanh")' in rest
    assert "the reference" not in text and "the port" not in text
    assert "the PyTorch model computes what the JAX model computes" in str(same(reference="jax"))


def test_verify_calls_what_explain_left_and_says_where_that_is_gone(tmp_path):
    report = same(_verify=lambda inputs: {"logits": float(inputs)})
    assert report.verify(2) == {"logits": 2.0}
    assert report == same() and "_verify" not in repr(report)
    report.to_json(tmp_path / "report.json")
    with pytest.raises(port.PortError, match="read from a file"):
        port.Report.from_json(tmp_path / "report.json").verify(2)
