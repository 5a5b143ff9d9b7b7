"""The optimizers' constants and slots, for both twins."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared_vit.spec.recipe import Recipe

# Adam's (Kingma and Ba 2015). Epsilon is added outside the root.
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
ADAM_SLOTS = ("exp_avg", "exp_avg_sq")  # the first and second moments, slots of a TrainState
SGD_SLOTS = ("momentum_buffer",)
EMA = "ema"  # the slot of the averaged weights


def optimizer_slots(recipe: Recipe) -> tuple[str, ...]:
    """Those that the optimizer itself reads and writes."""
    return SGD_SLOTS if recipe.optimizer == "sgd" else ADAM_SLOTS


def slots_of(recipe: Recipe) -> tuple[str, ...]:
    """The slots of a run's TrainState."""
    return (*optimizer_slots(recipe), *((EMA,) if recipe.ema else ()))
