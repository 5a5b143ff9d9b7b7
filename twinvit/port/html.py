"""A report on a port as one HTML page."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from twinvit.pages import html
from twinvit.port import report_facts as facts
from twinvit.port.html_finding import card
from twinvit.port.html_picture import by_step, picture
from twinvit.port.report import SHOWN, Draw, Output, Report
from twinvit.port.report_facts import number
from twinvit.port.report_text import (
    differing_layouts,
    edited_side,
    native_text,
    rounding,
    roundings,
)
from twinvit.port.sides import NAMES

TONES = {"same": "good", "different": "bad", "undecided": "warn"}


def page(report: Report) -> str:
    """The report as a page that needs no network."""
    badge, sentence, tone = _verdict(report)
    return html.document(_title(report, badge), [*_body(report, badge, sentence, tone)])


def frame(report: Report) -> str:
    """The page in its own frame, as a notebook shows it."""
    inside = html.escape(page(report), quote=True)
    return (
        f'<iframe srcdoc="{inside}" title="{html.escape(_verdict(report)[1], quote=True)}" '
        'style="width: 100%; height: 640px; border: 0"></iframe>'
    )


def _body(report: Report, badge: str, sentence: str, tone: str) -> Iterator[str]:
    yield html.header(badge, sentence, _lead(report), tone, facts.roles(report), _facts(report))
    if report.findings:
        findings = [card(i, f, report) for i, f in enumerate(report.findings, 1)]
        yield html.section("Findings", *findings)
    yield picture(report)
    yield from _proofs(report)
    if report.unseen:
        specific, fixed = facts.by_kind(report.unseen)
        parts = [html.bullets(specific)] if specific else []
        if fixed:
            parts.append(html.folded("Left out of this comparison", html.bullets(fixed)))
        yield html.section("Not seen with these inputs", *parts)
    if report.narrowings:
        yield _narrowings(report)
    if report.notes:
        folded = html.folded(f"{len(report.notes)} notes", html.bullets(report.notes))
        yield html.section("How it was compared", folded)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    made = [f"{name} {version}" for name, version in report.versions.items() if version]
    yield f"<footer>{' · '.join([*(made or html.versions()), now])}</footer>"


def _title(report: Report, badge: str) -> str:
    """The page's title: the verdict, and what it is of."""
    about = [facts.models(report), facts.inputs(report)]
    about += [f"seed {report.seed}"] if report.seed is not None else []
    about += [report.command]
    told = "; ".join(part for part in about if part)
    return f"{badge}: {told or _verdict(report)[1]}"


def _facts(report: Report) -> list[tuple[str, str]]:
    """Inputs, seed and command, where the report knows them."""
    told = ", ".join(part for part in (facts.inputs(report), facts.drawn(report)) if part)
    pairs = [("inputs", html.escape(told))] if told else []
    return pairs + ([("command", html.code(report.command))] if report.command else [])


def _narrowings(report: Report) -> str:
    """Computations in narrower types, the costliest first; beyond the first ones folded."""
    rows = [
        (
            n.side,
            n.where,
            n.dtype,
            "not measured" if n.cost is None else number(n.cost),
            {True: "none", False: "as well", None: "not known"}[n.alone],
        )
        for n in facts.costliest_first(report.narrowings)
    ]
    columns = ("side", "where", "to", "cost", "other side")
    parts = [html.table(columns, rows[:SHOWN], numbers=(3,))]
    if rows[SHOWN:]:
        rest = html.table(columns, rows[SHOWN:], numbers=(3,))
        parts.append(html.folded(f"{len(rows) - SHOWN} more", rest))
    return html.section(
        "Downcasts",
        "<p class='lead'>Computed in a narrower type than their inputs; ignored above, "
        "where both sides ran in float64. The cost is what each alone does to the "
        "outputs.</p>",
        *parts,
    )


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
    what = "Parameters" if by_step(report) else "Outputs"
    if report.same:
        first = f"{what} are {number(report.distance)} apart: rounding."
    elif not report.findings:
        first = f"{what} are {number(report.distance)} apart (relative L2)."
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
