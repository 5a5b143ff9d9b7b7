"""What a lockstep leaves on disk: a line for each step taken by both, and the verdict on them.

lockstep.jsonl   {"step", "lr", "loss", "grad_norm", "gaps", "noise" | "distances", "optimizer"}
lockstep.json    how it is made, from the start on, and at the end the verdict
audit.json       the same for each checkpoint
"""

from __future__ import annotations

import decimal
import hashlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from shared_vit.checksummed import parse_object, verified, write_checksummed
from shared_vit.errors import UserError
from shared_vit.files import atomic_write
from shared_vit.run.state import StepScalars
from twinvit import lockstep
from twinvit.lockstep import WHOLE, Difference, Measured, Verdict
from twinvit.lockstep.own_update import OWN_LIMIT, STILL
from twinvit.lockstep.twins import KEYS, OPTIMIZER_LIMIT, Step
from twinvit.pages import verdicts
from twinvit.parity.noise_rule import machine_epsilon
from twinvit.port.verdict import DIFFERENT, SAME

LINES, RESULT, FIGURE, PAGE = "lockstep.jsonl", "lockstep.json", "lockstep.png", "lockstep.html"
AUDIT, AUDIT_PAGE = "audit.json", "audit.html"
# Four digits. Gaps are rounded up and noise down: nothing passes by being written. Of two distances
# the ratio counts, so neither side is favoured.
_UP, _DOWN, _NEAREST = (
    decimal.Context(prec=4, rounding=how)
    for how in (decimal.ROUND_CEILING, decimal.ROUND_FLOOR, decimal.ROUND_HALF_EVEN)
)
_SHOWN = (1, 10, 50, 100, 200, 500, 1000, 2000, 5000)
_SUMS = ("loss", "grad_norm", WHOLE)
_EPS64 = float(np.finfo(np.float64).eps)
_CHECK, _FORMAT = "check", 2  # documents of format 1 and their lines have no checksum


@dataclass(frozen=True)
class Line:
    """One compared step, as it is stored on disk. `optimizer` and `own` hold the largest gap alone.

    moved: the update of the parameters against their size; None in a record of an older version.
    reference: where the twins were compared in float64. altered: what of the batch of a step, which
    need not be a compared one, came to a twin otherwise; such a line has nothing else.
    """

    step: int
    lr: float
    loss: float
    grad_norm: float
    gradients: Measured
    optimizer: Measured
    own: Measured = field(default_factory=lambda: Measured(0, {}))
    moved: float | None = None
    reference: Measured | None = None
    altered: str = ""

    @property
    def arrays(self) -> dict[str, float]:
        """The gaps of single arrays."""
        return {n: g for n, g in self.gradients.gaps.items() if n not in _SUMS}

    @property
    def worst(self) -> tuple[str, float]:
        """The array that differs most, and its gap."""
        return max(self.arrays.items(), key=lambda item: item[1])


def line_of(step: Step, scalars: StepScalars) -> Line:
    metrics = step.metrics
    return Line(
        step.gradients.step,
        scalars.lr,
        metrics.loss,
        metrics.grad_norm,
        step.gradients,
        _largest_of(step.optimizer),
        _largest_of(step.own),
        step.moved,
        step.reference,
    )


def altered_line(step: int, name: str) -> Line:
    """What of a step's batch differs on a twin's device from what it was given."""
    nothing = Measured(step, {})
    return Line(step, math.nan, math.nan, math.nan, nothing, nothing, nothing, altered=name)


def _largest_of(measured: Measured) -> Measured:
    """The same with the largest gap alone, and what is not finite."""
    kept = {*measured.apart, *measured.vague}
    if measured.gaps:
        gaps = measured.gaps
        kept.add(max(gaps, key=lambda n: (gaps[n], n != WHOLE)))
    gaps = {n: g for n, g in measured.gaps.items() if n in kept}
    return replace(measured, gaps=gaps, zero=())


def to_json(line: Line) -> dict[str, Any]:
    if line.altered:
        return {"step": line.step, "altered": line.altered}
    found: dict[str, Any] = {
        "step": line.step,
        "lr": line.lr,
        "loss": _number(line.loss),
        "grad_norm": _number(line.grad_norm),
        **_measured_to_json(line.gradients),
        "optimizer": _rounded(line.optimizer.gaps, _UP),
        "own": _rounded(line.own.gaps, _UP),
        "moved": None if line.moved is None else _digits(line.moved, _DOWN),
    }
    for what in ("apart", "vague"):
        names = [*getattr(line.optimizer, what), *getattr(line.own, what)]
        found |= {f"optimizer_{what}": names} if names else {}
    if line.reference is not None:
        found["reference"] = _measured_to_json(line.reference)
    return found


