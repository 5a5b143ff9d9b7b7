"""The best evaluation of a run so far, and best.json, which says which checkpoint it is of.

The best so far is part of every checkpoint's state.json, and a resumed run goes on with that.
best.json is for readers, and follows it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared_vit.checksummed import read_checksummed, write_checksummed
from shared_vit.errors import UserError
from shared_vit.run.directory import RunDir
from shared_vit.spec.recipe import Recipe
from shared_vit.weights.checkpoints import STATE

BEST = "best.json"
_FORMAT = 1


@dataclass(frozen=True)
class Best:
    """An evaluation: the value of one of its metrics, by which it is the best, after `step`
    updates."""

    metric: str
    value: float
    step: int

    @property
    def path(self) -> str:
        """Its checkpoint's, from the run's folder."""
        return f"checkpoints/step_{self.step}"

    def describe(self) -> str:
        return f"{self.metric} {self.value:.4f} at step {self.step}"


def better(best: Best | None, metric: str, step: int, result: Mapping[str, float]) -> Best | None:
    """The better of the best so far and an evaluation; of equal ones the earlier.

    One by another metric is not compared, and gives way.
    """
    value = float(result[metric])
    if math.isnan(value):
        return best
    if best is not None and best.metric == metric:
        if value >= best.value if metric.startswith("val_loss") else value <= best.value:
            return best
    return Best(metric, value, step)


def check_metric(metric: str, recipe: Recipe) -> None:
    """Raise UserError for a value of --keep_best that no evaluation of such a run gives."""
    if metric == "off":
        return
    if recipe.nudge is not None:
        raise UserError(
            f"--keep_best={metric}: a run with --nudge is not evaluated, leave one of them out"
        )
    if metric.endswith("_ema") and not recipe.ema:
        raise UserError(
            f"--keep_best={metric}: this run has no average of its weights; use "
            f"--keep_best={metric.removesuffix('_ema')}"
        )


def of_state(run_dir: Path, extra: Mapping[str, Any]) -> Best | None:
    """The best so far in what was saved with a checkpoint; None where its own checkpoint no longer
    exists.

    Raises UserError for a damaged one.
    """
    if extra.get("best") is None:
        return None
    best = _restored(extra["best"], f"the checkpoint of {run_dir}")
    return best if (run_dir / best.path / STATE).exists() else None


def write_best(run: RunDir, best: Best | None) -> None:
    """Write best.json, or remove it where there is no best. Raises UserError where that fails."""
    path = run.folder / BEST
    with run.errors(path):
        if best is None:
            path.unlink(missing_ok=True)
        else:
            write_checksummed(path, {"format": _FORMAT, **asdict(best), "path": best.path})


def read_best(run_dir: Path) -> Best | None:
    """The content of best.json; None where there is none, or where its checkpoint no longer exists.

    Raises UserError for a file that is damaged, altered, or of a newer version.
    """
    path = run_dir / BEST
    try:
        document = read_checksummed(path)
    except FileNotFoundError:
        return None
    if document.get("format") != _FORMAT:
        raise UserError(
            f"{path} is of format {document.get('format')!r:.20}; this version reads {_FORMAT}: "
            "update the program"
        )
    best = _restored(document, str(path))
    return best if (run_dir / best.path / STATE).exists() else None


def _restored(document: Any, where: str) -> Best:
    try:
        metric, value, step = (document[n] for n in ("metric", "value", "step"))
        if type(step) is int and isinstance(metric, str):
            return Best(metric, float(value), step)
    except (KeyError, TypeError, ValueError):
        pass
    raise UserError(f"{where} does not say which evaluation is the best: {document!r:.100}")
