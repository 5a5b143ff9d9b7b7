"""A report as annotations of a GitHub workflow: one line for each place to look at."""

from __future__ import annotations

import re
from collections.abc import Iterator

from twinvit.port.report import Finding, Report
from twinvit.port.report_text import place_to_change, verdict_line

_LEVELS = {"same": "notice", "different": "error", "undecided": "warning"}
_PLACE = re.compile(r"([^\s:(),]+\.py):(\d+)")


def workflow_commands(report: Report) -> Iterator[str]:
    """Workflow commands, "::error file=port.py,line=3,title=gelu_tanh::..." one a line.

    The verdict comes first unless it is "same" without a reason; then each finding at every line
    of the side that is to be changed, or without a place where none is known.
    """
    level = _LEVELS[report.verdict]
    if not report.same or report.reasons:
        title = f"{report.models.get('jax') or 'port'}: {report.verdict}"
        yield _command(level, verdict_line(report), title=title)
    for finding in report.findings:
        yield from _finding(finding, report)


def _finding(finding: Finding, report: Report) -> Iterator[str]:
    level = "warning" if finding.kind == "precision" else "error"
    text = finding.text + (f"\nfix: {finding.fix}" if finding.fix else "")
    title = finding.cause or finding.kind
    places = _PLACE.findall(place_to_change(finding, report.reference))
    for file, line in dict.fromkeys(places):
        yield _command(level, text, file=file, line=line, title=title)
    if not places:
        yield _command(level, f"{text}\nat {finding.torch}", title=title)


def _command(level: str, message: str, **properties: str) -> str:
    told = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    return f"::{level} {told}::{_data(message)}"


def _data(text: str) -> str:
    """A message as a workflow command holds it."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """A property's value as a workflow command holds it."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")