def from_json(found: Mapping[str, Any]) -> Line:
    step = int(found["step"])
    if "altered" in found:
        return altered_line(step, str(found["altered"]))
    apart, vague = (found.get(f"optimizer_{what}", ()) for what in ("apart", "vague"))
    optimizer, own = (
        Measured(
            step,
            gaps,
            apart=tuple(n for n in apart if n in gaps),
            vague=tuple(n for n in vague if n in gaps),
        )
        for gaps in (dict(found.get(n, {})) for n in ("optimizer", "own"))
    )
    loss, grad_norm = (math.nan if found[n] is None else found[n] for n in ("loss", "grad_norm"))
    reference = found.get("reference")
    return Line(
        step,
        found["lr"],
        loss,
        grad_norm,
        _measured_from_json(step, found),
        optimizer,
        own,
        found.get("moved"),
        None if reference is None else _measured_from_json(step, reference),
    )


def _measured_to_json(measured: Measured) -> dict[str, Any]:
    found: dict[str, Any] = {"gaps": _rounded(measured.gaps, _UP)}
    if measured.noise is not None:
        found["noise"] = _rounded(measured.noise, _DOWN)
    if measured.distances is not None:
        found["distances"] = {
            n: [_digits(x, _NEAREST) for x in pair] for n, pair in measured.distances.items()
        }
    for what in ("zero", "apart", "vague"):
        if names := getattr(measured, what):
            found[what] = list(names)
    return found


def _measured_from_json(step: int, found: Mapping[str, Any]) -> Measured:
    distances = found.get("distances")
    return Measured(
        step,
        dict(found["gaps"]),
        found.get("noise"),
        None if distances is None else {n: (a, b) for n, (a, b) in distances.items()},
        *(tuple(found.get(n, ())) for n in ("zero", "apart", "vague")),
    )


def _number(x: float) -> float | None:
    return x if math.isfinite(x) else None  # JSON has no NaN


def _rounded(values: Mapping[str, float], to: decimal.Context) -> dict[str, float]:
    return {n: _digits(x, to) for n, x in values.items()}


def _digits(x: float, to: decimal.Context) -> float:
    return float(to.create_decimal(x))


class Writer:
    """Appends lines to a run's lockstep.jsonl; each has the checksum of all up to it."""

    def __init__(self, run_dir: Path):
        self._path = run_dir / LINES
        rows = self._path.read_bytes().splitlines() if self._path.exists() else []
        self._sum = json.loads(rows[-1]).get(_CHECK, "") if rows else ""

    def write(self, line: Line) -> None:
        found = to_json(line)
        self._sum = _check(self._sum, found)
        with open(self._path, "a") as file:
            file.write(json.dumps(found | {_CHECK: self._sum}) + "\n")


def _check(before: str, found: Mapping[str, Any]) -> str:
    """The checksum of a line and of all lines before it."""
    text = json.dumps({n: v for n, v in found.items() if n != _CHECK})
    return hashlib.sha256(f"{before}{text}".encode()).hexdigest()[:32]


def read_lines(run_dir: Path, checked: bool = True) -> list[Line]:
    """The compared steps of a run, and what came otherwise. Raises UserError for a line that is
    none or, unless they are of an older version and not `checked`, that was altered."""
    path = run_dir / LINES
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{run_dir} holds no lockstep: {path} is not there") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    lines, check = [], ""
    for number, row in enumerate(text.splitlines(), 1):
        try:
            found = json.loads(row)
            lines.append(from_json(found))
            check = _check(check, found)
            intact = found.get(_CHECK) == check if checked or _CHECK in found else True
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path}, line {number}, is not a step: {error!r}") from None
        if not intact:
            raise UserError(
                f"{path}, line {number}, was altered after it was written (its checksum differs): "
                "restore the original, or make the lockstep again in a new --run_dir"
            )
    return lines


def cut_lines(run_dir: Path, step: int) -> None:
    """Drop lines of steps after `step`, and what an interruption left of a line."""
    path = run_dir / LINES
    if not path.exists():
        return
    kept = []
    for row in path.read_bytes().splitlines():
        try:
            if json.loads(row)["step"] > step:
                break
        except ValueError:
            break
        kept.append(row + b"\n")
    with atomic_write(path) as file:
        file.write(b"".join(kept))


