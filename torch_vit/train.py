"""A training or evaluation run in PyTorch. Twin of `jax_vit/train.py`."""

import functools

import torch
import torch.distributed as dist

from shared_vit.run import loop
from shared_vit.run.asked import Asked
from shared_vit.run.plan import Plan, make_plan
from torch_vit import devices, ranks
from torch_vit.trainer import Trainer


def train(asked: Asked) -> int:
    """Run what the flags say; returns the exit status.

    Raises UserError before any process starts.
    """
    plan = make_plan(devices.resolve(asked), "torch")
    return ranks.launch(plan.machine, functools.partial(worker, plan))


def worker(plan: Plan, device: torch.device) -> int:
    """The share of one process in a run."""
    compiles = plan.machine.compile == "on"
    process = dist.get_rank() if dist.is_initialized() else 0
    memory = {"remat": plan.machine.remat == "block", "shard": plan.machine.shard == "params"}
    return loop.run(
        plan,
        process,
        lambda state: Trainer(state, plan.recipe, device, compile=compiles, **memory),
    )
