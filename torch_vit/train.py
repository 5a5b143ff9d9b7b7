"""A training or evaluation run in PyTorch. Twin of `jax_vit/train.py`."""

import functools

import torch
import torch.distributed as dist

from shared_vit.run import loop
from shared_vit.run.plan import Plan, make_plan
from shared_vit.spec.recipe import TrainConfig
from torch_vit import devices
from torch_vit.trainer import Trainer


def train(cfg: TrainConfig) -> int:
    """Run what the flags say; returns the exit status. Raises UserError before any process starts."""
    plan = make_plan(devices.resolve(cfg), "torch")
    return devices.launch(plan.cfg, functools.partial(worker, plan))


def worker(plan: Plan, cfg: TrainConfig, device: torch.device) -> int:
    """The share of one process in a run."""
    compiles = cfg.compile == "on" or (cfg.compile == "auto" and device.type == "cuda")
    process = dist.get_rank() if dist.is_initialized() else 0
    return loop.run(plan, process, lambda state: Trainer(state, cfg, device, compile=compiles))
