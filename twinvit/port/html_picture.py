"""The picture of a report's page: how far each operation is from the port, before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from twinvit.pages import html
from twinvit.pages.svg import Band, Chart, Mark, Series, Strip
from twinvit.port.report import Operation, Report
from twinvit.port.report_facts import number
from twinvit.port.sides import turned

BEFORE = (
    ("found", "equal in the port", "mine", ""),
    ("passed", "fused or split in the port, equal further on", "warn", "ring"),
    ("lost", "different", "bad", "square"),
)
AFTER = "with the edits made"


def picture(report: Report) -> str:
    """The section with the picture; "" where there is nothing to draw."""
    shown = [op for op in report.operations if op.status]
    if not shown:
        return ""
    if by_step(report):
        return html.section(*_steps(shown))
    return html.section(*_network(report, shown))


def by_step(report: Report) -> bool:
    """Whether it is an optimizer's report, whose operations are steps."""
    return bool(report.operations) and report.operations[0].scope.startswith("step ")


def _network(report: Report, shown: list[Operation]) -> tuple[str, str]:
    drawn = [op for op in shown if math.isfinite(op.distance)]
    series = []
    for status, label, style, alike in BEFORE:
        ops = [op for op in drawn if op.status == status]
        if ops:
            series.append(_series(turned(label, report.reference), ops, style, alike))
    after = _after(report, shown)
    if after:
        series.append(_series(AFTER, after, "good", "diamond"))
    without = [op for op in shown if not math.isfinite(op.distance)]
    strip = None
    if without:
        label = turned("no value of its size in the port", report.reference)
        titles = [f"{_place(op)}: {number(op.distance)}" for op in without]
        strip = Strip(label, [op.index for op in without], "bad", titles)
    chart = Chart(
        series=series,
        y_label=turned("relative L2 distance to the nearest value in the port", report.reference),
        x_label=turned("operations of the reference, in order", report.reference),
        bands=[
            Band(
                "rounding (nudged by one eps)",
                [op.index for op in shown],
                [op.noise for op in shown],
            )
        ],
        marks=_marks(report, shown),
        groups=_groups(shown),
        description=turned("Distance of every operation from the port's values", report.reference),
        strip=strip,
    )
    return "Distance through the network", html.figure(
        chart, turned(_caption(report, bool(after)), report.reference)
    )


def _after(report: Report, shown: Sequence[Operation]) -> list[Operation]:
    """The operations that differed before the edits, as they are with them."""
    differed = {op.index for op in shown if op.status == "lost"}
    return [
        op
        for op in report.operations_after
        if op.index in differed and op.status and math.isfinite(op.distance)
    ]


def _caption(report: Report, edited: bool) -> str:
    if not report.findings:
        return "Every value of the reference that says something, and how near the port's is."
    text = "A number marks a finding of the list above; what comes after the first different "
    text += "operation differs because of it."
    if edited and report.explained:
        return f"{text} With the edits made to the reference nothing but rounding is left (green)."
    if edited:
        return f"{text} Green: the same operations with the edits of known causes made."
    return text


def _series(label: str, ops: Sequence[Operation], style: str, alike: str) -> Series:
    titles = [f"{_place(op)}: {number(op.distance)}" for op in ops]
    if label == AFTER:
        titles = [f"{title} {AFTER}" for title in titles]
    xs, ys = [op.index for op in ops], [op.distance for op in ops]
    return Series(label, xs, ys, style, False, True, titles, alike)


def _steps(shown: list[Operation]) -> tuple[str, str]:
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
    return "Distance by step", html.figure(chart, "Both sides stepped the same gradients.")


def _place(op: Operation) -> str:
    return f"{op.scope}: {op.name}" if op.scope else op.name


def _marks(report: Report, shown: list[Operation]) -> list[Mark]:
    """A number for each finding, at its operation; one for several there: "2, 3"."""
    at: dict[int, list[int]] = {}
    places: dict[int, Operation] = {}
    for i, finding in enumerate(report.findings, 1):
        scope, _, name = finding.torch.partition(": ")
        here = [op for op in shown if op.scope == scope]
        named = [op for op in here if name.split(" ")[0] == op.name]
        ops = sorted(named or here, key=lambda op: op.status != "lost")
        if ops:
            places[ops[0].index] = ops[0]
            at.setdefault(ops[0].index, []).append(i)
    marks = []
    for index, numbers in at.items():
        text = " ".join(report.findings[i - 1].text for i in numbers)
        label = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}+"
        marks.append(Mark(index, places[index].distance, label, text))
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
