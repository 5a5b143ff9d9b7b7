"""A report on a port as one HTML page."""

from __future__ import annotations

import datetime
import math
import re
from itertools import groupby
from pathlib import Path

from twinvit.pages import html
from twinvit.pages.svg import Band, Chart, Mark, Series
from twinvit.port.report import Draw, Finding, Operation, Output, Report
from twinvit.port.report_text import (
    differing_layouts,
    edited_side,
    lines_of,
    native_text,
    place_to_change,
    rounding,
    roundings,
)
from twinvit.port.sides import NAMES, turned

KINDS = {
    "cause": "proven cause",
    "precision": "a constant in a narrower type",
    "weights": "weights",
    "expression": "an expression of the port's, proven",
    "unknown": "cause not known",
}
TONES = {"same": "good", "different": "bad", "undecided": "warn"}


def page(report: Report) -> str:
    """The report as a page that needs no network."""
    badge, sentence, tone = _verdict(report)
    body = [html.header(badge, sentence, _lead(report), tone)]
    shown = [op for op in report.operations if op.status]
    if shown:
        body.append(html.section(*_picture(report, shown)))
    if report.findings:
        findings = [_finding(i, f, report) for i, f in enumerate(report.findings, 1)]
        body.append(html.section("Findings", *findings))
    body += _proofs(report)
    if report.narrowings:
        rows = [
            (
                n.side,
                n.where,
                n.dtype,
                "not measured" if n.cost is None else number(n.cost),
                {True: "none", False: "as well", None: "not known"}[n.alone],
            )
            for n in report.narrowings
        ]
        body.append(
            html.section(
                "Narrowings",
                "<p class='lead'>Computed in a narrower type than their inputs; ignored above, "
                "where both sides ran in float64. The cost is what each alone does to the "
                "outputs.</p>",
                html.table(("side", "where", "to", "cost", "other side"), rows, numbers=(3,)),
            )
        )
    if report.unseen:
        body.append(_texts("Not seen with these inputs", report.unseen, report))
    if report.notes:
        body.append(_texts("How it was compared", report.notes, report))
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    made = [f"{name} {version}" for name, version in report.versions.items() if version]
    body.append(f"<footer>{' · '.join([*(made or html.versions()), now])}</footer>")
    return html.document(f"{badge}: {sentence}", body)


def number(value: float) -> str:
    """A distance, in words where it is no number."""
    if math.isnan(value):
        return "not a number"
    return "no value of its size" if math.isinf(value) else f"{value:.1e}"


def _verdict(report: Report) -> tuple[str, str, str]:
    badge = report.verdict.upper()
    tone = TONES[report.verdict]
    if report.verdict == "different" and report.explained and report.findings:
        badge, tone = "DIFFERENT, EXPLAINED", "warn"
    if report.reasons:
        sentence = _capital(report.reasons[0].removesuffix(".")) + "."
    else:
        sentence = _sentence(report)
    return badge, sentence, tone


def _sentence(report: Report) -> str:
    """The verdict in one sentence."""
    names = ("the port", "the reference")
    if report.reference == "jax":
        names = (NAMES["torch"], NAMES["jax"])
    changed, right = _capital(names[0]), names[1]
    count = len(report.findings)
    if report.same:
        return f"{changed} computes what {right} computes."
    if report.explained:
        edits = "this edit" if count == 1 else f"these {count} edits"
        if report.reference == "jax":
            return f"{_capital(NAMES['jax'])} is {NAMES['torch']} with {edits}."
        return f"The port is the reference with {edits}."
    unknown = sum(f.kind == "unknown" for f in report.findings)
    rest = f", {unknown} without a known cause" if unknown else ""
    differences = "1 difference" if count == 1 else f"{count} differences"
    return f"{changed} differs from {right} in {differences}{rest}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lead(report: Report) -> list[str]:
    what = "Parameters" if _by_step(report) else "Outputs"
    if report.same:
        first = f"{what} are {number(report.distance)} apart: rounding."
    else:
        first = (
            f"{what} are {number(report.distance)} apart (relative L2), and "
            f"{number(report.remaining)} with the edits made to {edited_side(report)}."
        )
    further = [reason for reason in report.reasons[1:]]
    if report.reasons and report.findings:
        further.append(_sentence(report))
    alone = rounding(report)
    said = [f"{_capital(alone)}."] if alone else []
    return [*said, first, *further, *differing_layouts(report)]


def _texts(title: str, texts: list[str], report: Report) -> str:
    return html.section(title, html.bullets([text for text in texts]))


def _proofs(report: Report) -> list[str]:
    """Each output, both models as they run, and the proof on other inputs and weights."""
    sections = []
    if report.outputs:
        titles = ("output", "PyTorch", "JAX", "apart", "with the edits", "worst, in roundings", "")
        rows = [_row(output) for output in report.outputs]
        sections.append(html.section("Outputs", html.table(titles, rows, numbers=(3, 4, 5))))
    if report.native is not None:
        sections.append(html.section("As the models run", html.bullets([native_text(report)])))
    if report.verified:
        drawn = [_draw_row(d, report) for d in report.verified]
        sections.append(
            html.section("Verified", html.table(("drawn", "apart", ""), drawn, numbers=()))
        )
    return sections


def _row(output: Output) -> tuple[str, ...]:
    shapes = [
        "none" if shape is None else str(tuple(shape))
        for shape in (output.shape_torch, output.shape_jax)
    ]
    if not output.compared:
        return (output.name, *shapes, "", "", "", f"not compared. {output.note}".strip())
    far = (number(output.before), number(output.after), roundings(output.worst))
    return (output.name, *shapes, *far, output.note)


