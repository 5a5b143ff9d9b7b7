"""The page of a report: whole, well formed, and without a need for anything else."""

import html
import itertools
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from twinvit.pages.svg import Chart, Mark, Series
from twinvit.port.html import page
from twinvit.port.report import Downcast, Draw, Finding, Input, Native, Operation, Output, Report

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
        narrowings=[Downcast("jax", "attention.py:288", "float32", 3e-8)],
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


def drawn():
    """A report whose operations differed and are rounding with the edits, two without a value."""
    report = explained()
    report.operations_after = operations([0.0, 1e-16, 2e-16, 3e-16, 4e-16, 5e-16])
    report.models = {"torch": "Net", "jax": "apply"}
    report.inputs = [Input("tokens", (2, 16), "int64")]
    report.seed, report.command = 7, "twinvit port explain a:b c:d"
    return report


def test_the_title_and_the_top_say_what_was_compared():
    text = page(drawn())
    title = re.search(r"<title>(.*?)</title>", text)[1]
    top = text[text.index("<header") : text.index("</header>")]
    for word in ("Net (PyTorch)", "apply (JAX)", "tokens int64 (2, 16)", "seed 7"):
        assert word in title and word in top, word
    assert "twinvit port explain a:b c:d" in title and "twinvit port explain a:b c:d" in top


def test_findings_come_before_the_picture_and_what_was_not_seen_after_it():
    text = page(drawn())
    places = [
        text.index(f"<h2>{title}")
        for title in ("Findings", "Distance through", "Not seen", "Downcasts", "How it was")
    ]
    assert places == sorted(places)


def test_the_proof_is_drawn_below_what_differed():
    (picture,) = re.findall(r'<div class="wide">(.*?)</div>', page(drawn()), flags=re.S)
    before = float(re.search(r'class="bad point" x="[\d.]+" y="([\d.]+)"', picture)[1])
    after = re.findall(r'<polygon class="good point" points="[\d.]+,([\d.]+) ', picture)
    assert len(after) == 2  # of what differed: the equal ones are drawn once
    assert all(float(y) > before + 100 for y in after)
    no_edits = drawn()
    no_edits.operations_after = []
    assert "good point" not in page(no_edits)


def test_operations_without_a_value_stand_below_the_axis():
    (picture,) = re.findall(r'<div class="wide">(.*?)</div>', page(drawn()), flags=re.S)
    crosses = [float(y) + 3 for y in re.findall(r'class="cross bad" d="M[\d.]+ ([\d.]+)', picture)]
    floor = max(float(y) for y in re.findall(r'class="grid".*?y1="([\d.]+)"', picture))
    assert len(crosses) == 2 and all(y > floor for y in crosses)
    assert "no value of its size in the port" in page(drawn())


@pytest.mark.parametrize("count", [2, 12, 30])
def test_numbers_do_not_overlap_at_400_px(count):
    marks = [Mark(i // 3, 10.0 ** -(i % 2), str(i)) for i in range(count)]
    chart = Chart([Series("d", [0, 60], [1e-16, 1.0], "mine")], "d", "step", marks=marks)
    places = [
        (float(x), float(y))
        for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="9"', chart.draw(370, 320))
    ]
    assert len(places) == count
    assert all(0 <= x <= 370 and 0 <= y <= 320 for x, y in places)
    pairs = itertools.combinations(places, 2)
    assert min(math.dist(a, b) for a, b in pairs) >= 18


def test_both_sides_stand_side_by_side_with_what_to_write(tmp_path):
    (tmp_path / "net.py").write_text("def f(x):\n    return gelu(x)\n")
    (tmp_path / "port.py").write_text("def g(x):\n    return jax.nn.gelu(x)\n")
    report = drawn()
    report.findings[0].torch_line = f"{tmp_path}/net.py:2"
    report.findings[0].jax = f"{tmp_path}/port.py:2"
    report.findings[0].fix = "approximate=False"
    sides = page(report).split('<div class="side')[2:4]  # "sides" comes first
    assert "PyTorch, the reference" in sides[0] and "<b>    2 &gt; " in sides[0]
    assert "JAX, the port" in sides[1] and "jax.nn.gelu(x)</b>\n<ins>" in sides[1]
    assert "fix: approximate=False</ins>" in sides[1] and "<ins>" not in sides[0]
    turned = page(replace(report, reference="jax"))
    right = turned.split('<div class="side')[2:4]
    assert "JAX" in right[0] and "PyTorch, to be changed" in right[1]
    assert "fix: approximate=False" in right[1] and "<ins>" not in right[0]


def test_what_every_comparison_leaves_out_is_folded_after_what_these_inputs_hide():
    report = drawn()
    report.unseen = ["gradients are not compared (x)", "no position is masked", *[]]
    text = page(report)
    part = text[text.index("<h2>Not seen") : text.index("<h2>Downcasts")]
    assert part.index("no position is masked") < part.index("<details>")
    assert part.index("<details>") < part.index("gradients are not compared")
    words = str(report)
    assert words.index("no position is masked") < words.index("gradients are not compared")


def test_the_costliest_narrowing_leads():
    report = drawn()
    costs = [1e-9, None, 1e-3, 1e-5]
    report.narrowings = [Downcast("jax", f"at_{c}.py:1", "float16", c) for c in costs]
    for text in (page(report), str(report)):
        text = text[text.index("Downcasts") :]
        order = [text.index(f"at_{c}.py") for c in (1e-3, 1e-5, 1e-9, None)]
        assert order == sorted(order)


def test_a_notebook_shows_the_page_in_a_frame():
    shown = drawn()._repr_html_()
    assert shown.startswith("<iframe srcdoc=") and shown.count("<iframe") == 1
    inside = html.unescape(re.search(r'srcdoc="(.*?)"', shown, flags=re.S)[1])
    assert inside == page(drawn()) or abs(len(inside) - len(page(drawn()))) < 9  # the minute


def test_colours_are_for_light_dark_and_print():
    from twinvit.pages.style import STYLE

    assert STYLE.count("--good:") == 3 and "@media print" in STYLE
    assert "prefers-color-scheme: dark" in STYLE and "details-content" in STYLE
