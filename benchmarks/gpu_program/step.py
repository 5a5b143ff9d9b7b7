"""The JAX twin's training step without weights, to be lowered, or compiled for described GPUs."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_vit.bridge import abstract_model
from jax_vit.objective import Mixing, Objective
from jax_vit.trainer import Trainer
from shared_vit.run.state import StepScalars
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.mask_keys import num_sites
from shared_vit.spec.optimizers import EMA
from shared_vit.spec.precision import PRECISIONS
from shared_vit.spec.recipe import Recipe

BATCH = 8  # of programs that are only lowered; the types and calls are those of any batch


class ShapesTrainer(Trainer):
    """A Trainer that holds shapes in place of arrays: its `_step` can be traced, and not run."""

    def __init__(self, cfg: ModelConfig, train: Recipe, mesh: Mesh):
        super().__init__(SimpleNamespace(config=cfg), train, mesh)

    def load(self, state: SimpleNamespace) -> None:
        """Take the shapes of the model's arrays and of the optimizer's."""
        model = abstract_model(self.cfg, self.train.precision)
        _, self.params, self.fixed = nnx.split(model, self._is_trained, ...)
        self.slots = jax.eval_shape(self.optimizer.init, self.params)
        if self.train.ema:
            self.slots[EMA] = self.params
        self.adam_count = 0

    def trace(self) -> jax.stages.Traced:
        """The training step, its inputs placed on the mesh as a run places them."""
        cfg, recipe, batch = self.cfg, self.train, self.train.batch_size
        whole = NamedSharding(self.mesh, PartitionSpec())
        by_row = NamedSharding(self.mesh, PartitionSpec(None, "data"))
        by_device = NamedSharding(self.mesh, PartitionSpec("data"))

        def array(shape, dtype, sharding=whole):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

        def placed(tree):
            return jax.tree.map(lambda a: array(a.shape, a.dtype), tree)

        images = (1, batch, *cfg.image_shape, 3)
        rows = [
            array(images, jnp.uint8, by_row),
            array((1, batch), jnp.int32, by_row),
            array((1, batch), self.dtype, by_row),
            array((1, batch), jnp.int32, by_row),
        ]
        sites = num_sites(cfg.depth, paths=cfg.drop_path > 0)
        keys = array((sites, 2), jnp.uint32) if cfg.draws_masks else None
        mixed = recipe.mixup or recipe.cutmix
        mixing = Mixing(array((2,), self.dtype), array((4,), jnp.int32)) if mixed else None
        return jax.jit(self._step, donate_argnums=(0, 1)).trace(
            placed(self.params),
            placed(self.slots),
            placed(self.fixed),
            tuple(rows),
            (keys, mixing),
            array(self._to_scalars(StepScalars(0.0)).shape, self.dtype),
            array((), jnp.uint32),
            array((self.mesh.devices.size,), jnp.int32, by_device),
        )


def lower(cfg: ModelConfig, precision: str, what: str) -> jax.stages.Lowered:
    """The loss ("forward") or its gradient ("gradient"), lowered for CUDA on any machine."""
    graphdef, params, fixed = nnx.split(abstract_model(cfg, precision), nnx.Param, ...)
    objective = Objective(graphdef, cfg, np.dtype(PRECISIONS[precision].param))
    function = {"forward": objective, "gradient": jax.grad(objective)}[what]
    images = jax.ShapeDtypeStruct((BATCH, *cfg.image_shape, 3), jnp.uint8)
    labels = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    traced = jax.jit(function).trace(params, fixed, images, labels)
    return traced.lower(lowering_platforms=("cuda",))