def judge(lines: Sequence[Line], eps: float, among: str = "") -> tuple[Verdict, Verdict]:
    """Verdicts on the gradients and on the optimizer's steps of the same steps.

    among: of which steps of the run these are, in words.
    """
    batches = [Difference(line.step, f"batch: {line.altered}", 1.0, 0.0)
               for line in lines if line.altered]  # fmt: skip
    lines = [line for line in lines if not line.altered]
    gradients = [line.gradients for line in lines]
    maps = lockstep.judge_by_limit([line.optimizer for line in lines], OPTIMIZER_LIMIT)
    own = lockstep.judge_by_limit([line.own for line in lines], OWN_LIMIT)
    maps = replace(maps.joined(own), nothing=_still(lines, eps))
    if lines and gradients[0].distances is not None:
        keys = {n: n.removesuffix(KEYS) for n in gradients[0].gaps if n.endswith(KEYS)}
        found = lockstep.judge_by_reference(gradients, eps, keys)
    else:
        exact = {r.step: lockstep.judge_by_noise([r], _EPS64) for r in _checks(lines)}
        found = lockstep.judge_by_noise(gradients, eps, exact)
    found = _with_reference(found, lines)
    if batches:
        first = batches[0].step
        same = [d for d in found.differences if d.step <= first]
        found.differences = same or [d for d in batches if d.step == first]
    found.among = among
    return found, maps


def _still(lines: Sequence[Line], eps: float) -> list[str]:
    """Why an optimizer's map was not tried."""
    moved = [line.moved for line in lines if line.moved is not None]
    if not moved or max(moved) > STILL * eps:
        return []
    return ["the optimizer's map was not tested: no weight changed"]


def _checks(lines: Sequence[Line]) -> list[Measured]:
    """Where the twins were compared in float64."""
    return [line.reference for line in lines if line.reference is not None]


def _with_reference(found: Verdict, lines: Sequence[Line]) -> Verdict:
    """The verdict of a lockstep, and of the float64 steps that it rests on."""
    if not (checks := _checks(lines)):
        return found
    exact = lockstep.judge_by_noise(checks, _EPS64)
    differences = [replace(d, name=f"float64's {d.name}") for d in exact.differences]
    if differences and not (found.differences and found.differences[0].step < differences[0].step):
        found.differences = differences
    for name, steps in exact.open.items():
        found.open[f"float64's {name}"] = steps
        found.decided = [d and s not in steps for d, s in zip(found.decided, found.steps)]
    return found


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of the arrays, in the order of their names."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def write_json(path: Path, found: Mapping[str, Any]) -> None:
    """Write completely or not at all, with a checksum."""
    write_checksummed(path, {"format": _FORMAT, **found})


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote, or an older version without a checksum. Raises UserError."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    found = parse_object(path, text)
    return verified(path, text) if "format" in found or "checksum" in found else found


def is_checked(found: Mapping[str, Any]) -> bool:
    """Whether the lines next to a document have checksums."""
    return found.get("format", 1) >= _FORMAT


def among_of(how: Mapping[str, Any]) -> str:
    """Which steps of a run are compared, in words; empty for all."""
    if how["every"] == 1:
        return ""
    until = how.get("until", how["steps_of_run"])
    return f"every {_ordinal(how['every'])} of {until}, and all batches"


