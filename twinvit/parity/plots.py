"""Figures of training curves: alone, with the gaps between them, and with the noise of rounding."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared_vit.errors import UserError
from twinvit.parity.noise_rule import QUANTITIES, Curve, Verdict, gap

NO_FIGURE = "no figure: matplotlib, which draws it, is missing: pip install 'twinvit[plots]'"
COLORS = ("#4c9be8", "#111111", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#a6761d")


def can_plot() -> bool:
    """Whether matplotlib is installed, which is an extra."""
    return importlib.util.find_spec("matplotlib") is not None


def check_figure(path: Path) -> None:
    """Raise UserError for a path at which no figure can be written, before the work for it."""
    if not can_plot():
        return
    from matplotlib.backend_bases import FigureCanvasBase

    if not path.parent.is_dir():
        raise UserError(f"--output: {path.parent} is not a folder; make it, or name another")
    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise UserError(f"--output: {path} must end in one of .{' .'.join(sorted(kinds))}")
    if path.is_dir():
        raise UserError(f"--output: {path} is a folder; name a file")


def plot_curves(
    path: Path | str,
    curves: dict[str, Curve],
    verdict: Verdict | None,
    title: str,
    trained_by: Mapping[str, Sequence[tuple[int, str]]] | None = None,
) -> str:
    """Write a PNG (or what the suffix says): loss and grad norm of each labelled run. Returns the
    line that says where it is, or why there is none.

    `trained_by` has `(step, framework)` of each run's first start, which is not drawn, and of each
    change of framework after it, which is.
    Of several runs, below, the gaps: with a verdict against the noise, else of each run to the
    first. Raises UserError for runs of other steps.
    """
    if not can_plot():
        return NO_FIGURE
    from matplotlib.figure import Figure

    rows = 1 if len(curves) == 1 else 2
    figure = Figure(figsize=(11, 3.5 * rows), layout="constrained", dpi=130)
    axes = figure.subplots(rows, 2, squeeze=False, sharex="col")
    for column, quantity in enumerate(QUANTITIES):
        top, bottom = axes[0, column], axes[-1, column]
        for i, (label, curve) in enumerate(curves.items()):
            style: dict[str, Any] = dict(lw=2.6) if i == 0 < len(curves) - 1 else dict(lw=1.0)
            style |= dict(ls="--") if i == 1 else {}
            color = COLORS[i % len(COLORS)]
            top.plot(curve.steps, getattr(curve, quantity), label=label, color=color, **style)
            for step, framework in (trained_by or {}).get(label, ())[1:]:
                _plot_change(top, step, framework, color)
        name = quantity.replace("_", " ")
        top.set(ylabel=name)
        top.legend(frameon=False)
        bottom.set(xlabel="step")
        if rows == 2:
            bottom.set(ylabel=f"largest gap of the {name} so far", yscale="log")
            if verdict is None:
                _plot_gaps(bottom, curves, quantity)
            else:
                _plot_verdict(bottom, list(curves)[:2], verdict, quantity)
            bottom.legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    figure.savefig(path)
    return f"figure: {path}"


def _plot_change(axes: Any, step: int, framework: str, color: str) -> None:
    axes.axvline(step, color=color, lw=0.8, ls=":")
    place = (step, 0.02)
    axes.annotate(
        f" {framework}", place, xycoords=("data", "axes fraction"), fontsize=8, color=color
    )


def _plot_gaps(axes: Any, curves: dict[str, Curve], quantity: str) -> None:
    first, *others = curves
    for i, label in enumerate(others, 1):
        a, b = curves[first], curves[label]
        values = gap(a, b, quantity)
        _plot_log(axes, a.steps[: len(values)], values, f"{label} against {first}", COLORS[i % 8])


def _plot_verdict(axes: Any, labels: Iterable[str], verdict: Verdict, quantity: str) -> None:
    steps = verdict.steps
    _plot_log(axes, steps, verdict.gaps[quantity], " against ".join(labels), "#111111")
    _plot_log(axes, steps, verdict.noise[quantity], "rounding alone (nudged runs)", "#4c9be8")
    axes.plot(steps, verdict.bound[quantity], color="#d95f02", lw=1, ls=":", label="limit")
    if verdict.decided_until < steps[-1]:
        axes.axvline(verdict.decided_until, color="0.6", lw=0.8)
        axes.annotate(
            "decided up to here",
            (verdict.decided_until, 0.02),
            xycoords=("data", "axes fraction"),
            fontsize=8,
            color="0.4",
        )


def _plot_log(axes: Any, steps: np.ndarray, values: np.ndarray, label: str, color: str) -> None:
    """A line on a logarithmic axis, which cannot show zero. Equal curves are named as such."""
    if not (values > 0).any():
        axes.plot([], [], color=color, label=f"{label}: equal")
        axes.annotate("no gap", (0.5, 0.5), xycoords="axes fraction", ha="center", color="0.4")
        return
    axes.plot(steps, np.where(values > 0, values, np.nan), color=color, label=label)