def _draw_row(draw: Draw, report: Report) -> tuple[str, ...]:
    far = ", ".join(f"{n or 'outputs'} {number(d)}" for n, d in draw.distances.items())
    return (draw.kind, far, draw.note)


def _picture(report: Report, shown: list[Operation]) -> list[str]:
    if _by_step(report):
        return _steps(shown)
    x = [op.index for op in shown]
    series = []
    for status, label, style, alike in (
        ("found", "equal in the port", "mine", ""),
        ("passed", "fused or split in the port, equal further on", "warn", "ring"),
        ("lost", "different", "bad", "square"),
    ):
        ops = [op for op in shown if op.status == status]
        if ops:
            titles = [f"{_place(op)}: {number(op.distance)}" for op in ops]
            xs, ys = [op.index for op in ops], [op.distance for op in ops]
            series.append(
                Series(turned(label, report.reference), xs, ys, style, False, True, titles, alike)
            )
    chart = Chart(
        series=series,
        y_label=turned("relative L2 distance to the nearest value in the port", report.reference),
        x_label=turned("operations of the reference, in order", report.reference),
        bands=[Band("rounding (nudged by one eps)", x, [op.noise for op in shown])],
        marks=_marks(report, shown),
        groups=_groups(shown),
        description=turned("Distance of every operation from the port's values", report.reference),
    )
    caption = (
        "Before any edit. A number marks a finding of the list below; everything after the first "
        "different operation differs because of it."
        if report.findings
        else "Every value of the reference that says something, and how near the port's is."
    )
    return ["Distance through the network", html.figure(chart, turned(caption, report.reference))]


def _by_step(report: Report) -> bool:
    return bool(report.operations) and report.operations[0].scope.startswith("step ")


def _steps(shown: list[Operation]) -> list[str]:
    """An optimizer's report: its operations are steps."""
    x = [op.index + 1 for op in shown]
    tone = "mine" if all(op.status == "found" for op in shown) else "bad"
    distances = [op.distance for op in shown]
    titles = [f"{op.scope}: {number(op.distance)}" for op in shown]
    chart = Chart(
        series=[Series("distance", x, distances, tone, True, True, titles)],
        y_label="relative L2 distance of the parameters",
        x_label="step",
        bands=[Band("rounding (reference, nudged by one eps)", x, [op.noise for op in shown])],
        description="Distance of the parameters after each step",
    )
    return ["Distance by step", html.figure(chart, "Both sides stepped the same gradients.")]


def _place(op: Operation) -> str:
    return f"{op.scope}: {op.name}" if op.scope else op.name


def _marks(report: Report, shown: list[Operation]) -> list[Mark]:
    marks, taken = [], set()
    for i, finding in enumerate(report.findings, 1):
        scope, _, name = finding.torch.partition(": ")
        here = [op for op in shown if op.scope == scope]
        named = [op for op in here if name.split(" ")[0] == op.name]
        at = sorted(named or here, key=lambda op: op.status != "lost")
        if at and at[0].index not in taken:
            taken.add(at[0].index)
            marks.append(Mark(at[0].index, at[0].distance, str(i), finding.text))
    return marks


def _groups(shown: list[Operation]) -> list[tuple[float, float, str]]:
    """Runs of operations of the same outer modules: "layers.0", "head"."""

    def outer(op: Operation) -> str:
        parts = op.scope.split(".")
        number = next((i for i, p in enumerate(parts) if p.isdigit()), None)
        return ".".join(parts[: number + 1]) if number is not None else parts[0]

    groups: list[tuple[float, float, str]] = []
    for name, ops in groupby(shown, key=outer):
        indices = [op.index for op in ops]
        groups.append((indices[0], indices[-1], name))
    return groups


def _finding(i: int, finding: Finding, report: Report) -> str:
    title = f"{i}. {finding.cause or KINDS[finding.kind]}"
    pairs = [("kind", html.escape(KINDS[finding.kind]))] if finding.cause else []
    if finding.fix:
        at = place_to_change(finding, report.reference)
        pairs.append((f"fix in {at}" if at else "fix", html.code(finding.fix)))
    mine, theirs = ("reference", "port") if report.reference == "torch" else ("PyTorch", "JAX")
    lines = lines_of(finding, "torch")
    pairs.append((mine, html.code(f"{finding.torch}  {lines}".strip()) + _sources(lines)))
    if finding.jax:
        lines = lines_of(finding, "jax")
        pairs.append((theirs, html.code(lines) + _sources(lines)))
    if len(finding.places) > 1:
        places = ", ".join(finding.places)
        pairs.append((f"{len(finding.places)} places", html.code(places)))
    pairs.append(
        (
            "distance there",
            f"{number(finding.before)} without the edit, {number(finding.after)} with it",
        )
    )
    return (
        f'<div class="finding"><h3>{html.escape(title)}</h3>'
        f"<p>{html.escape(finding.text)}</p>"
        f"{html.definitions(pairs)}</div>"
    )


def _sources(places: str) -> str:
    """The source lines around each "path/file.py:118" of a text."""
    found = re.findall(r"([^\s:(),]+\.py):(\d+)", places)
    return "".join(_source(Path(path), int(line)) for path, line in found)


def _source(path: Path, line: int) -> str:
    """The source lines around a line where that file can be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    first = max(1, line - 2)
    return html.source_lines(lines[first - 1 : line + 1], first, line)
