"""A report in words, for a terminal and for a failing test."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator

from twinvit.port import report_facts as facts
from twinvit.port.report import SHOWN, Downcast, Finding, Output, Report
from twinvit.port.sides import NAMES

LINES = 6  # of a finding that are printed; all are in the JSON report


def lines(report: Report, c: dict[str, str]) -> Iterator[str]:
    """The report line by line; `c` holds what switches colours on and off."""
    yield from head(report, c)
    told = facts.line(report)
    if told:
        yield f"   {told}"
    for number, finding in enumerate(report.findings, 1):
        yield ""
        yield from _finding(number, finding, report, c)
    if not report.same:
        yield ""
        yield (
            f"outputs: {distance(report.distance)} apart; {distance(report.remaining)} "
            f"with the edits made to {edited_side(report)}"
        )
    yield from _table(report.outputs)
    yield from _proofs(report)
    if report.narrowings:
        yield ""
        yield "Downcasts (ignored above: both sides ran in float64):"
        for narrow in facts.costliest_first(report.narrowings)[:SHOWN]:
            yield f"   {narrow.side}: {narrow.where} to {narrow.dtype}{costs(narrow)}"
        if len(report.narrowings) > SHOWN:
            yield f"   and {len(report.narrowings) - SHOWN} more"
    for title, texts in (
        ("Not seen with these inputs:", [t for kind in facts.by_kind(report.unseen) for t in kind]),
        ("Notes:", report.notes),
    ):
        if texts:
            yield ""
            yield title
            for text in texts:
                yield f"   {text}"


def head(report: Report, c: dict[str, str]) -> Iterator[str]:
    """The verdict and its first reason in one line, and each further reason in its own line."""
    yield verdict_line(report, c)
    for reason in report.reasons[1:]:
        yield f"   {reason}"
    if report.reasons and report.verdict == "different" and report.findings:
        yield f"   {_explained(report)}"
    rounded = rounding(report)
    if report.same and (report.reasons or rounded):
        yield f"   {_same(report)}"
    if rounded and not report.same:
        yield f"   {rounded}"


def verdict_line(report: Report, c: dict[str, str] | None = None) -> str:
    """SAME, DIFFERENT or UNDECIDED with what is said first, on one line."""
    c = c or colours(on=False)
    word = f"{c['good' if report.same else 'bad']}{report.verdict.upper()}{c['end']}"
    layout = "".join(f"; {text}" for text in differing_layouts(report))
    if report.verdict == "undecided":
        return f"{word}: {_first(report)}{layout}"
    if report.reasons:
        return f"{word}  {_first(report)}{layout}"
    if report.same:
        rounded = rounding(report)
        said = f" in float64; {rounded}" if rounded else f"  {_same(report)}"
        return f"{word}{said}{layout}"
    return f"{word}, {_explained(report)}{layout}"


def rounding(report: Report) -> str:
    """What the side that is to be changed rounds alone, in words; "" if it does not."""
    found = report.rounded_alone()
    if not found:
        return ""
    first, rest = found[0], len(found) - 1
    sides = ("the port", "the reference")
    if report.reference == "jax":
        sides = (NAMES["torch"], NAMES["jax"])
    place = first.lines[0] if first.lines else first.where
    far = "by an unknown amount" if first.cost is None else f"by {distance(first.cost)}"
    more = f" (and {rest} more, listed below)" if rest else ""
    return (
        f"{sides[0]}'s {first.dtype} at {place} moves the outputs {far}, and {sides[1]} has none "
        f"there{more}"
    )


def costs(narrow: Downcast) -> str:
    """What a downcast costs, to be appended to its location."""
    if narrow.cost is None:
        return ""
    text = f", costs {distance(narrow.cost)}"
    if narrow.agreement is not None and narrow.divergence is not None:
        text += (
            f" (logits: {distance(narrow.largest or 0.0)} at most, divergence "
            f"{distance(narrow.divergence)}, the same largest one in "
            f"{100 * narrow.agreement:.4g} % of positions)"
        )
    return text + (", the other side has none there" if narrow.alone else "")


def differing_layouts(report: Report) -> list[str]:
    """Outputs whose axes had to be permuted, or whose shapes differ, one text each."""
    found = []
    for output in report.outputs:
        mine, theirs = output.shape_torch, output.shape_jax
        if output.permuted is not None:
            found.append(
                f"the axes of {output.name} are in another order: the JAX model's are "
                f"the PyTorch model's {_shape(output.permuted)}"
            )
            if mine is not None and sorted(output.permuted) == list(range(len(mine))):
                mine = tuple(mine[axis] for axis in output.permuted)
        if output.compared and None not in (mine, theirs) and mine != theirs:
            found.append(
                f"{output.name} has shape {_shape(output.shape_torch)} in the PyTorch model and "
                f"{_shape(theirs)} in the JAX model"
            )
    return found


def edited_side(report: Report) -> str:
    """The side that the edits were made to, in words."""
    return "the reference" if report.reference == "torch" else NAMES["torch"]


def distance(value: float) -> str:
    """A distance as it is printed."""
    return f"{value:.1e}"


def place_to_change(finding: Finding, reference: str) -> str:
    """Where the side that is to be changed has the difference, "file.py:12, file.py:30" where it is
    known."""
    if reference == "torch":
        return lines_of(finding, "jax")
    return lines_of(finding, "torch") or finding.torch


def lines_of(finding: Finding, side: str) -> str:
    """All lines of a finding in the model of "torch" or "jax", "file.py:12, file.py:30"."""
    first = finding.jax if side == "jax" else finding.torch_line
    lines = finding.jax_lines if side == "jax" else finding.torch_lines
    return ", ".join(lines[:LINES]) + (", ..." if len(lines) > LINES else "") if lines else first


def colours(on: bool | None = None) -> dict[str, str]:
    """What switches colours on and off; nothing where standard output is no terminal."""
    if on is None:
        on = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    if on:
        return {"good": "\033[32m", "bad": "\033[31m", "bold": "\033[1m", "end": "\033[0m"}
    return dict.fromkeys(("good", "bad", "bold", "end"), "")


def _first(report: Report) -> str:
    return report.reasons[0]


def _same(report: Report) -> str:
    if report.reference == "torch":
        text = "the port computes what the reference computes"
    else:
        text = f"{NAMES['torch']} computes what {NAMES['jax']} computes"
    return f"{text}: outputs {distance(report.distance)} apart"


def _explained(report: Report) -> str:
    if not report.explained:
        return "not fully explained"
    n = len(report.findings)
    edits = "this edit" if n == 1 else f"these {n} edits"
    if report.reference == "torch":
        return f"explained: the port = the reference + {edits}"
    return f"explained: {NAMES['jax']} = {NAMES['torch']} + {edits}"


def _finding(number: int, finding: Finding, report: Report, c: dict[str, str]) -> Iterator[str]:
    label = finding.cause or finding.kind
    where = place_to_change(finding, report.reference)
    yield f"{c['bold']}{number}. {label}{c['end']}{f'  {where}' if where else ''}"
    for text in finding.text.splitlines():
        yield f"   {text}"
    if finding.fix:
        yield f"   fix: {finding.fix}"
    line = f"  ({lines_of(finding, 'torch')})" if finding.torch_line else ""
    if report.reference == "torch":
        yield f"   reference: {finding.torch}{line}"
    else:
        yield f"   PyTorch: {finding.torch}{line}"
        if finding.jax:
            yield f"   JAX: {lines_of(finding, 'jax')}"
    if len(finding.places) > 1:
        shown = ", ".join(finding.places[:6]) + (", ..." if len(finding.places) > 6 else "")
        yield f"   {len(finding.places)} places: {shown}"
    yield (
        f"   distance there: {distance(finding.before)} "
        f"before the edit, {distance(finding.after)} after"
    )


def _table(outputs: list[Output]) -> Iterator[str]:
    """The outputs, where there are several or there is something to say of the one."""
    if len(outputs) < 2 and all(o.compared and not o.note for o in outputs):
        return
    yield ""
    yield "Outputs (relative L2 apart, with the edits; largest difference in roundings):"
    width = max(len(o.name) for o in outputs)
    for o in outputs:
        shape = _shape(o.shape_torch if o.shape_torch is not None else o.shape_jax)
        if o.compared:
            said = f"{distance(o.before)}, {distance(o.after)}; {roundings(o.worst)}"
        else:
            said = "not compared"
        yield f"   {o.name:{width}}  {shape}  {said}{f'  ({o.note})' if o.note else ''}"


def roundings(worst: float) -> str:
    """The largest difference in units of rounding, as it is printed."""
    if math.isinf(worst):
        return "inf (NaN or infinity on one side)"
    return f"{worst:.1f}" if worst < 1000 else f"{worst:.1e}"


def native_text(report: Report) -> str:
    """What both models are from float64 as they run; "" where that was not measured."""
    native = report.native
    if native is None:
        return ""
    sides = []
    for name, far, dtype in (
        ("PyTorch", native.torch, native.torch_dtype),
        ("JAX", native.jax, native.jax_dtype),
    ):
        kind = f" ({dtype})" if dtype else ""
        said = "did not run" if far is None else f"{distance(far)} from float64"
        sides.append(f"{name}{kind} {said}")
    return ", ".join(sides) + (f"; {native.text}" if native.text else "")


def _proofs(report: Report) -> Iterator[str]:
    if report.native is not None:
        yield ""
        yield f"As the models run: {native_text(report)}"
    if report.verified:
        yield ""
        yield "Verified:"
    for draw in report.verified:
        what = {"given": "on the inputs that were given", "inputs": "on other inputs"}.get(
            draw.kind, f"with other {draw.kind}"
        )
        far = ", ".join(f"{n or 'outputs'} {distance(d)}" for n, d in draw.distances.items())
        note = f"; {draw.note}" if draw.note else ""
        yield f"   {what}: {f'{far} apart' if far else 'nothing compared'}{note}"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else f"({', '.join(map(str, shape))})"
