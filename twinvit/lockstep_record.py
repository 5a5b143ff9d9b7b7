"""What a lockstep leaves on disk: a line for each step taken by both, and the verdict on them.

lockstep.jsonl   {"step", "lr", "loss", "grad_norm", "gaps", "noise" | "distances", "optimizer"}
lockstep.json    how it is made, from the start on, and at the end the verdict
audit.json       the same for each checkpoint
"""

from __future__ import annotations

import decimal
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared_vit.errors import UserError
from shared_vit.files import whole_file
from shared_vit.run.state import StepScalars
from shared_vit.sealed import parse_object
from twinvit import lockstep
from twinvit.lockstep import WHOLE, Measured, Verdict
from twinvit.lockstep_twins import KEYS, OPTIMIZER_LIMIT, Step

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


@dataclass(frozen=True)
class Line:
    """One compared step, as it stands on disk. `optimizer` holds the largest gap of its map."""

    step: int
    lr: float
    loss: float
    grad_norm: float
    gradients: Measured
    optimizer: Measured

    @property
    def arrays(self) -> dict[str, float]:
        """The gaps of single arrays."""
        return {n: g for n, g in self.gradients.gaps.items() if n not in _SUMS}

    @property
    def worst(self) -> tuple[str, float]:
        """The array that differs most, and its gap."""
        return max(self.arrays.items(), key=lambda item: item[1])


def line_of(step: Step, scalars: StepScalars) -> Line:
    worst = max(step.optimizer.gaps, key=lambda n: (step.optimizer.gaps[n], n != WHOLE))
    optimizer = Measured(step.optimizer.step, {worst: step.optimizer.gaps[worst]})
    metrics = step.metrics
    return Line(
        step.gradients.step,
        scalars.lr,
        metrics.loss,
        metrics.grad_norm,
        step.gradients,
        optimizer,
    )


def to_json(line: Line) -> dict[str, Any]:
    found: dict[str, Any] = {
        "step": line.step,
        "lr": line.lr,
        "loss": line.loss,
        "grad_norm": line.grad_norm,
        "gaps": _rounded(line.gradients.gaps, _UP),
    }
    if line.gradients.noise is not None:
        found["noise"] = _rounded(line.gradients.noise, _DOWN)
    if line.gradients.distances is not None:
        found["distances"] = {
            n: [_digits(x, _NEAREST) for x in pair] for n, pair in line.gradients.distances.items()
        }
    if line.gradients.zero:
        found["zero"] = list(line.gradients.zero)
    return found | {"optimizer": _rounded(line.optimizer.gaps, _UP)}


def from_json(found: Mapping[str, Any]) -> Line:
    step, distances = int(found["step"]), found.get("distances")
    measured = Measured(
        step,
        dict(found["gaps"]),
        found.get("noise"),
        None if distances is None else {n: (a, b) for n, (a, b) in distances.items()},
        tuple(found.get("zero", ())),
    )
    optimizer = Measured(step, dict(found["optimizer"]))
    return Line(step, found["lr"], found["loss"], found["grad_norm"], measured, optimizer)


def _rounded(values: Mapping[str, float], to: decimal.Context) -> dict[str, float]:
    return {n: _digits(x, to) for n, x in values.items()}


def _digits(x: float, to: decimal.Context) -> float:
    return float(to.create_decimal(x))


def read_lines(run_dir: Path) -> list[Line]:
    """The compared steps of a run. Raises UserError for a line that is none."""
    path = run_dir / LINES
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{run_dir} holds no lockstep: {path} is not there") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    lines = []
    for number, row in enumerate(text.splitlines(), 1):
        try:
            lines.append(from_json(json.loads(row)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path}, line {number}, is not a step: {error!r}") from None
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
    with whole_file(path) as file:
        file.write(b"".join(kept))


def judge(lines: Sequence[Line], eps: float) -> tuple[Verdict, Verdict]:
    """Verdicts on the gradients and on the optimizer's map of the same steps."""
    gradients = [line.gradients for line in lines]
    maps = lockstep.judge_by_limit([line.optimizer for line in lines], OPTIMIZER_LIMIT)
    if lines and gradients[0].distances is not None:
        keys = {n: n.removesuffix(KEYS) for n in gradients[0].gaps if n.endswith(KEYS)}
        return lockstep.judge_by_reference(gradients, eps, keys), maps
    return lockstep.judge_by_noise(gradients, eps), maps


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of the arrays, in the order of their names."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def write_json(path: Path, found: Mapping[str, Any]) -> None:
    """Write whole or not at all."""
    with whole_file(path) as file:
        file.write((json.dumps(found, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote. Raises UserError."""
    try:
        return parse_object(path, path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


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
    largest: dict[str, Any] = {}
    for name in _SUMS:
        worst = max(lines, key=lambda line: line.gradients.gaps[name])
        largest[name] = {"gap": worst.gradients.gaps[name], "step": worst.step}
    worst = max(lines, key=lambda line: line.worst[1])
    largest["array"] = {"gap": worst.worst[1], "name": worst.worst[0], "step": worst.step}
    optimizer = max(lines, key=lambda line: max(line.optimizer.gaps.values()))
    ((name, gap),) = optimizer.optimizer.gaps.items()
    largest["optimizer"] = {"gap": gap, "name": name, "step": optimizer.step}
    return {
        "line": both.line(),
        "exit_status": both.exit_status,
        "decided": sum(both.decided),
        "steps": len(both.steps),
        "differences": [str(d) for d in both.differences[:8]],
        "undecided": both.open,
        "largest": largest,
    }


def table(lines: Sequence[Line], by_reference: bool) -> str:
    """Gaps at some steps, and the noise or the distance from float64 they are judged by."""
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
