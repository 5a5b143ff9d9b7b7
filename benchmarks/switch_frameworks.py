"""One run that changes framework every 40 steps, in float64, judged by the noise rule against one
that never does.

    python benchmarks/switch_frameworks.py [--out DIR] [--figure switch.png]

jax -> torch -> jax -> torch on the digits, 160 steps with AdamW, dropout 0.1 and --grad_accum=2, by
--stop_at and --resume; judged against uninterrupted runs of either twin, with PyTorch's three
nudged runs for the noise. Exit status 1 if it does not match.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import TWINS, train  # noqa: E402
from twinvit import noise_rule  # noqa: E402

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
            plot(args.figure, runs, args.segment)
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


def plot(path: Path, runs: dict[str, Path], segment: int) -> None:
    """The loss in segments, and its distance from the uninterrupted run beside the nudged ones'."""
    from matplotlib.figure import Figure

    curves = {name: noise_rule.read_curve(p) for name, p in runs.items()}
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps, loss = np.asarray(curves["switched"].steps), np.asarray(curves["switched"].loss)
    left.plot(curves["torch"].steps, curves["torch"].loss, color="0.8", lw=5, label="PyTorch alone")
    for i, twin in enumerate(TWINS * 2):
        part = slice(max(0, i * segment - 1), (i + 1) * segment)
        color = {"jax": "tab:blue", "torch": "tab:orange"}[twin]
        label = {"jax": "JAX, resumed", "torch": "PyTorch, resumed"}[twin] if i < 2 else None
        left.plot(steps[part], loss[part], color=color, label=label)
    for i in range(1, 4):
        for axes in (left, right):
            axes.axvline(i * segment, color="0.6", lw=0.7, ls=":")
    left.set(xlabel="step", ylabel="loss", title="One run, four segments")
    left.legend()
    for seed in (1, 2, 3):
        noise = noise_rule.gap(curves["torch"], curves[f"nudge{seed}"], "loss")
        right.semilogy(
            steps, noise, color="0.7", label="PyTorch, nudged by rounding" if seed == 1 else None
        )
    right.semilogy(
        steps,
        noise_rule.gap(curves["switched"], curves["torch"], "loss"),
        color="tab:red",
        label="switched",
    )
    right.set(
        xlabel="step", ylabel="largest gap of the loss so far", title="Distance from PyTorch alone"
    )
    right.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
