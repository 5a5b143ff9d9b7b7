"""Building blocks of a page: the page itself, sections, tables, figures, source lines."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable, Sequence
from html import escape

from twinvit.pages.style import STYLE
from twinvit.pages.svg import Chart, Series


def document(title: str, body: Iterable[str]) -> str:
    """A complete page; `body` are its sections as HTML."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style></head><body><main>",
            *body,
            "</main></body></html>",
            "",
        ]
    )


def header(
    badge: str,
    sentence: str,
    lead: Sequence[str],
    tone: str,
    about: str = "",
    facts: Sequence[tuple[str, str]] = (),
) -> str:
    """The verdict: a word, a sentence, further lines. `tone` is "good", "bad" or "warn"; `about`
    stands over it, `facts` are names and values (HTML) under it."""
    lines = "".join(f'<p class="lead">{escape(line)}</p>' for line in lead)
    over = f'<p class="about">{escape(about)}</p>' if about else ""
    under = f'<div class="facts">{definitions(facts)}</div>' if facts else ""
    return (
        f'<header class="{tone}">{over}<span class="badge">{escape(badge)}</span>'
        f"<h1>{escape(sentence)}</h1>{lines}{under}</header>"
    )


def folded(summary: str, *content: str) -> str:
    """HTML that is shown when its line is opened, and in print."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(content)}</details>"


def section(title: str, *content: str) -> str:
    """A titled section of HTML."""
    return f"<section><h2>{escape(title)}</h2>{''.join(content)}</section>"


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], numbers: Iterable[int] = ()
) -> str:
    """A table; `numbers` are the columns set to the right. It stacks on a narrow screen."""
    right = set(numbers)

    def cell(tag: str, i: int, value: object, extra: str = "") -> str:
        kind = ' class="number"' if i in right else ""
        return f"<{tag}{kind}{extra}>{escape(str(value))}</{tag}>"

    head = "".join(cell("th", i, c) for i, c in enumerate(columns))
    lines = [
        "<tr>"
        + "".join(cell("td", i, v, f' data-name="{escape(columns[i])}"') for i, v in enumerate(row))
        + "</tr>"
        for row in rows
    ]
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<table class="stack">{body}</table>'


def bullets(lines: Iterable[str]) -> str:
    """A list of sentences."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values; values are HTML."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{v}</dd>" for k, v in pairs) + "</dl>"


def code(text: str) -> str:
    """Text in the code's typeface."""
    return f"<code>{escape(text)}</code>"


def source_lines(lines: Sequence[str], first: int, marked: int, write: str = "") -> str:
    """Source lines with their numbers, the first being `first`, line `marked` marked; below it what
    is to be written there, if anything."""
    shown = []
    for number, line in enumerate(lines, first):
        text = f"{number:>5} {'&gt;' if number == marked else ' '} {escape(line.rstrip())}"
        shown.append(f"<b>{text}</b>" if number == marked else text)
        if write and number == marked:
            shown.append(f"<ins>    + {escape(write)}</ins>")
    return "<pre>" + "\n".join(shown) + "</pre>"


def figure(chart: Chart, caption: str) -> str:
    """A chart with its legend, drawn once for wide and once for narrow screens."""
    legend = []
    for series in filter(lambda s: s.label, chart.series):
        shape = (
            f'<svg width="18" height="12" viewBox="0 0 18 12">{_sample(series.style, series)}</svg>'
        )
        legend.append(f"<span>{shape}{escape(series.label)}</span>")
    for band in chart.bands:
        shape = (
            '<svg width="18" height="12" viewBox="0 0 18 12">'
            f'<rect class="{band.style}" width="18" height="12"/></svg>'
        )
        legend.append(f"<span>{shape}{escape(band.label)}</span>")
    if chart.strip is not None:
        shape = (
            '<svg width="18" height="12" viewBox="0 0 18 12">'
            f'<path class="cross {chart.strip.style}" d="M6 3l6 6m0 -6l-6 6"/></svg>'
        )
        legend.append(f"<span>{shape}{escape(chart.strip.label)}</span>")
    return (
        f'<figure><div class="legend">{"".join(legend)}</div>'
        f'<div class="wide">{chart.draw(1000, 380)}</div>'
        f'<div class="narrow">{chart.draw(370, 320)}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _sample(style: str, series: Series) -> str:
    if series.points:
        if series.alike == "square":
            return f'<rect class="{style} point" x="6" y="3" width="6" height="6"/>'
        if series.alike == "diamond":
            return f'<polygon class="{style} point" points="9,2 13,6 9,10 5,6"/>'
        kind = "ring" if series.alike == "ring" else "point"
        return f'<circle class="{style} {kind}" cx="9" cy="6" r="3.5"/>'
    return f'<polyline class="{style}" points="0,6 18,6"/>'


def versions(packages: Iterable[str] = ("torch", "jax", "jaxlib", "flax", "numpy")) -> list[str]:
    """Versions of the packages that are installed, Python's and the machine."""
    lines = [f"Python {platform.python_version()}"]
    for name in packages:
        try:
            lines.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    lines.append(f"{platform.system()} {platform.machine()}")
    return lines
