"""The limits of docs/parity.md measured at published sizes, as the README's table: what the tests
assert, with its numbers.

    python benchmarks/parity_table.py [--models vit_ti16,vit_s16,vit_b16] [--json FILE]

For each model at 224 px, from weights in which no tensor is zero, JAX against PyTorch on the CPU in
float64 and float32: the worst relative L2 distance of any module's output, the logits', the worst
of any gradient, and (float64) the worst of any parameter or Adam moment after one AdamW step. The
key part of qkv.bias, which has no true gradient, is left out of the last two.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from about import origin

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from shared_vit.data.batch import Batch  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="vit_ti16,vit_s16,vit_b16")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps(measure(*args.job)))
        return
    rows = {}
    print(f"{'':<22}{'any output':>12}{'logits':>12}{'gradients':>12}{'AdamW step':>12}")
    for name in args.models.split(","):
        for precision in ("fp64", "fp32"):
            command = [sys.executable, __file__, "--job", name, precision]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            row = rows[f"{name} {precision}"] = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{name} {precision:<10}" + "".join(f"{v:>12.1e}" for v in row.values()), flush=True
            )
    if args.json:
        args.json.write_text(
            json.dumps(origin(("torch", "jax")) | {"relative_l2": rows}, indent=1) + "\n"
        )


def measure(name: str, precision: str) -> dict[str, float]:
    """One row, in a process whose float64 is on or off for good."""
    import jax
    import torch

    torch.set_num_threads(1)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", precision == "fp64")
    from benchmarks import twin_pairs as pairs
    from shared_vit import Recipe, model_config
    from shared_vit.run.state import StepScalars, first_state

    cfg = model_config(name)
    arrays = pairs.random_arrays(cfg)
    a, b = pairs.traces(cfg, arrays, precision, pairs.random_images(cfg, batch_size=2))
    row = {"outputs": pairs.worst(a, b)[0], "logits": pairs.relative_l2(a[""], b[""])}
    both = pairs.gradients(cfg, arrays, precision, batch_size=1)
    row["gradients"] = pairs.worst(*(pairs.without_key_bias(cfg, side) for side in both))[0]
    if precision == "fp64":
        recipe = Recipe(model=cfg, precision="fp64", batch_size=1, weight_decay=0.3)
        state = first_state(cfg, arrays, "fp64")
        batch = one_image(cfg.image_size)
        after = []
        for trainer in (pairs.jax_trainer(state, recipe), pairs.torch_trainer(state, recipe)):
            trainer.train_step(trainer.to_device(batch), StepScalars(1e-3)).get()
            after.append(trainer.state())
        row["adamw_step"] = pairs.state_distance(*after)[0]
    return row


def one_image(size: int) -> Batch:
    """A batch of one random image."""
    images = np.random.default_rng(2).integers(0, 256, (1, size, size, 3), np.uint8)
    return Batch(images, np.array([3], np.int32), np.ones(1, np.float32), np.arange(1), 0)


if __name__ == "__main__":
    main()
