"""One finding on a report's page: both sides' lines side by side, and what to write."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from twinvit.pages import html
from twinvit.port.report import Finding, Report
from twinvit.port.report_facts import FRAMEWORKS, number
from twinvit.port.report_text import lines_of, place_to_change

KINDS = {
    "cause": "proven cause",
    "precision": "a constant in a narrower type",
    "weights": "weights",
    "expression": "an expression of the port's, proven",
    "unknown": "cause not known",
}
_PLACE = re.compile(r"([^\s:(),]+\.py):(\d+)")


def card(number: int, finding: Finding, report: Report) -> str:
    """A finding: its name, its text, the two sides, the line to write, and the proof."""
    kind = KINDS[finding.kind]
    if report.reference == "jax":
        kind = kind.replace("the port's", "the JAX model's")
    name = finding.cause or kind
    beside = f'<span class="kind">{html.escape(kind)}</span>' if finding.cause else ""
    changed = "jax" if report.reference == "torch" else "torch"
    right = "torch" if changed == "jax" else "jax"
    mine, theirs = _side(finding, report, right), _side(finding, report, changed, finding.fix)
    fix = "" if "<ins>" in theirs else _fix(finding, report)
    return (
        f'<div class="finding"><h3><span class="digit">{number}</span>{html.escape(name)}{beside}'
        f"</h3><p>{html.escape(finding.text)}</p>"
        f'<div class="sides">{mine}{theirs}</div>{fix}{_proof(finding)}</div>'
    )


def _side(finding: Finding, report: Report, side: str, write: str = "") -> str:
    """Where one model has the difference, with its source lines where they can be read."""
    changed = side == ("jax" if report.reference == "torch" else "torch")
    role = {("torch", False): "the reference", ("jax", True): "the port"}.get((side, changed))
    title = FRAMEWORKS[side] + (f", {role}" if role else ", to be changed" if changed else "")
    lines = lines_of(finding, side)
    places = [finding.torch] if side == "torch" else []
    places += lines.split(", ") if lines else []
    found = [_source(path, line, write) for path, line in _PLACE.findall(lines)]
    sources = [s for s in found if s]
    rest = len(sources) - 1
    more = html.folded(f"{rest} more place{'s' * (rest > 1)}", *sources[1:]) if rest > 0 else ""
    place = "<br>".join(html.code(text) for text in places) or "no line is known"
    return (
        f'<div class="side{" change" if changed else ""}"><h4>{html.escape(title)}</h4>'
        f"{place}{''.join(sources[:1])}{more}</div>"
    )


def _fix(finding: Finding, report: Report) -> str:
    if not finding.fix:
        return ""
    at = place_to_change(finding, report.reference)
    where = f" in {html.escape(at)}" if at else ""
    return f'<div class="write">fix{where}: {html.code(finding.fix)}</div>'


def _proof(finding: Finding) -> str:
    places = ""
    if len(finding.places) > 1:
        places = f"<br>{len(finding.places)} places: {html.code(', '.join(finding.places))}"
    return (
        f'<p class="proof">distance there: <i>{number(finding.before)}</i> before the edit, '
        f"<b>{number(finding.after)}</b> with it{places}</p>"
    )


def _source(path: str, line: str, write: str) -> str:
    """The source lines around a line where that file can be read."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    at = int(line)
    if not 1 <= at <= len(lines):
        return ""
    first = max(1, at - 2)
    shown = textwrap.dedent("\n".join(lines[first - 1 : at + 1])).split("\n")
    return html.source_lines(shown, first, at, write and f"fix: {write}")
