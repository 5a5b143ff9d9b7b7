"""CIFAR-10 by the preset `cifar10` in both twins, for as many epochs as a small machine allows.

    python benchmarks/cifar10.py --cifar DIR --work DIR --json benchmarks/results/cifar10_cpu.json

`--cifar` is a folder of train/<class>/ and val/<class>/ with CIFAR-10's images. The twins train
one after the other, each on all cores. A run that is done in `--work` is read and not run again,
one that was interrupted goes on. The curve in the results is of means over 50 updates.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.about import origin  # noqa: E402
from twinvit.parity.noise_rule import QUANTITIES, gap, read_curve  # noqa: E402

TWINS = ("torch", "jax")
BLOCK = 50  # updates


def flags(epochs: int) -> list[str]:
    """The preset's recipe in fewer epochs of 391 steps, the warm-up a twentieth of them."""
    steps = epochs * 50_000 // 128
    return [
        "--preset=cifar10", "--data=folder", f"--epochs={epochs}", f"--warmup_steps={steps // 20}",
        "--eval_every=782", "--device=cpu", "--precision=fp32", "--world_size=1",
    ]  # fmt: skip


def train(run_dir: Path, twin: str, cifar: Path, epochs: int) -> None:
    if (run_dir / "done").exists():
        return
    command = [sys.executable, "-m", "twinvit", "train", f"--framework={twin}", *flags(epochs)]
    command += [f"--data_dir={cifar}", f"--run_dir={run_dir}"]
    command += ["--resume"] * (run_dir / "config.json").exists()
    subprocess.run(command, check=True)
    (run_dir / "done").touch()


def result(run_dir: Path) -> dict[str, Any]:
    """Evaluations, curve and time of a run; the time is that of updates, without evaluations."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    timing = [json.loads(line) for line in (run_dir / "timing.jsonl").read_text().splitlines()]
    blocks = [row for row in timing if "images_per_second" in row]
    curve = read_curve(run_dir)
    return {
        "minutes_of_updates": round(sum(row["seconds"] for row in blocks) / 60, 1),
        "images_per_second_median": float(np.median([row["images_per_second"] for row in blocks])),
        "evaluations": [
            {k: v for k, v in row.items() if k == "step" or k.startswith("val")}
            for row in rows
            if "val_top1" in row
        ],
        "curve": {
            "step": curve.steps[BLOCK - 1 :: BLOCK].tolist(),
            **{q: means(getattr(curve, q)) for q in QUANTITIES},
        },
    }


def means(values: np.ndarray) -> list[float]:
    whole = len(values) // BLOCK * BLOCK
    return values[:whole].reshape(-1, BLOCK).mean(1).round(6).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args()
    work, found = args.work.resolve(), {}
    for twin in TWINS:
        train(work / twin, twin, args.cifar.resolve(), args.epochs)
        found[twin] = result(work / twin)
        top1 = [f"{100 * row['val_top1']:.2f}" for row in found[twin]["evaluations"]]
        print(f"{twin}: {found[twin]['minutes_of_updates']} minutes, top-1 {', '.join(top1)} %")
    a, b = (read_curve(work / twin) for twin in TWINS)
    steps = [s for s in (1, 10, 50, 100, 500, 1000) if s < len(a)] + [len(a)]
    gaps = {q: {str(s): float(gap(a, b, q)[s - 1]) for s in steps} for q in QUANTITIES}
    if args.json:
        about = origin(("torch", "jax", "flax"), [args.cifar, args.work])
        report = about | {"flags": flags(args.epochs), "runs": found, "largest_gap_up_to": gaps}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
