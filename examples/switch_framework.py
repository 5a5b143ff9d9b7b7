"""Train in PyTorch, go on in JAX, and look at the curve beside one that never changed framework.

    python examples/switch_framework.py OUT [--flag=value ...]

OUT/switched is the run in two frameworks, OUT/torch the one in PyTorch alone, OUT/curves.png shows
both and their gap. Further flags go to both runs: `--preset=cifar10 --steps=400 --stop_at=200`.
"""

import subprocess
import sys
from pathlib import Path

FLAGS = ["--preset=digits", "--steps=120", "--stop_at=60", "--warmup_steps=20"]


def twinvit(*arguments: str) -> None:
    """`twinvit ...`, as in a shell."""
    done = subprocess.run([sys.executable, "-m", "twinvit", *arguments])
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    out, flags = Path(sys.argv[1]), sys.argv[2:] or FLAGS
    switched, alone = f"--run_dir={out / 'switched'}", f"--run_dir={out / 'torch'}"
    twinvit("train", "--framework=torch", switched, *flags)  # ends at --stop_at
    twinvit("train", "--framework=jax", switched, "--resume")
    twinvit("train", "--framework=torch", alone, *flags)
    twinvit("train", "--framework=torch", alone, "--resume")
    twinvit("curves", str(out / "torch"), str(out / "switched"), f"--output={out / 'curves.png'}")


if __name__ == "__main__":
    main()
