"""A training or evaluation run in PyTorch. Twin of `jax_vit/train.py`."""

import functools

import torch
import torch.distributed as dist

from shared_vit.run import loop
from shared_vit.run.plan import Plan, make_plan, start_state
from shared_vit.run.requested import RequestedConfig
from shared_vit.run.state import TrainState
from torch_vit import devices, ranks
from torch_vit.trainer import Trainer


def train(requested: RequestedConfig) -> int:
    """Run what the flags say; returns the exit status.

    Raises UserError before any process starts.
    """
    plan = make_plan(devices.resolve(requested), "torch")
    return ranks.launch(plan.runtime, functools.partial(worker, plan))


def worker(plan: Plan, device: torch.device) -> int:
    """What one process of a run does; returns its exit status."""
    process = dist.get_rank() if dist.is_initialized() else 0
    return loop.run(plan, process, functools.partial(_trainer, plan, device))


def make(requested: RequestedConfig) -> tuple[Plan, Trainer, int]:
    """The plan, a trainer of its first state or newest checkpoint, and the updates done so far."""
    plan = make_plan(devices.resolve(requested), "torch")
    state = start_state(plan)
    return plan, _trainer(plan, devices.device_of(plan.runtime, 0), state), state.step


def _trainer(plan: Plan, device: torch.device, state: TrainState) -> Trainer:
    compiles = plan.runtime.compile == "on"
    memory = {"remat": plan.runtime.remat == "block", "shard": plan.runtime.shard == "params"}
    return Trainer(state, plan.recipe, device, compile=compiles, **memory)
