"""What a checkpoint costs the training loop: the time of the steps around `Writer.save`, against
steps without one.

    python benchmarks/checkpoint_cost.py [--model vit_s16] [--batch_size 16] [--device cpu]

The real Trainer, fed the same batch again and again, two steps in flight as in the training loop.
Three times in turn: --steps plain steps, and as many with a save after the first. The cost is the
difference between the fastest of either kind: waiting for the steps in flight, copying the state on
its device, handing it to the writer, and what the write in the background takes from the steps
beside it. The limit is one step's time: exit status 1 above it.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

import trainers  # noqa: E402

from shared_vit.data.batch import Batch  # noqa: E402
from shared_vit.run import checkpoint  # noqa: E402
from shared_vit.run.state import StepScalars, Trainer  # noqa: E402
from shared_vit.spec.config import model_config, name_of  # noqa: E402
from shared_vit.spec.recipe import Recipe  # noqa: E402
from shared_vit.spec.runtime import RuntimeConfig  # noqa: E402

ROUNDS, LAG = 3, 2


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_s16")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument(
        "--steps", type=int, default=10, help="in a stretch; more than a write takes"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "gpu"))
    parser.add_argument("--twin", default="both", choices=("both", "jax", "torch"))
    parser.add_argument(
        "--out", help="where to write the checkpoints (default: a temporary folder)"
    )
    args = parser.parse_args()
    model, flags = model_config(args.model), {"batch_size": args.batch_size}
    worst = 0.0
    for twin, make in (("jax", trainers.jax_trainer), ("torch", trainers.torch_trainer)):
        if args.twin in ("both", twin):
            made = make(model, args.device, **flags)
            with tempfile.TemporaryDirectory(prefix="checkpoint_cost_", dir=args.out) as folder:
                worst = max(worst, measure(twin, *made, args.steps, Path(folder)))
    return 0 if worst < 1 else 1


def measure(
    twin: str, trainer: Trainer, recipe: Recipe, machine: RuntimeConfig, stretch: int, folder: Path
) -> float:
    """Print the times of a twin; returns the cost of a checkpoint in steps."""
    batch = trainer.to_device(_batch(recipe.batch_size))
    in_flight: deque = deque()

    def steps(count: int, save: bool) -> float:
        begin = time.perf_counter()
        for i in range(count):
            in_flight.append(trainer.train_step(batch, StepScalars(1e-4)))
            while len(in_flight) > LAG:
                in_flight.popleft().get()
            if save and i == 0:
                while in_flight:
                    in_flight.popleft().get()
                before = time.perf_counter()
                snapshot = trainer.snapshot()
                copied = time.perf_counter()
                writer.save(trainer.step, snapshot, {"epoch": 0.0, "seed": 0})
                parts["copy"].append(copied - before)
                parts["hand over"].append(time.perf_counter() - copied)
        while in_flight:
            in_flight.popleft().get()
        return time.perf_counter() - begin

    writer = checkpoint.Writer(folder, keep=2)
    parts: dict[str, list[float]] = {"copy": [], "hand over": [], "write alone": []}
    steps(3, save=False)  # compiles
    steps(2, save=True)
    writer.wait()
    for values in parts.values():
        values.clear()
    plain, saving = [], []
    for _ in range(ROUNDS):
        plain.append(steps(stretch, save=False))
        saving.append(steps(stretch, save=True))
        writer.wait()
        begin = time.perf_counter()
        writer.save(trainer.step, trainer.snapshot(), {"epoch": 0.0, "seed": 0})
        writer.wait()
        parts["write alone"].append(time.perf_counter() - begin)
    writer.close()
    step = min(plain) / stretch
    cost = min(saving) - min(plain)
    size = sum(f.stat().st_size for f in max(folder.glob("checkpoints/step_*")).iterdir()) / 1e6
    shown = ", ".join(f"{name} {1e3 * statistics.median(v):.0f} ms" for name, v in parts.items())
    print(
        f"{twin}: {name_of(recipe.model)}, batch {recipe.batch_size}, {machine.device} "
        f"{recipe.precision}: a step {1e3 * step:.0f} ms; a checkpoint of {size:.0f} MB costs the "
        f"loop {1e3 * cost:.0f} ms, {cost / step:.2f} of a step ({shown})",
        flush=True,
    )
    return cost / step


def _batch(size: int) -> Batch:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, 224, 224, 3), np.uint8)
    labels = rng.integers(0, 1000, size).astype(np.int32)
    return Batch(images, labels, np.ones(size, np.float32), np.arange(size), 0)


if __name__ == "__main__":
    sys.exit(main())
