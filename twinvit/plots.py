"""The figure of two curves on top of one another, with their gap and what rounding explains of it."""

from pathlib import Path

import numpy as np

from twinvit.noise_rule import QUANTITIES, Curve, Verdict


def plot_curves(
    path: Path | str, curves: dict[str, Curve], verdict: Verdict | None, title: str
) -> None:
    """Write a PNG (or what the suffix says): loss and grad norm of each labelled run; below, gaps against noise."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained", dpi=130)
    axes = figure.subplots(2, 2)
    styles = [
        dict(lw=2.6, color="#4c9be8"),
        dict(lw=1.0, color="#111111", ls="--"),
        dict(lw=1.0, color="#d95f02"),
    ]
    for column, quantity in enumerate(QUANTITIES):
        top, bottom = axes[:, column]
        for (label, curve), style in zip(curves.items(), styles):
            top.plot(curve.steps, getattr(curve, quantity), label=label, **style)
        name = quantity.replace("_", " ")
        top.set(ylabel=name)
        top.legend(frameon=False)
        bottom.set(xlabel="step", ylabel=f"largest gap of the {name} so far", yscale="log")
        if verdict is not None:
            lines = {
                " against ".join(list(curves)[:2]): (verdict.gaps, "#111111"),
                "rounding alone (nudged runs)": (verdict.noise, "#4c9be8"),
            }
            for label, (values, color) in lines.items():
                positive = np.where(
                    values[quantity] > 0, values[quantity], np.nan
                )  # the axis is logarithmic
                bottom.plot(verdict.steps, positive, color=color, label=label)
            bottom.plot(
                verdict.steps, verdict.bound[quantity], color="#d95f02", lw=1, ls=":", label="limit"
            )
            if verdict.decided_until < verdict.steps[-1]:
                bottom.axvline(verdict.decided_until, color="0.6", lw=0.8)
                bottom.annotate("decided up to here", (verdict.decided_until, 0.02), xycoords=("data", "axes fraction"),
                                fontsize=8, color="0.4")  # fmt: skip
            bottom.legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    figure.savefig(path)
