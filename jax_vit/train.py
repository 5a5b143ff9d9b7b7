"""A training or evaluation run in JAX. Twin of `torch_vit/train.py`."""

import jax

from jax_vit import devices
from jax_vit.trainer import Trainer
from shared_vit.run import loop
from shared_vit.run.asked import Asked
from shared_vit.run.plan import make_plan


def train(asked: Asked) -> int:
    """Run what the flags say; returns the exit status. Raises UserError before any device works."""
    with devices.together():
        plan = make_plan(devices.resolve(asked), "jax")
        mesh = devices.start(plan.machine)
        memory = {"remat": plan.machine.remat == "block", "shard": plan.machine.shard == "params"}
        return loop.run(
            plan,
            jax.process_index(),
            lambda state: Trainer(state, plan.recipe, mesh, **memory),
        )
