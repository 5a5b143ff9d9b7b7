"""The parity contract measured at published sizes, as the README's table: what the tests assert, with its numbers.

    python benchmarks/parity_table.py [--models vit_ti16,vit_s16,vit_b16] [--json FILE]

For each model at 224 px, from weights in which no tensor is zero, JAX against PyTorch on the CPU in float64 and float32: the
worst relative L2 distance of any module's output, the logits', the worst of any gradient, and (float64) the worst of any
parameter or Adam moment after one AdamW step. The key part of qkv.bias, which has no true gradient, is left out of the last two.
"""

import argparse
import dataclasses
import datetime
import json
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "parity_tests")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
            print(f"{name} {precision:<10}" + "".join(f"{v:>12.1e}" for v in row.values()), flush=True)
    if args.json:
        args.json.write_text(json.dumps(about() | {"relative_l2": rows}, indent=1) + "\n")


def measure(name: str, precision: str) -> dict[str, float]:
    """One row, in a process whose float64 is on or off for good."""
    import conftest  # noqa: F401 - one thread, the CPU
    import jax

    jax.config.update("jax_enable_x64", precision == "fp64")
    import helpers
    from test_gradients import gradients
    from test_optimizer_step import distance, states_after, without_key_bias

    from shared_vit import model_config

    cfg = model_config(name)
    arrays = helpers.random_arrays(cfg)
    a, b = helpers.traces(cfg, arrays, precision, helpers.random_images(cfg, batch_size=2))
    row = {"outputs": helpers.worst(a, b)[0], "logits": helpers.relative_l2(a[""], b[""])}
    a, b = (without_key_bias(cfg, side) for side in gradients(cfg, arrays, precision, batch_size=1))
    row["gradients"] = helpers.worst(a, b)[0]
    if precision == "fp64":
        cfg = dataclasses.replace(cfg, num_classes=10)
        train = helpers.train_config("fp64", batch_size=1, image_size=224, weight_decay=0.3)
        (a, b), _, _ = states_after(train, cfg=cfg)
        row["adamw_step"] = distance(a, b, cfg)[0]
    return row


def about() -> dict:
    """The machine, the versions, the command, the date."""
    import jax
    import torch

    cpu = next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), platform.machine()
    )
    return {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"CPU {cpu}",
        "versions": {"torch": torch.__version__, "jax": jax.__version__, "python": platform.python_version()},
        "date": datetime.date.today().isoformat(),
    }


if __name__ == "__main__":
    main()
