"""A training or evaluation run in JAX. Twin of `torch_vit/train.py`."""

import jax

from jax_vit import devices
from jax_vit.trainer import Trainer
from shared_vit.run import loop
from shared_vit.run.plan import make_plan
from shared_vit.spec.recipe import TrainConfig


def train(cfg: TrainConfig) -> int:
    """Run what the flags say; returns the exit status. Raises UserError before any device works."""
    cfg = devices.resolve(cfg)
    plan = make_plan(cfg, "jax")
    mesh = devices.start(cfg)
    return loop.run(plan, jax.process_index(), lambda state: Trainer(state, plan.cfg, mesh))
