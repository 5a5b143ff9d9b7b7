"""Building blocks of a page: the page itself, sections, tables, figures, source lines."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable, Sequence
from html import escape

from twinvit.pages.svg import Chart, Series

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #59636e; --rule: #d5dae0;
  --panel: #f5f7f9; --good: #14713a; --bad: #b3261e; --warn: #8a5a00; --mine: #1f6feb;
  --band: #1f6feb22; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e7eaee; --soft: #a0a9b4;
  --rule: #343b44; --panel: #1c2127; --good: #5ccb85; --bad: #ff8a80; --warn: #e3b04b;
  --mine: #79b0ff; --band: #79b0ff2b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 0 0 8px; }
h2 { font-size: 1.12rem; margin: 40px 0 12px; }
p { margin: 0 0 12px; max-width: 75ch; }
.lead { color: var(--soft); overflow-wrap: anywhere; }
header { border-left: 6px solid var(--soft); padding: 4px 0 4px 16px; }
header.good { border-color: var(--good); } header.bad { border-color: var(--bad); }
header.warn { border-color: var(--warn); }
.badge { display: inline-block; font-size: .8rem; font-weight: 700; letter-spacing: .04em; }
.good .badge { color: var(--good); } .bad .badge { color: var(--bad); }
.warn .badge { color: var(--warn); }
code, pre, .mono { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace;
  font-size: .87em; overflow-wrap: anywhere; }
pre { background: var(--panel); padding: 8px 12px; margin: 4px 0 0; overflow-x: auto;
  overflow-wrap: normal; border-radius: 4px; }
pre b { color: var(--bad); }
table { width: 100%; border-collapse: collapse; font-size: .93rem; }
th { text-align: left; color: var(--soft); font-weight: 600; }
th, td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
td { overflow-wrap: break-word; }
td.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
ul { margin: 0; padding-left: 20px; } li { margin-bottom: 4px; max-width: 85ch; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .9rem; margin-top: 6px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: .9rem; margin-bottom: 6px; }
.legend span { display: inline-flex; align-items: center; gap: 6px; }
.narrow { display: none; }
.finding { border: 1px solid var(--rule); border-radius: 6px; padding: 14px 16px;
  margin: 0 0 14px; }
.finding h3 { margin: 0 0 6px; font-size: 1.02rem; }
.finding dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 14px; margin: 8px 0 0;
  font-size: .93rem; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; }
svg { display: block; max-width: 100%; height: auto; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .group { stroke: var(--rule); stroke-width: 1; stroke-dasharray: 2 4; }
svg polyline { fill: none; stroke-width: 1.5; }
svg polyline.good, svg polyline.mine { stroke: var(--mine); }
svg polyline.bad { stroke: var(--bad); } svg polyline.warn { stroke: var(--warn); }
svg polyline.soft { stroke: var(--rule); }
svg .noise { fill: var(--band); }
svg .point { stroke: var(--paper); stroke-width: 1; }
svg .point.good, svg .point.mine { fill: var(--mine); } svg .point.bad { fill: var(--bad); }
svg .point.warn { fill: var(--warn); }
svg .ring { fill: var(--paper); stroke-width: 1.6; } svg .ring.warn { stroke: var(--warn); }
svg .ring.good, svg .ring.mine { stroke: var(--mine); } svg .ring.bad { stroke: var(--bad); }
svg .mark circle { fill: var(--ink); } svg .mark text { fill: var(--paper); font-weight: 700; }
svg .mark line { stroke: var(--ink); }
footer { margin-top: 48px; color: var(--soft); font-size: .85rem; }
@media (max-width: 640px) {
  main { padding: 16px 14px 48px; } h1 { font-size: 1.25rem; }
  .wide { display: none; } .narrow { display: block; }
  .finding dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 8px; }
  table.stack thead { display: none; }
  table.stack td { display: block; border: 0; padding: 1px 0; text-align: left;
    white-space: normal; }
  table.stack tr { display: block; border-bottom: 1px solid var(--rule); padding: 8px 0; }
  table.stack td[data-name]::before { content: attr(data-name) ": "; color: var(--soft); }
}
@media print { .wide { display: block; } .narrow { display: none; } }
"""


def document(title: str, body: Iterable[str]) -> str:
    """A whole page; `body` are its sections as HTML."""
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


def header(badge: str, sentence: str, lead: Sequence[str], tone: str) -> str:
    """The verdict: a word, a sentence, further lines. `tone` is "good", "bad" or "warn"."""
    lines = "".join(f'<p class="lead">{escape(line)}</p>' for line in lead)
    return (
        f'<header class="{tone}"><span class="badge">{escape(badge)}</span>'
        f"<h1>{escape(sentence)}</h1>{lines}</header>"
    )


def section(title: str, *content: str) -> str:
    """A titled section of HTML pieces."""
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


def source_lines(lines: Sequence[str], first: int, marked: int) -> str:
    """Source lines with their numbers, the first being `first`, line `marked` in bold."""
    shown = []
    for number, line in enumerate(lines, first):
        text = f"{number:>5}  {escape(line.rstrip())}"
        shown.append(f"<b>{text}</b>" if number == marked else text)
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
