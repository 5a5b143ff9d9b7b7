"""The twins' trainers for a benchmark: on the device of this machine, from drawn weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shared_vit.run.requested import RequestedConfig
from shared_vit.run.state import first_state
from shared_vit.spec import init
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.recipe import Recipe
from shared_vit.spec.runtime import RuntimeConfig

if TYPE_CHECKING:
    import jax_vit.trainer
    import torch_vit.trainer


def jax_trainer(
    model: ModelConfig, device: str = "auto", **flags: Any
) -> tuple[jax_vit.trainer.Trainer, Recipe, RuntimeConfig]:
    """The JAX twin's trainer and what it settled; `flags` are those of the command line.

    To be called before JAX makes its first array. Raises UserError for devices that are absent.
    """
    from jax_vit import devices
    from jax_vit.trainer import Trainer

    requested = devices.resolve(RequestedConfig({"device": device, "world_size": 1, **flags}))
    recipe, machine = _settle(requested, model)
    return Trainer(_state(recipe), recipe, devices.start(machine)), recipe, machine


def torch_trainer(
    model: ModelConfig, device: str = "auto", **flags: Any
) -> tuple[torch_vit.trainer.Trainer, Recipe, RuntimeConfig]:
    """The same of the PyTorch twin; `compile` is "on" or "off", by default "on" on GPUs."""
    from torch_vit import devices
    from torch_vit.trainer import Trainer

    requested = devices.resolve(RequestedConfig({"device": device, "world_size": 1, **flags}))
    recipe, machine = _settle(requested, model)
    place = devices.device_of(machine, 0)
    trainer = Trainer(_state(recipe), recipe, place, compile=machine.compile == "on")
    return trainer, recipe, machine


def _settle(requested: RequestedConfig, model: ModelConfig) -> tuple[Recipe, RuntimeConfig]:
    recipe = Recipe(**requested.values_of(Recipe) | {"model": model, "steps": requested.steps or 1})
    return recipe, RuntimeConfig(**requested.values_of(RuntimeConfig))


def _state(recipe: Recipe):
    return first_state(recipe.model, init.draw(recipe.model, recipe.seed), recipe.precision)
