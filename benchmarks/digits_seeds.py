"""Accuracy on digits over seeds, of both twins, by the preset and with newer pieces of a recipe.

    python benchmarks/digits_seeds.py --work DIR --json benchmarks/results/digits_seeds.json

A run that is done in `--work` is read and not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.about import origin  # noqa: E402

RECIPES = {
    "preset digits": (),
    "with smoothing, mixup, stochastic depth and an average": (
        "--label_smoothing=0.1", "--mixup=0.2", "--drop_path=0.1", "--ema=0.995",
    ),
}  # fmt: skip


def last(run_dir: Path, framework: str, seed: int, flags: tuple[str, ...]) -> dict[str, float]:
    """The last evaluation of a run."""
    if not (run_dir / "done").exists():
        command = [sys.executable, "-m", "twinvit", "train", f"--framework={framework}",
                   "--preset=digits", "--device=cpu", f"--seed={seed}", f"--run_dir={run_dir}",
                   "--eval_every=0", "--checkpoint_every=0", *flags]  # fmt: skip
        if (run_dir / "config.json").exists():
            command.append("--resume")
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (run_dir / "done").touch()
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args()
    found: dict[str, dict] = {}
    for name, flags in RECIPES.items():
        for framework in ("torch", "jax"):
            rows = []
            for seed in range(args.seeds):
                folder = args.work.resolve() / f"{framework}-{list(RECIPES).index(name)}-{seed}"
                rows.append(last(folder, framework, seed, flags))
            for metric in ("val_top1", "val_top1_ema"):
                values = [row[metric] for row in rows if metric in row]
                if values:
                    key = f"{name}, {framework}" + (", averaged" if "ema" in metric else "")
                    spread = statistics.stdev(values) if len(values) > 1 else 0.0
                    found[key] = {
                        "mean": statistics.mean(values), "spread": spread, "top1": values,
                    }  # fmt: skip
                    print(f"{key}: {100 * found[key]['mean']:.2f} +- {100 * spread:.2f} %")
    if args.json:
        about = origin(("torch", "jax", "flax"), [args.work])
        recipes = {name: " ".join(flags) for name, flags in RECIPES.items()}
        report = about | {"recipes": recipes, "top1": found}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
