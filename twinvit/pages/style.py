"""The look of every page: light, dark and in print.

Blue, vermilion, green and ochre can be distinguished by colour-blind readers, and each has a shape
or a word next to it.
"""

_LIGHT = """--paper: #fff; --ink: #1b1f24; --soft: #59636e; --rule: #d5dae0;
  --panel: #f5f7f9; --good: #00694a; --bad: #a83f00; --warn: #755400; --mine: #0a5cad;
  --band: #0a5cad22; --mark: #a83f0018; --added: #00694a14;"""
_DARK = """--paper: #14171b; --ink: #e7eaee; --soft: #a0a9b4;
  --rule: #343b44; --panel: #1c2127; --good: #45d3a0; --bad: #ff9c66; --warn: #e3b94b;
  --mine: #79b4ff; --band: #79b4ff2b; --mark: #ff9c6624; --added: #45d3a01f;"""

STYLE = (
    f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
"""
    + """
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 0 0 8px; }
h2 { font-size: 1.12rem; margin: 40px 0 12px; }
p { margin: 0 0 12px; max-width: 75ch; }
.lead { color: var(--soft); overflow-wrap: anywhere; }
.about { font-weight: 600; margin: 0 0 10px; max-width: none; overflow-wrap: anywhere; }
header { border-left: 6px solid var(--soft); padding: 4px 0 4px 16px; }
header.good { border-color: var(--good); } header.bad { border-color: var(--bad); }
header.warn { border-color: var(--warn); }
.badge { display: inline-block; font-size: .8rem; font-weight: 700; letter-spacing: .04em; }
.good .badge { color: var(--good); } .bad .badge { color: var(--bad); }
.warn .badge { color: var(--warn); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 14px; margin: 8px 0 0;
  font-size: .93rem; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
code, pre, .mono { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace;
  font-size: .87em; overflow-wrap: anywhere; }
pre { background: var(--panel); padding: 8px 0; margin: 6px 0 0; overflow-x: auto;
  overflow-wrap: normal; border-radius: 4px; line-height: 1.45; }
pre b, pre ins { display: inline-block; min-width: 100%; font-weight: 600; text-decoration: none; }
pre b { background: var(--mark); } pre ins { background: var(--added); color: var(--good); }
table { width: 100%; border-collapse: collapse; font-size: .93rem; }
th { text-align: left; color: var(--soft); font-weight: 600; }
th, td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
td { overflow-wrap: anywhere; }
td.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
ul { margin: 0; padding-left: 20px; }
li { margin-bottom: 4px; max-width: 85ch; overflow-wrap: anywhere; }
details { margin: 10px 0 0; }
summary { cursor: pointer; color: var(--soft); padding: 4px 0; }
summary:focus-visible { outline: 2px solid var(--mine); outline-offset: 2px; }
details > ul, details > table, details > pre { margin-top: 6px; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .9rem; margin-top: 6px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: .9rem; margin-bottom: 6px; }
.legend span { display: inline-flex; align-items: center; gap: 6px; }
.narrow { display: none; }
.finding { border: 1px solid var(--rule); border-radius: 6px; padding: 14px 16px;
  margin: 0 0 14px; break-inside: avoid; }
.finding h3 { margin: 0 0 6px; font-size: 1.02rem; }
.finding h3 .digit { display: inline-block; min-width: 1.6em; padding: 0 .4em; margin-right: .5em;
  border-radius: .8em; background: var(--ink); color: var(--paper); text-align: center;
  font-size: .85em; line-height: 1.6; }
.finding h3 .kind { font-weight: 400; color: var(--soft); margin-left: .5em; font-size: .9rem; }
.finding p { white-space: pre-line; overflow-wrap: anywhere; }
.finding p.proof { margin: 10px 0 0; color: var(--soft); font-size: .93rem; max-width: none; }
.proof b { color: var(--good); } .proof i { font-style: normal; color: var(--bad); }
.sides { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 8px 20px; }
.side h4 { margin: 0; font-size: .85rem; color: var(--soft); font-weight: 600; }
.side.change h4 { color: var(--ink); }
.write { margin: 8px 0 0; padding: 6px 10px; border-left: 4px solid var(--good);
  background: var(--added); overflow-wrap: anywhere; }
svg { display: block; max-width: 100%; height: auto; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .group { stroke: var(--rule); stroke-width: 1; stroke-dasharray: 2 4; }
svg polyline { fill: none; stroke-width: 1.5; }
svg polyline.mine { stroke: var(--mine); } svg polyline.good { stroke: var(--good); }
svg polyline.bad { stroke: var(--bad); } svg polyline.warn { stroke: var(--warn); }
svg polyline.soft { stroke: var(--rule); }
svg .noise { fill: var(--band); } svg .strip { fill: var(--panel); }
svg .point { stroke: var(--paper); stroke-width: 1; }
svg .point.good { fill: var(--good); } svg .point.mine { fill: var(--mine); }
svg .point.bad { fill: var(--bad); } svg .point.warn { fill: var(--warn); }
svg .ring { fill: var(--paper); stroke-width: 1.6; } svg .ring.warn { stroke: var(--warn); }
svg .ring.good { stroke: var(--good); } svg .ring.mine { stroke: var(--mine); }
svg .ring.bad { stroke: var(--bad); }
svg .cross { fill: none; stroke-width: 1.6; stroke: var(--bad); }
svg .mark circle { fill: var(--ink); } svg .mark text { fill: var(--paper); font-weight: 700; }
svg .mark line { stroke: var(--ink); }
footer { margin-top: 48px; color: var(--soft); font-size: .85rem; }
@media (max-width: 760px) {
  .sides { grid-template-columns: minmax(0, 1fr); }
}
@media (max-width: 640px) {
  main { padding: 16px 14px 48px; } h1 { font-size: 1.25rem; }
  .wide { display: none; } .narrow { display: block; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 8px; }
  table.stack thead { display: none; }
  table.stack td { display: block; border: 0; padding: 1px 0; text-align: left;
    white-space: normal; }
  table.stack tr { display: block; border-bottom: 1px solid var(--rule); padding: 8px 0; }
  table.stack td:empty { display: none; }
  table.stack td[data-name]:not([data-name=""])::before { content: attr(data-name) ": ";
    color: var(--soft); }
}
"""
    + f"""
@media print {{
  :root {{ color-scheme: light; {_LIGHT} }}
  .wide {{ display: block; }} .narrow {{ display: none; }}
  details::details-content {{ content-visibility: visible; height: auto; }}
  details > :not(summary) {{ display: revert; }}
  pre {{ white-space: pre-wrap; }} main {{ max-width: none; padding: 0; }}
}}
"""
)
