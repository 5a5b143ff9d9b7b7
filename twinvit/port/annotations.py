"""A report as annotations of a GitHub workflow: one line for each location to look at."""

from __future__ import annotations

import re
from collections.abc import Iterator

from twinvit.pages.verdicts import LEVELS, workflow_command
from twinvit.port.report import Finding, Report
from twinvit.port.report_text import place_to_change, verdict_line

_PLACE = re.compile(r"([^\s:(),]+\.py):(\d+)")


def workflow_commands(report: Report) -> Iterator[str]:
    """Workflow commands, "::error file=port.py,line=3,title=gelu_tanh::..." one a line.

    The verdict comes first unless it is "same" without a reason; then each finding at every line
    of the side that is to be changed, or without a location where none is known.
    """
    level = LEVELS[report.verdict]
    if not report.same or report.reasons:
        title = f"{report.models.get('jax') or 'port'}: {report.verdict}"
        yield workflow_command(level, verdict_line(report), title=title)
    for finding in report.findings:
        yield from _finding(finding, report)


def _finding(finding: Finding, report: Report) -> Iterator[str]:
    level = "warning" if finding.kind == "precision" else "error"
    text = finding.text + (f"\nfix: {finding.fix}" if finding.fix else "")
    title = finding.cause or finding.kind
    places = _PLACE.findall(place_to_change(finding, report.reference))
    for file, line in dict.fromkeys(places):
        yield workflow_command(level, text, file=file, line=line, title=title)
    if not places:
        yield workflow_command(level, f"{text}\nat {finding.torch}", title=title)
