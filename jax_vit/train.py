"""A training or evaluation run in JAX. Twin of `torch_vit/train.py`."""

import functools

import jax
from jax.sharding import Mesh

from jax_vit import devices
from jax_vit.trainer import Trainer
from shared_vit.run import loop
from shared_vit.run.plan import Plan, make_plan, start_state
from shared_vit.run.requested import RequestedConfig
from shared_vit.run.state import TrainState


def train(requested: RequestedConfig) -> int:
    """Run what the flags say; returns the exit status. Raises UserError before any device works."""
    with devices.abort_all_on_failure():
        plan = make_plan(devices.resolve(requested), "jax")
        mesh = devices.start(plan.runtime)
        return loop.run(plan, jax.process_index(), functools.partial(_trainer, plan, mesh))


def make(requested: RequestedConfig) -> tuple[Plan, Trainer, int]:
    """The plan, a trainer of its first state or newest checkpoint, and the updates done so far."""
    plan = make_plan(devices.resolve(requested), "jax")
    state = start_state(plan)
    return plan, _trainer(plan, devices.start(plan.runtime), state), state.step


def _trainer(plan: Plan, mesh: Mesh, state: TrainState) -> Trainer:
    memory = {"remat": plan.runtime.remat == "block", "shard": plan.runtime.shard == "params"}
    return Trainer(state, plan.recipe, mesh, **memory)