def _ordinal(n: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th") if n % 100 not in (11, 12, 13) else "th"
    return f"{n}{ending}"


def goes_on(run_dir: Path, how: Mapping[str, Any]) -> str:
    """The command that goes on with a lockstep that has not ended, in a sentence."""
    flags = f"--lockstep={how['every']} --framework={how['leader']} --resume"
    return f"`twinvit parity {flags} --run_dir={shlex.quote(str(run_dir))}` goes on with it"


def joint_status(checkpoints: Sequence[Mapping[str, Any]]) -> int:
    """The exit status of an audit: 1 where a checkpoint differs, else the largest."""
    statuses = [entry["exit_status"] for entry in checkpoints]
    return 1 if 1 in statuses else max(statuses)


def summary(lines: Sequence[Line], gradients: Verdict, maps: Verdict) -> dict[str, Any]:
    """The verdict and the largest gaps, for JSON."""
    both = gradients.joined(maps)
    lines = [line for line in lines if not line.altered]
    largest: dict[str, Any] = {}
    for name in _SUMS:
        worst = max(lines, key=lambda line: line.gradients.gaps[name])
        largest[name] = {"gap": worst.gradients.gaps[name], "step": worst.step}
    worst = max(lines, key=lambda line: line.worst[1])
    largest["array"] = {"gap": worst.worst[1], "name": worst.worst[0], "step": worst.step}
    optimizer = max(lines, key=lambda line: max(line.optimizer.gaps.values()))
    name, gap = max(optimizer.optimizer.gaps.items(), key=lambda item: item[1])
    largest["optimizer"] = {"gap": gap, "name": name, "step": optimizer.step}
    if owned := [line for line in lines if line.own.gaps]:
        own = max(owned, key=lambda line: max(line.own.gaps.values()))
        name, gap = max(own.own.gaps.items(), key=lambda item: item[1])
        largest["own"] = {"gap": gap, "name": name, "step": own.step}
    return {
        "line": both.line(),
        "verdict": both.verdict,
        "exit_status": both.exit_status,
        "decided": sum(both.decided),
        "steps": len(both.steps),
        "differences": [str(d) for d in both.differences[:8]],
        "undecided": {name: len(steps) for name, steps in both.open.items()},
        "undecided_at": {name: both.spans(steps) for name, steps in both.open.items()},
        "nothing": both.nothing,
        "largest": largest,
    }


# What `summary` adds to a document, and is recomputed from the lines.
JUDGED = (
    "line", "verdict", "exit_status", "decided", "steps", "differences", "undecided",
    "undecided_at", "nothing", "largest",
)  # fmt: skip


def concluded(how: Mapping[str, Any], lines: Sequence[Line]) -> dict[str, Any]:
    """How a lockstep was made, and the verdict on its lines, for JSON."""
    gradients, maps = judge(lines, machine_epsilon(how["precision"]), among_of(how))
    return {**how, **summary(lines, gradients, maps)}


def verdict_of(tool: str, found: Mapping[str, Any]) -> verdicts.Verdict:
    """What a lockstep or an audit found, as its file holds it, as programs read it."""
    entries = found.get("checkpoints", [found])
    reasons = []
    for entry in entries:
        if entry["verdict"] == found["verdict"] != SAME:
            reasons += _reasons(entry)
    line = found["line"] if "line" in found else _of_checkpoints(found["checkpoints"])
    taken = ("verdict", "exit_status", "versions", "format", "checksum", "seconds")
    own = {name: value for name, value in found.items() if name not in taken}
    own["made_with"] = found["versions"]
    return verdicts.Verdict(tool, found["verdict"], line, reasons, own)


def _reasons(entry: Mapping[str, Any]) -> list[str]:
    """Why the steps of a lockstep, or those from one checkpoint, are not the same."""
    if entry["verdict"] == DIFFERENT:
        return list(entry["differences"])
    if "undecided_at" not in entry:  # a checkpoint that cannot be read
        return [entry["line"]]
    undecided = [f"{name} at {where}" for name, where in entry["undecided_at"].items()]
    return [*entry["nothing"], *undecided] or [entry["line"]]


def _of_checkpoints(checkpoints: Sequence[Mapping[str, Any]]) -> str:
    """The verdict of an audit in one line: of the first checkpoint that is not the same."""
    status = joint_status(checkpoints)
    first = next(entry for entry in checkpoints if entry["exit_status"] == status)
    count = f"audit of {len(checkpoints)} checkpoints: {first['verdict']}"
    return count if not status else f"{count} (step {first['step']}: {first['line']})"


def known_noise(lines: Sequence[Line]) -> dict[str, float] | None:
    """The last noise of each quantity in the lines of a lockstep that goes on."""
    found: dict[str, float] | None = None
    for line in lines:
        if line.gradients.noise is not None:
            found = lockstep.latest(found, line.gradients.noise)
    return found


def has_lines(run_dir: Path) -> bool:
    """Whether a step was compared."""
    path = run_dir / LINES
    return path.exists() and path.stat().st_size > 0


def ends_not_finite(run_dir: Path) -> bool:
    """Whether a compared step of the leader has a loss or grad norm that is no number; the loop
    stops a few steps after it."""
    lines = read_lines(run_dir) if has_lines(run_dir) else []
    numbers = [x for line in lines if not line.altered for x in (line.loss, line.grad_norm)]
    return not all(map(math.isfinite, numbers))


def table(lines: Sequence[Line], by_reference: bool) -> str:
    """Gaps at some steps, and the noise or the distance from float64 that is their limit."""
    lines = [line for line in lines if not line.altered]
    other = "from fp64" if by_reference else "noise"
    names = ("loss", "grad norm", "gradient")
    head = f"{'step':>8} " + "".join(f"{f'{n}: gap':>16}{other:>10}" for n in names)
    rows = [head + f"{'optimizer':>12}  array that differs most"]
    noise = None if by_reference else lockstep.nearest_noise([x.gradients for x in lines], _SUMS)
    last = len(lines) - 1
    for i in sorted({i for i in range(last) if lines[i].step in _SHOWN} | {0, last}):
        line = lines[i]
        cells = ""
        for j, name in enumerate(_SUMS):
            if noise is None:
                beside = max(line.gradients.distances[name])  # type: ignore[index]
            else:
                beside = noise[i, j]
            cells += f"{line.gradients.gaps[name]:>16.1e}{beside:>10.1e}"
        name, gap = line.worst
        rows.append(
            f"{line.step:>8} {cells}{max(line.optimizer.gaps.values()):>12.1e}  {name} {gap:.1e}"
        )
    return "\n".join(rows)
