"""The figure of a lockstep: gaps and noise by step, with the learning rate's phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twinvit import lockstep
from twinvit.lockstep import WHOLE
from twinvit.lockstep_record import Line

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
        beside = np.array([[max(m.distances[n]) for n in names] for m in measured])  # type: ignore[index]
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


def plot_lockstep(path: Path | str, lines: Sequence[Line], about: Mapping[str, Any]) -> None:
    """Write a PNG (or what the suffix says) of the compared steps and their verdict."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained", dpi=130)
    steps = np.array([line.step for line in lines])
    gaps, beside, label = series(lines)
    panels = PANELS | {"array": "array that differs most"}
    for axes, (name, title) in zip(figure.subplots(2, 2, sharex=True).flat, panels.items()):
        axes.plot(steps, _positive(beside[name]), color="#4c9be8", lw=1.2, label=label)
        axes.plot(steps, _positive(gaps[name]), color="#111111", lw=0.8, label="between the twins")
        axes.set(yscale="log", ylabel=f"{title}: gap")
        warmup = about["warmup_steps"]
        if steps[0] < warmup < steps[-1]:
            axes.axvline(warmup, color="0.6", lw=0.8)
            for text, align in (("warm-up ", "right"), (" cosine", "left")):
                axes.annotate(text, (warmup, 0.02), xycoords=("data", "axes fraction"), ha=align,
                              fontsize=8, color="0.4")  # fmt: skip
    axes_list = figure.axes
    axes_list[0].legend(frameon=False, fontsize=8)
    for axes in axes_list[2:]:
        axes.set_xlabel("step")
    figure.suptitle(
        f"{about['model']}, {about['data']['name']}, {about['precision']}: {about['line']}"
    )
    figure.savefig(path)


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.nan)  # the axis is logarithmic
