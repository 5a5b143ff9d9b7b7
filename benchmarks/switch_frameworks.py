"""One run that changes framework every 40 steps, in float64, judged by the noise rule against one
that never does.

    python benchmarks/switch_frameworks.py [--out DIR] [--figure switch.png]

The figure is drawn twice: for light pages, and as switch-dark.png for dark ones.

jax -> torch -> jax -> torch on the digits, 160 steps with AdamW, dropout 0.1 and --grad_accum=2, by
--stop_at and --resume; judged against uninterrupted runs of either twin, with PyTorch's three
nudged runs for the noise. Exit status 1 if it does not match.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import TWINS, train  # noqa: E402
from twinvit.parity import noise_rule  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Curves = dict[str, noise_rule.Curve]

FLAGS = (
    "--preset=digits", "--device=cpu", "--precision=fp64", "--optimizer=adamw", "--dropout=0.1",
    "--grad_accum=2", "--warmup_steps=20", "--eval_every=40",
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="keep the runs here")
    parser.add_argument("--figure", type=Path)
    parser.add_argument(
        "--segment", type=int, default=40, help="steps between two changes of framework"
    )
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="switch_") as temporary:
        out = args.out or Path(temporary)
        runs = make_runs(out, args.segment)
        verdicts = [judge(runs, against) for against in TWINS]
        if args.figure:
            curves = {name: noise_rule.read_curve(path) for name, path in runs.items()}
            dark = args.figure.with_name(f"{args.figure.stem}-dark{args.figure.suffix}")
            plot(args.figure, curves, args.segment)
            plot(dark, curves, args.segment, dark=True)
    for against, verdict in zip(TWINS, verdicts):
        print(f"against {against} alone: {verdict.describe()}")
    return 0 if all(v.matched for v in verdicts) else 1


def make_runs(out: Path, segment: int) -> dict[str, Path]:
    """The switched run, each twin alone, and PyTorch nudged three times."""
    flags = (*FLAGS, f"--steps={4 * segment}")
    runs = {name: out / name for name in ("switched", *TWINS, "nudge1", "nudge2", "nudge3")}
    for i, twin in enumerate(TWINS * 2):
        train(
            twin,
            runs["switched"],
            *(("--resume",) if i else flags),
            f"--stop_at={segment * (i + 1)}",
            timeout=1200,
        )
    for twin in TWINS:
        train(twin, runs[twin], *flags, timeout=1200)
    for seed in (1, 2, 3):
        train("torch", runs[f"nudge{seed}"], *flags, f"--nudge={seed}", timeout=1200)
    return runs


def judge(runs: dict[str, Path], against: str) -> noise_rule.Verdict:
    """The noise rule's verdict on the switched run and an uninterrupted one."""
    curves = {name: noise_rule.read_curve(path) for name, path in runs.items()}
    nudged = [curves[f"nudge{seed}"] for seed in (1, 2, 3)]
    epsilon = float(np.finfo(np.float64).eps)
    return noise_rule.noise_rule(
        curves["switched"], curves[against], curves["torch"], nudged, epsilon
    )


def plot(path: Path, curves: Curves, segment: int, dark: bool = False) -> None:
    """The loss in segments, and its distance from the uninterrupted run beside the nudged ones'.

    Its letters are read at a width of 700 pixels.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    style = {"figure.facecolor": "#0d1117", "axes.facecolor": "#0d1117"} if dark else {}
    with matplotlib.style.context(["dark_background", style] if dark else "default"):
        figure = Figure(figsize=(7, 3.1), layout="constrained")
        left, right = figure.subplots(1, 2)
        pale = "0.35" if dark else "0.8"
        plot_segments(left, curves, segment, pale)
        plot_distances(right, curves, pale)
        for axes in (left, right):
            for i in range(1, 4):
                axes.axvline(i * segment, color="0.6", lw=0.7, ls=":")
        figure.savefig(path, dpi=200)


def plot_segments(axes: Axes, curves: Curves, segment: int, pale: str) -> None:
    """The switched run's loss, each segment in the colour of its framework."""
    switched, alone = curves["switched"], curves["torch"]
    steps, loss = np.asarray(switched.steps), np.asarray(switched.loss)
    axes.plot(alone.steps, alone.loss, color=pale, lw=5, label="PyTorch alone")
    for i, twin in enumerate(TWINS * 2):
        part = slice(max(0, i * segment - 1), (i + 1) * segment)
        color = {"jax": "tab:blue", "torch": "tab:orange"}[twin]
        label = {"jax": "JAX, resumed", "torch": "PyTorch, resumed"}[twin] if i < 2 else None
        axes.plot(steps[part], loss[part], color=color, label=label)
    axes.set(xlabel="step", ylabel="loss", title="One run, four segments")
    axes.legend(loc="upper right", fontsize=8)


def plot_distances(axes: Axes, curves: Curves, pale: str) -> None:
    """The distances from PyTorch alone, of the switched run and of PyTorch nudged by rounding."""
    alone = curves["torch"]
    for seed in (1, 2, 3):
        noise = noise_rule.gap(alone, curves[f"nudge{seed}"], "loss")
        label = "PyTorch, nudged by rounding" if seed == 1 else None
        axes.semilogy(alone.steps, noise, color=pale, label=label)
    switched = noise_rule.gap(curves["switched"], alone, "loss")
    axes.semilogy(alone.steps, switched, color="tab:red", label="switched")
    axes.set(
        xlabel="step", ylabel="largest gap of the loss so far", title="Distance from PyTorch alone"
    )
    axes.legend(loc="lower right", fontsize=8, handlelength=1.2)


if __name__ == "__main__":
    sys.exit(main())
