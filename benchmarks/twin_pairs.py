"""Both twins on the same weights and inputs, in this process: what tests compare."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
import torch
from flax import nnx

import jax_vit
import torch_vit
from jax_vit.bridge import state_arrays
from jax_vit.objective import Objective as JaxObjective
from jax_vit.trainer import Trainer as JaxTrainer
from shared_vit.run.state import TrainState
from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.recipe import Recipe
from torch_vit.objective import Objective as TorchObjective
from torch_vit.trainer import Trainer as TorchTrainer
from twinvit.compare.drawn_weights import random_arrays
from twinvit.parity.noise_rule import relative_l2

__all__ = [
    "gradients",
    "jax_trainer",
    "random_arrays",
    "random_images",
    "state_distance",
    "to_torch",
    "torch_trainer",
    "traces",
    "without_key_bias",
    "worst",
]

Arrays = dict[str, np.ndarray]


def random_images(
    cfg: ModelConfig, batch_size: int = 3, seed: int = 1, dtype: type = np.float32
) -> np.ndarray:
    """Normalised images [B, H, W, 3]."""
    shape = (batch_size, *cfg.image_shape, 3)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32).astype(dtype)


def to_torch(images: np.ndarray) -> torch.Tensor:
    """[B, H, W, 3] -> [B, 3, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def traces(
    cfg: ModelConfig, arrays: Arrays, precision: str, images: np.ndarray | None = None
) -> tuple[Arrays, Arrays]:
    """The output of every module, of the JAX and of the PyTorch twin on the same images.

    Both are float64, whatever the precision of the models.
    """
    images = random_images(cfg) if images is None else images
    images = images.astype(np.float64 if precision == "fp64" else np.float32)
    a = jax_vit.from_arrays(cfg, arrays, precision).trace(images)
    b = torch_vit.from_arrays(cfg, arrays, precision).trace(to_torch(images))
    return (
        {n: np.asarray(v).astype(np.float64) for n, v in a.items()},
        {n: v.double().numpy() for n, v in b.items()},
    )


def gradients(
    cfg: ModelConfig, arrays: Arrays, precision: str, batch_size: int = 3
) -> tuple[Arrays, Arrays]:
    """The gradient of the summed cross-entropy for every trained tensor, of both twins.

    By canonical name, in canonical layouts; JAX first.
    """
    images = (random_images(cfg, batch_size) * 50 + 128).clip(0, 255).astype(np.uint8)
    labels = np.arange(batch_size, dtype=np.int64) % cfg.num_classes

    graphdef, params, fixed = nnx.split(jax_vit.from_arrays(cfg, arrays, precision), nnx.Param, ...)
    objective = JaxObjective(graphdef, cfg, jax.tree.leaves(params)[0].dtype)
    in_jax = state_arrays(jax.grad(objective)(params, fixed, images, labels.astype(np.int32)))

    model = torch_vit.from_arrays(cfg, arrays, precision)
    TorchObjective(model)(torch.from_numpy(images), torch.from_numpy(labels)).backward()
    in_torch = {name: p.grad.numpy() for name, p in model.named_parameters()}
    return {name: in_jax[name] for name in in_torch}, in_torch


def jax_trainer(state: TrainState, recipe: Recipe, devices: int = 1, **memory: bool) -> JaxTrainer:
    """A trainer over the first devices of this process."""
    kinds, some = (jax.sharding.AxisType.Auto,), jax.devices()[:devices]
    mesh = jax.make_mesh((devices,), ("data",), kinds, devices=some)
    return JaxTrainer(state, recipe, mesh, **memory)


def torch_trainer(state: TrainState, recipe: Recipe, **memory: bool) -> TorchTrainer:
    """A trainer on the CPU."""
    return TorchTrainer(state, recipe, torch.device("cpu"), **memory)


def without_key_bias(cfg: ModelConfig, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Without the key part of `qkv.bias`, where it is not of the function.

    It has no true gradient, since softmax does not see it, and Adam scales its rounding up.
    """
    if not canonical.has_unseen_key_bias(cfg):
        return dict(arrays)
    rows = np.s_[cfg.width : 2 * cfg.width]
    return {n: np.delete(a, rows) if n.endswith("qkv.bias") else a for n, a in arrays.items()}


def worst(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> tuple[float, str]:
    """The largest relative L2 distance over arrays of the same names, and the name."""
    if list(a) != list(b):
        raise ValueError(f"not of the same names: {sorted(set(a) ^ set(b))[:4]}")
    return max((relative_l2(a[n], b[n]), n) for n in a)


def state_distance(a: TrainState, b: TrainState) -> tuple[float, str]:
    """`worst` over parameters and every slot of two states, key biases left out."""
    parts = [(a.params, b.params), *((a.slots[slot], b.slots[slot]) for slot in a.slots)]
    cfg = a.config
    return max(worst(without_key_bias(cfg, x), without_key_bias(cfg, y)) for x, y in parts)
