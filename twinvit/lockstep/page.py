"""The HTML page of a lockstep or an audit: the verdict, what it rests on, and what made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared_vit.errors import UserError
from shared_vit.files import atomic_write
from twinvit.lockstep import (
    ALONE,
    ARRAY_RATIO,
    DECIDABLE_DISTANCE,
    WHOLE,
    WHOLE_RATIO,
    WINDOW,
)
from twinvit.lockstep import figure as lockstep_figure
from twinvit.lockstep import record as lockstep_record
from twinvit.lockstep.own_update import OWN_LIMIT
from twinvit.lockstep.twins import OPTIMIZER_LIMIT, OWN_EVERY
from twinvit.pages import html
from twinvit.pages.svg import Band, Chart, Series, thinned
from twinvit.parity.noise_rule import DECIDABLE, FACTOR, FLOOR_EPS

BADGES = {0: ("SAME", "good"), 1: ("DIFFERENT", "bad"), 2: ("UNDECIDED", "warn")}
_TITLES = lockstep_figure.PANELS | {"array": "array that differs most"}
_ROWS = {"loss": "loss", "grad_norm": "grad norm", WHOLE: "whole gradient", "array": "one array"}


def lockstep_page(run_dir: Path) -> Path:
    """Write the page of a lockstep run from its files; returns its path. Raises UserError."""
    found = lockstep_record.read_json(run_dir / lockstep_record.RESULT)
    if "line" not in found:
        raise UserError(
            f"the lockstep in {run_dir} has not ended: {lockstep_record.goes_on(run_dir, found)}"
        )
    lines = lockstep_record.read_lines(run_dir, lockstep_record.is_checked(found))
    steps = [line for line in lines if not line.altered]
    if not steps:
        raise UserError(f"{run_dir / lockstep_record.LINES} holds no step")
    found = lockstep_record.concluded(found, lines)
    lines = steps
    body = [
        _header(found["line"], found["exit_status"], _what(found)),
        _differences(found),
        _largest(found),
        _charts(lines, found),
        _rules(found["rule"]),
        _made_by(found),
    ]
    return _write(run_dir / lockstep_record.PAGE, "Lockstep", body)


def audit_page(run_dir: Path) -> Path:
    """Write the page of an audit from its file; returns its path. Raises UserError."""
    found = lockstep_record.read_json(run_dir / lockstep_record.AUDIT)
    rows, checkpoints = [], found["checkpoints"]
    for entry in checkpoints:
        largest = entry.get("largest", {})
        gaps = [_gap(largest[n]["gap"]) if n in largest else "" for n in (*_ROWS, "optimizer")]
        by = entry.get("written_by", {})
        rows.append([entry["step"], entry["line"].removeprefix("lockstep: "),
                     f"{by.get('framework', '?')} {by.get('version', '')}", *gaps])  # fmt: skip
    status = lockstep_record.joint_status(checkpoints)
    decided = sum(entry.get("decided", 0) for entry in checkpoints)
    total = sum(entry.get("steps", 0) for entry in checkpoints)
    sentence = f"audit of {len(checkpoints)} checkpoints: decided {decided} of {total} steps"
    columns = ["step", "verdict", "written by", *_ROWS.values(), "optimizer"]
    body = [
        _header(sentence, status, _what(found)),
        html.section("Checkpoints", html.table(columns, rows, range(3, len(columns)))),
        _rules(found["rule"]),
        _made_by(found),
    ]
    return _write(run_dir / lockstep_record.AUDIT_PAGE, "Audit", body)


def _header(line: str, status: int, lead: Sequence[str]) -> str:
    badge, tone = BADGES[status]
    return html.header(badge, line, lead, tone)


def _what(found: Mapping[str, Any]) -> list[str]:
    leads = ""
    if "leader" in found:
        every = "each step" if found["every"] == 1 else f"one step in {found['every']}"
        leads = f"The {found['leader']} twin trains; {every} is taken by the other twin as well."
    what = (
        f"{found['model']} on {found['data']['name']}, {found['precision']}, batches of "
        f"{found['batch_size']} in {found['grad_accum']} part(s), dropout {found['dropout']:g}, "
        f"{found['steps_of_run']} steps."
    )
    if found.get("pieces"):  # a record of an older version has none
        what += f" Recipe: {found['optimizer']}, {', '.join(found['pieces'])}."
    return [what, leads] if leads else [what]


def _differences(found: Mapping[str, Any]) -> str:
    open_ = [f"{n}: undecided at {where}" for n, where in found["undecided_at"].items()]
    lines = [*found["differences"], *open_, *found["nothing"]]
    return html.section("Outside the bound, or undecided", html.bullets(lines)) if lines else ""


def _largest(found: Mapping[str, Any]) -> str:
    rows = []
    maps = {"optimizer": "optimizer's map, one array, float64"}
    maps |= {"own": "own update, last places"} if "own" in found["largest"] else {}
    for name, title in (_ROWS | maps).items():
        entry = found["largest"][name]
        rows.append([title, _gap(entry["gap"]), entry["step"], entry.get("name", "")])
    columns = ["quantity", "largest gap", "at step", "array"]
    return html.section("Largest gaps", html.table(columns, rows, (1, 2)))


def _charts(lines: Sequence[lockstep_record.Line], found: Mapping[str, Any]) -> str:
    gaps, beside, label = lockstep_figure.series(lines)
    keep = thinned(len(lines))
    steps = [lines[i].step for i in keep]
    phases = [(a, b, n) for a, b, n in lockstep_figure.phases(found) if a < steps[-1]]
    phases = [(max(a, steps[0]), min(b, steps[-1]), n) for a, b, n in phases]
    groups = [(a, b, f"{n}, steps {a} to {b}") for a, b, n in phases]
    figures = []
    for name, title in _TITLES.items():
        series = []
        if found["rule"] == "noise":
            limit = lockstep_figure.bound(beside[name], found)
            series.append(Series("limit", steps, [float(limit[i]) for i in keep], "warn"))
        # Zero and what is not finite cannot be shown on a logarithmic axis.
        drawn = [i for i in keep if 0 < gaps[name][i] < 1e30]
        x, y = [lines[i].step for i in drawn], [float(gaps[name][i]) for i in drawn]
        series.append(Series("gap of the twins", x, y, "mine"))
        band = Band(label, steps, [min(float(beside[name][i]), 1e30) for i in keep])
        chart = Chart(series, "gap", "step", [band], groups=groups, description=title)
        figures.append(html.figure(chart, f"{title.capitalize()}: relative gap by step."))
    return html.section("Gap by step", *figures)


def _rules(rule: str) -> str:
    if rule == "noise":
        judged = (
            f"Loss, grad norm, whole gradient and each array agree where gap <= {FACTOR} noise + "
            f"{FLOOR_EPS} eps. The noise is the leader's own step from weights nudged by one eps: "
            "the largest of three nudges at the nearest measured steps, and at the step itself "
            "where a gap is above what earlier noise explains. Where it exceeds "
            f"{DECIDABLE:g} nothing is decided."
        )
    else:
        judged = (
            "The twins may round differently here, so each one's distance from the float64 step of "
            f"the same state is compared: within {WHOLE_RATIO} times the other's for the whole "
            f"gradient and {ARRAY_RATIO:g} times for an array in the mean of {WINDOW} steps, and "
            f"at each step within {ALONE:g} times these limits of the other's largest at that "
            f"step and the {WINDOW // 2} on each side. Where both distances exceed "
            f"{DECIDABLE_DISTANCE} nothing is decided. The float64 step is the PyTorch twin's, "
            "which is compared with the JAX twin's at the start."
        )
    return html.section(
        "How it is judged",
        html.bullets(
            [
                "Both twins take the step from the same state, the leader's own arrays, on the "
                "same batch.",
                judged,
                f"The optimizer's map is compared by itself, on the same gradients in float64: "
                f"{OPTIMIZER_LIMIT:g} for each parameter and moment.",
                "The state that the run goes on with is compared with that map, number by number: "
                f"{OWN_LIMIT:g} last places of the run's precision. So is the other twin's, at one "
                f"compared step of {OWN_EVERY}.",
                "The key part of a qkv bias has no true gradient. It is measured against the other "
                "rows of that bias.",
            ]
        ),
    )


def _made_by(found: Mapping[str, Any]) -> str:
    pairs = [("machine", found["machine"]), ("device", found["device"])]
    pairs += [(n, str(v)) for n, v in found["versions"].items()]
    pairs += [("data", found["data"]["fingerprint"])]
    if "weights" in found:
        weights = found["weights"]
        digits = weights["sha256"]
        pairs.append((f"weights at step {weights['step']}", f"{digits[:32]} {digits[32:]}"))
    if "run" in found:
        pairs.append(("run", str(found["run"])))
    return html.section("Made by", html.table(["what", "value"], pairs))


def _gap(value: float) -> str:
    return f"{value:.1e}"


def _write(path: Path, title: str, body: Sequence[str]) -> Path:
    with atomic_write(path) as file:
        file.write(html.document(title, body).encode())
    return path
