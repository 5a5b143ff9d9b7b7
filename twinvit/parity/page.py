"""The HTML page of `twinvit parity`: two curves, their gap, and what rounding explains of it."""

from __future__ import annotations

from pathlib import Path

from shared_vit.errors import UserError
from shared_vit.files import atomic_write
from shared_vit.run.record import has_record, read_record
from shared_vit.spec.config import name_of
from twinvit.pages import html
from twinvit.pages.svg import Band, Chart, Series, thinned
from twinvit.parity import curves, noise_rule
from twinvit.parity.command import by_lockstep
from twinvit.parity.noise_rule import DECIDABLE, FACTOR, FLOOR_EPS, QUANTITIES
from twinvit.port.verdict import DIFFERENT, SAME, UNDECIDED

PAGE = "parity.html"
TWINS = ("jax", "torch")


def is_parity(folder: Path) -> bool:
    """Whether a folder holds what `twinvit parity` writes: a run of each twin."""
    return all(has_record(folder / twin) for twin in TWINS)


def parity_page(folder: Path) -> Path:
    """Write the page from the five runs; returns its path. Raises UserError where one is absent."""
    nudged = sorted(p for p in folder.glob("torch-nudge-*") if has_record(p))
    if not nudged:
        raise UserError(f"{folder} has no nudged runs: there is no noise to compare the curves by")
    jax, torch = (folder / twin for twin in TWINS)
    verdict = curves.judge(jax, torch, nudged)
    record = read_record(torch)
    recipe = record.recipe
    lead = (
        f"{name_of(recipe.model)} on {record.data['name']}, {recipe.precision}, batches of "
        f"{recipe.batch_size}, {recipe.steps} steps. Each twin trains by itself."
    )
    badges = {
        SAME: ("SAME", "good"),
        DIFFERENT: ("DIFFERENT", "bad"),
        UNDECIDED: ("UNDECIDED", "warn"),
    }
    badge, tone = badges[verdict.verdict]
    sentence = verdict.headline()
    if verdict.matched and verdict.rest():
        flags = [f"--preset={record.preset}"] if record.preset else []
        sentence += f": {by_lockstep([*flags, f'--precision={recipe.precision}'])} decides them"
        badge, tone = f"SAME UP TO STEP {verdict.decided_until:,}", "warn"
    body = [html.header(badge, sentence, [lead], tone)]
    body.append(html.section("Decided steps", html.bullets(_decided(verdict))))
    for quantity in QUANTITIES:
        body.append(_chart(verdict, quantity))
    body.append(html.section("Curves", *_curves(jax, torch)))
    rule = (
        f"The curves are the same where gap <= {FACTOR} noise + {FLOOR_EPS} eps at every step. The "
        f"noise is that of {len(nudged)} runs of the PyTorch twin with rounding-sized nudges after "
        f"each update; where it exceeds {DECIDABLE:g} nothing more is decided."
    )
    body.append(html.section("How it is judged", html.bullets([rule])))
    made = [("data", record.data["fingerprint"]), ("run of jax", read_record(jax).id or "")]
    made += [("run of torch", record.id or ""), ("page made with", ", ".join(html.versions()))]
    body.append(html.section("Made by", html.table(["what", "value"], made)))
    with atomic_write(folder / PAGE) as file:
        file.write(html.document("Parity", body).encode())
    return folder / PAGE


def _decided(verdict: noise_rule.Verdict) -> list[str]:
    """Which steps are decided, which are not, and why."""
    until = verdict.decided_until
    lines = [f"Decided: steps 1 to {until:,} of {verdict.total:,}." if until else "Decided: none."]
    if rest := verdict.rest():
        lines.append(f"Not decided: steps {rest}.")
    lines += [f"Compared at the end, too: {what}." for what in verdict.compared]
    return lines + [f"Not compared: {what}." for what in verdict.left]


def _phases(verdict: noise_rule.Verdict) -> list[tuple[float, float, str]]:
    """The decided steps and the others, along a chart's axis."""
    first, last = int(verdict.steps[0]), int(verdict.steps[-1])
    until = min(verdict.decided_until, last)
    found = (
        [(float(first), float(until), f"decided: {first:,} to {until:,}")] if until >= first else []
    )
    if until < last:
        found.append((float(max(until + 1, first)), float(last), f"not decided: to {last:,}"))
    return found


def _chart(verdict: noise_rule.Verdict, quantity: str) -> str:
    steps = verdict.steps.tolist()
    gap = Series("jax against torch", steps, verdict.gaps[quantity].tolist(), "mine")
    band = Band("rounding alone", steps, verdict.noise[quantity].tolist())
    title = quantity.replace("_", " ")
    chart = Chart(
        [gap],
        "largest gap so far",
        "step",
        [band],
        groups=_phases(verdict) if verdict.rest() else (),
        description=f"{title}: gap by step",
    )
    caption = f"Largest gap of the {title} up to each step."
    return html.section(title.capitalize(), html.figure(chart, caption))


def _curves(jax: Path, torch: Path) -> list[str]:
    found = []
    for quantity in QUANTITIES:
        series = []
        for run, style in ((jax, "mine"), (torch, "warn")):
            curve = noise_rule.read_curve(run)
            keep = thinned(len(curve))
            values = getattr(curve, quantity)[keep].tolist()
            series.append(Series(run.name, curve.steps[keep].tolist(), values, style))
        title = quantity.replace("_", " ")
        found.append(html.figure(Chart(series, title, "step", description=title), title))
    return found
