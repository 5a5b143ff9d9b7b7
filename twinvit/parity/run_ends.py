"""What two runs end with in addition to their curves, by the noise rule: weights, averages,
evaluations."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shared_vit.errors import UserError, some
from shared_vit.run import checkpoint
from shared_vit.run.state import TrainState
from shared_vit.spec import canonical
from shared_vit.spec.optimizers import EMA
from shared_vit.weights import checkpoints
from twinvit import lockstep
from twinvit.parity.noise_rule import DECIDABLE, FACTOR, FLOOR_EPS, Verdict

_QKV = "attn.qkv.bias"
_NUMBERS = ("val_loss", "val_top1", "val_top5")


def judge_ends(verdict: Verdict, a: Path, b: Path, nudged: list[Path], eps: float) -> None:
    """Add to a verdict on the curves of `a` and `b` what the runs' checkpoints and evaluations
    show, up to the last step that was decided. `nudged` are of `b`'s twin."""
    if verdict.decided_until > 0:
        _judge_evaluations(verdict, a, b, eps)
        _judge_weights(verdict, a, b, nudged, eps)


def _judge_weights(verdict: Verdict, a: Path, b: Path, nudged: list[Path], eps: float) -> None:
    """The weights and their averages at the last step of which all runs have a checkpoint.

    A curve's last point is the loss before the last update: without the weights, that update was
    not compared.
    """
    runs = [a, b, *nudged]
    common = set.intersection(*(set(checkpoints.steps(run / "checkpoints")) for run in runs))
    decided = [s for s in common if s <= verdict.decided_until]
    if not decided:
        verdict.left.append("the last update and the weights were not compared: "
                            "the runs have no checkpoint of one decided step")  # fmt: skip
        return
    step = max(decided)
    mine, base, *others = (_arrays_at(run, step) for run in runs)
    gaps = lockstep.gaps(mine, base)
    noise: dict[str, float] = {}
    for other in others:
        noise = {n: max(noise.get(n, 0.0), g) for n, g in lockstep.gaps(other, base).items()}
    for name, spread in _spread(others).items():  # a larger one is not of the nudges' program
        noise[name] = min(noise[name], FACTOR * spread + FLOOR_EPS * eps)
    vague = [n for n in gaps if not noise[n] <= DECIDABLE]
    for name in gaps:
        bound = FACTOR * noise[name] + FLOOR_EPS * eps
        if name not in vague and not gaps[name] <= bound:
            verdict.wrong.append(
                f"{'the weights' if name == lockstep.WHOLE else name} at step {step} differ by "
                f"{gaps[name]:.2g}, where rounding explains {bound:.2g}"
            )
    arrays = len(gaps) - 1
    averaged = " and averages" if any(n.startswith(f"{EMA}.") for n in gaps) else ""
    if lockstep.WHOLE in vague:
        verdict.left.append(f"the weights{averaged} at step {step} are undecided")
    else:
        said = f"weights{averaged} at step {step}, {arrays - len(vague)} of {arrays} arrays"
        verdict.compared.append(said + (f" (not {some(vague, 2)})" if vague else ""))
    if step < verdict.total and verdict.decided_until == verdict.total:
        verdict.left.append(f"updates {step + 1} to {verdict.total} end in no compared weights")


def _spread(others: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """{array: the largest gap of two nudged runs}."""
    found: dict[str, float] = {}
    for a, b in itertools.combinations(others, 2):
        found = {n: max(found.get(n, 0.0), g) for n, g in lockstep.gaps(a, b).items()}
    return found


def _arrays_at(run: Path, step: int) -> dict[str, np.ndarray]:
    """Parameters and averages of a checkpoint. The key part of a qkv.bias is an array by itself:
    its gradient is rounding alone. Raises UserError for a damaged checkpoint."""
    state, _ = checkpoint.load(run / "checkpoints" / f"step_{step}")
    if state.step != step:
        raise UserError(f"{run / 'checkpoints' / f'step_{step}'} is of step {state.step}")
    averages = {f"{EMA}.{n}": x for n, x in state.slots.get(EMA, {}).items()}
    return _split(state, {**state.params, **averages})


def _split(state: TrainState, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    keys = slice(state.config.width, 2 * state.config.width)
    unseen = canonical.has_unseen_key_bias(state.config)
    found: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if unseen and name.endswith(_QKV):
            found[name], found[f"{name}[keys]"] = np.delete(array, keys), array[keys]
        else:
            found[name] = array
    return found


def _judge_evaluations(verdict: Verdict, a: Path, b: Path, eps: float) -> None:
    """Each evaluation up to the last decided step, by the largest noise of the curves up to it.

    A fraction of examples may differ by one example more, whose two best classes are as near.
    """
    ours, theirs = _evaluations(a), _evaluations(b)
    steps = [s for s in ours if s in theirs and s <= verdict.decided_until]
    alone = [s for s in set(ours) ^ set(theirs) if s <= verdict.decided_until]
    for step in steps:
        i = int(np.searchsorted(verdict.steps, step))
        noise = max(float(values[i]) for values in verdict.noise.values())
        for name in sorted(set(ours[step]) | set(theirs[step])):
            if not name.startswith(_NUMBERS):
                continue
            x, y = ours[step].get(name), theirs[step].get(name)
            if (reason := _apart(name, x, y, ours[step], noise, eps)) is not None:
                verdict.wrong.append(f"{name} at step {step} is {x} and {y}: {reason}")
    if steps:
        verdict.compared.append(f"evaluations at {len(steps)} steps, the last {max(steps)}")
    if alone:
        verdict.left.append(f"evaluations at {len(alone)} steps are in one run alone")


def _apart(
    name: str, x: Any, y: Any, row: Mapping[str, Any], noise: float, eps: float
) -> str | None:
    """Why two numbers of an evaluation are not the same."""
    if x is None or y is None:
        return "it is in one of the runs alone"
    x, y = float(x), float(y)
    if not (np.isfinite(x) and np.isfinite(y)):
        return None if np.isfinite(x) == np.isfinite(y) else "it is finite in one of the runs alone"
    bound = (FACTOR * noise + FLOOR_EPS * eps) * max(1.0, abs(y))
    if not name.startswith("val_loss"):
        bound += 1.0001 / max(1, int(row.get("val_count", 1)))
    return None if abs(x - y) <= bound else f"rounding explains {bound:.2g}"


def _evaluations(run: Path) -> dict[int, dict[str, Any]]:
    """{step: its evaluation} in a run's metrics, which have been read as a curve before."""
    found: dict[int, dict[str, Any]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if isinstance(row, dict) and "val_loss" in row:
            found[int(row["step"])] = row
    return found
