"""The figure of a lockstep: gaps and noise by step, with the learning rate's phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twinvit import lockstep
from twinvit.lockstep import WHOLE
from twinvit.lockstep.record import Line
from twinvit.parity.noise_rule import FACTOR, FLOOR_EPS, machine_epsilon
from twinvit.parity.plots import NO_FIGURE, can_plot

PANELS = {"loss": "loss", "grad_norm": "grad norm", WHOLE: "whole gradient"}


def series(lines: Sequence[Line]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], str]:
    """`(gaps, what they are judged by, its name)`, a value a step for each panel.

    The last panel, "array", has the largest gap of a single array and that array's yardstick.
    """
    measured = [line.gradients for line in lines]
    names = list(measured[0].gaps)
    gaps = np.array([[m.gaps[n] for n in names] for m in measured])
    if measured[0].distances is None:
        beside, label = lockstep.nearest_noise(measured, names), "rounding alone (nudged weights)"
    else:
        beside = np.array([[max((m.distances or {})[n]) for n in names] for m in measured])
        label = "distance from float64, the larger"
    arrays = [i for i, n in enumerate(names) if n not in PANELS]
    worst = np.array(arrays)[gaps[:, arrays].argmax(axis=1)]
    rows = np.arange(len(lines))
    columns = {n: names.index(n) for n in PANELS}
    return (
        {n: gaps[:, i] for n, i in columns.items()} | {"array": gaps[rows, worst]},
        {n: beside[:, i] for n, i in columns.items()} | {"array": beside[rows, worst]},
        label,
    )


def bound(noise: np.ndarray, about: Mapping[str, Any]) -> np.ndarray:
    """The largest gap that the noise rule passes."""
    return FACTOR * np.minimum(noise, 1.0) + FLOOR_EPS * machine_epsilon(about["precision"])


def phases(about: Mapping[str, Any]) -> list[tuple[int, int, str]]:
    """(first step, last step, name) of the learning rate's phases."""
    total = about["steps_of_run"]
    warmup = min(about["warmup_steps"], total)
    end = total - about.get("cooldown_steps", 0)
    found = [(0, warmup, "warm-up"), (warmup, end, about["schedule"]), (end, total, "cool-down")]
    return [(a, b, name) for a, b, name in found if b > a]


def plot_lockstep(path: Path | str, lines: Sequence[Line], about: Mapping[str, Any]) -> str:
    """Write a PNG (or what the suffix says) of the compared steps and their verdict. Returns the
    line that says where it is, or why there is none."""
    if not can_plot():
        return NO_FIGURE
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained", dpi=130)
    steps = np.array([line.step for line in lines])
    gaps, beside, label = series(lines)
    panels = PANELS | {"array": "array that differs most"}
    for axes, (name, title) in zip(figure.subplots(2, 2, sharex=True).flat, panels.items()):
        axes.plot(steps, _positive(beside[name]), color="#4c9be8", lw=1.2, label=label)
        if about["rule"] == "noise":
            limit = _positive(bound(beside[name], about))
            axes.plot(steps, limit, color="#d95f02", lw=1, ls=":", label="limit")
        axes.plot(steps, _positive(gaps[name]), color="#111111", lw=0.8, label="gap of the twins")
        axes.set(yscale="log", ylabel=f"{title}: gap")
        for start, *_ in phases(about)[1:]:
            if steps[0] < start < steps[-1]:
                axes.axvline(start, color="0.6", lw=0.8)
        for start, end, phase in phases(about):
            middle = (max(start, steps[0]) + min(end, steps[-1])) / 2
            if start < steps[-1]:
                axes.annotate(phase, (middle, 0.02), xycoords=("data", "axes fraction"),
                              ha="center", fontsize=8, color="0.4")  # fmt: skip
    axes_list = figure.axes
    axes_list[0].legend(frameon=False, fontsize=8)
    for axes in axes_list[2:]:
        axes.set_xlabel("step")
    figure.suptitle(
        f"{about['model']}, {about['data']['name']}, {about['precision']}: {about['line']}"
    )
    figure.savefig(path)
    return f"figure: {path}"


def _positive(values: np.ndarray) -> np.ndarray:
    # The axis is logarithmic; what is not finite cannot be shown on it.
    return np.where((values > 0) & (values < 1e30), values, np.nan)
