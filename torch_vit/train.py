"""`train_torch.py`: flags, processes, trainer, loop."""

import functools
import sys
from typing import TYPE_CHECKING

from shared_vit.command_line import parse
from shared_vit.config import TrainConfig
from shared_vit.errors import run_main

if TYPE_CHECKING:
    import torch

    from shared_vit.plan import Plan


def main() -> None:
    run_main(_main)


def _main() -> int:
    cfg = parse(sys.argv[1:], prog="train_torch.py")

    from shared_vit.plan import make_plan
    from torch_vit import launch

    plan = make_plan(launch.resolve(cfg), "torch")  # here, so that an error comes once and before any process starts
    return launch.launch(plan.cfg, functools.partial(worker, plan))


def worker(plan: "Plan", cfg: TrainConfig, device: "torch.device") -> int:
    """One process's share of a run."""
    import torch.distributed as dist

    from shared_vit import loop
    from torch_vit.trainer import Trainer

    compiles = cfg.compile == "on" or (cfg.compile == "auto" and device.type == "cuda")
    process = dist.get_rank() if dist.is_initialized() else 0
    return loop.run(plan, process, lambda state: Trainer(state, cfg, device, compile=compiles))


if __name__ == "__main__":
    main()
