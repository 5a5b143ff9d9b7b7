"""The page of a report: whole, well formed, and without a need for anything else."""

import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from twinvit.pages.svg import Chart, Series
from twinvit.port.html import page
from twinvit.port.report import Draw, Finding, Narrowing, Native, Operation, Output, Report

VOID = {"meta", "br", "line", "rect", "circle", "polyline", "polygon"}


class Balance(HTMLParser):
    """Raises at a tag that is closed out of order; keeps the text."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_data(self, data):
        self.text.append(data)


def operations(distances):
    return [
        Operation(i, f"layers.{i // 3}.mlp", "gelu", d, 1e-16, "lost" if d > 1e-12 else "found")
        for i, d in enumerate(distances)
    ]


def explained():
    finding = Finding(
        "cause",
        "gelu_tanh",
        'tanh < erf & "more"',
        "layers.1.mlp: gelu",
        "port.py:3",
        2.9e-4,
        1e-15,
        ["layers.1.mlp: gelu", "layers.2.mlp: gelu"],
    )
    unknown = Finding("unknown", "", "no known cause", "head: addmm", "", math.inf, math.nan)
    return Report(
        verdict="different",
        explained=False,
        distance=2.9e-4,
        remaining=1e-4,
        findings=[finding, unknown],
        narrowings=[Narrowing("jax", "attention.py:288", "float32", 3e-8)],
        unseen=["no masked row"],
        notes=["as they are"],
        operations=operations([0.0, 1e-16, 2e-16, 3e-4, math.inf, math.nan]),
    )


def parsed(text):
    parser = Balance()
    parser.feed(text)
    parser.close()
    assert not parser.open
    return "".join(parser.text)


def test_the_page_says_what_the_report_says():
    text = parsed(page(explained()))
    for word in ("gelu_tanh", 'tanh < erf & "more"', "layers.2.mlp: gelu", "port.py:3", "2.9e-04"):
        assert word in text
    for word in ("1 without a known cause", "attention.py:288", "no masked row", "as they are"):
        assert word in text


def test_the_page_needs_no_network():
    assert not re.search(r"https?://|src=|@import|<script|<link", page(explained()))


@pytest.mark.parametrize("distances", [[], [0.0], [1e-16] * 4, [math.inf] * 3, [1e-300, 1e300]])
def test_pictures_are_well_formed(distances):
    report = explained()
    report.operations = operations(distances)
    text = page(report)
    parsed(text)
    pictures = re.findall(r"<svg.*?</svg>", text, flags=re.S)
    assert bool(pictures) == bool(distances)
    for picture in pictures:
        ElementTree.fromstring(picture)
        assert not re.search(r"\b(nan|inf)\b", re.sub(r"<title>.*?</title>", "", picture))


def test_larger_distances_are_drawn_higher():
    chart = Chart([Series("d", [0, 1, 2], [1e-15, 1e-9, 1e-3], "mine", points=True)], "d", "step")
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', chart.draw(400, 300))]
    assert heights == sorted(heights, reverse=True) and len(set(heights)) == 3
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)


def test_source_lines_are_shown_where_the_file_can_be_read(tmp_path):
    source = tmp_path / "port.py"
    source.write_text("import jax\n\n\ndef f(x):\n    return jax.nn.gelu(x)\n")
    report = explained()
    report.findings[0].jax = f"{source}:5"
    assert "return jax.nn.gelu(x)" in parsed(page(report))


def test_the_same_is_said_in_one_sentence():
    text = parsed(page(Report("same", True, 1e-15, 1e-15, operations=operations([1e-16] * 3))))
    assert "The port computes what the reference computes." in text
    assert "Findings" not in text


def test_a_finding_is_marked_where_it_is():
    text = page(explained())
    marks = re.findall(r'<g class="mark">.*?</g>', text, flags=re.S)
    assert len(marks) == 2  # once for wide, once for narrow screens; "head" is not an operation
    x = {re.search(r'<line x1="([\d.]+)"', m)[1] for m in marks}
    lost = re.findall(r'<rect class="bad point" x="([\d.]+)"', text)
    assert all(any(abs(float(a) - float(b) - 3) < 0.2 for b in lost) for a in x)


def test_undecided_and_what_is_said_first_are_the_headline():
    report = Report("undecided", False, 0.0, 0.0, reasons=["the logits are NaN", "a mask <b>"])
    text = parsed(page(report))
    assert "UNDECIDED" in text and "The logits are NaN." in text and "a mask <b>" in text
    assert '<header class="warn">' in page(report)
    report = explained()
    report.reasons = ["the port as it runs returns NaN"]
    text = parsed(page(report))
    assert "The port as it runs returns NaN." in text and "in 2 differences, 1 without" in text


def test_outputs_native_runs_and_proofs_are_shown():
    report = explained()
    report.outputs = [
        Output(
            "logits", "0", (2, 9, 4), (2, 4, 9), True, 1e-3, 2e-16, math.inf, (0, 2, 1), "moved"
        ),
        Output("<aux>", None, (3,), None, compared=False, note="the port returns none"),
    ]
    report.native = Native(3.1e-7, None, "float32", "bfloat16", "no <GPU>")
    report.verified = [Draw("weights", {"logits": 4e-16}, "drawn once")]
    report.findings[0].fix = "approximate=False"
    report.findings[0].torch_line = "model.py:31"
    text = parsed(page(report))
    for word in (
        "logits (0 in the JAX model)",
        "(2, 9, 4)",
        "axes of logits (0 in the JAX model) are in another order",
        "not compared. the port returns none",
        "PyTorch (float32) 3.1e-07 from float64, JAX (bfloat16) did not run; no <GPU>",
        "logits 4.0e-16",
        "drawn once",
        "fix in port.py:3",
        "approximate=False",
        "model.py:31",
    ):
        assert word in text, word


def test_with_jax_as_the_reference_the_page_speaks_of_the_pytorch_model():
    report = explained()
    finding = replace(report.findings[0], text="the port computes tanh; the reference erf")
    report = replace(report, reference="jax", findings=[finding], explained=True, remaining=0.0)
    text = parsed(page(report))
    assert "The JAX model is the PyTorch model with this edit." in text
    assert "the JAX model computes tanh; the PyTorch model erf" in text
    body = text[text.index("DIFFERENT, EXPLAINED") :]
    assert "the reference" not in body and "the port" not in body


def test_a_name_that_is_not_unicode_is_written(tmp_path):
    report = explained()
    report.findings[0].jax = "\udcff.py:3"
    report.to_html(tmp_path / "report.html")
    assert "\\udcff.py:3" in (tmp_path / "report.html").read_text("utf-8")
