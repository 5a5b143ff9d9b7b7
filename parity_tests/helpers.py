"""What the tests share: small models, weights that hide nothing, and the twins side by side."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
import torch

import jax_vit
import torch_vit
from jax_vit.trainer import Trainer as JaxTrainer
from shared_vit.data import batches
from shared_vit.run.schedule import learning_rate
from shared_vit.run.state import StepScalars, TrainState, first_state
from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.machine import Machine
from shared_vit.spec.recipe import Recipe
from torch_vit.trainer import Trainer as TorchTrainer
from twinvit.noise_rule import Curve, relative_l2

# Sizes that hide nothing: heads x head width is not square, MLP width no multiple of 4, grid of 3.
SMALL = ModelConfig(image_size=24, patch_size=8, width=60, depth=3, num_heads=5, mlp_dim=100, num_classes=7)
# The digits model with larger patches: 5 tokens, so that a step takes milliseconds.
TINY = ModelConfig(image_size=8, patch_size=4, width=64, depth=4, num_heads=4, mlp_dim=256, num_classes=10)
DIGITS = Recipe(model=TINY, data="digits", batch_size=32, lr=1e-3, weight_decay=0.1, warmup_steps=10)

IN_THREADS = Machine(workers=0)

VARIANTS = {
    "token": SMALL,
    "gap, sincos, tanh": dataclasses.replace(SMALL, class_token=False, pool="mean", pos_embed="sincos2d", gelu="tanh"),
    "mean without token, fc_norm": dataclasses.replace(SMALL, pool="mean", norm_after_pool=True, norm_eps=1e-5),
    "mean with token, pre-logits": dataclasses.replace(SMALL, pool="mean", pool_class_token=True, pre_logits=28),
}


def random_arrays(cfg: ModelConfig, seed: int = 0, dtype=np.float32) -> dict[str, np.ndarray]:
    """Weights in which no tensor is zero or constant, biases and norms included, at the scale of a trained model's."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in canonical.shapes(cfg).items():
        values = rng.standard_normal(shape)
        if name.endswith("weight") and len(shape) > 1:
            values *= 1.5 / np.sqrt(np.prod(shape[1:]))
        elif "norm" in name and name.endswith("weight"):
            values = 1 + 0.2 * values
        else:
            values *= 0.2
        arrays[name] = values.astype(np.float32).astype(dtype)
    return arrays


def random_images(cfg: ModelConfig, batch_size: int = 3, seed: int = 1, dtype=np.float32) -> np.ndarray:
    """Normalised images [B, H, W, 3]."""
    shape = (batch_size, cfg.image_size, cfg.image_size, 3)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32).astype(dtype)


def to_torch(images: np.ndarray) -> torch.Tensor:
    """[B, H, W, 3] -> [B, 3, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def traces(cfg: ModelConfig, arrays, precision: str, images=None) -> tuple[dict, dict]:
    """Every module's output of the JAX and of the PyTorch twin on the same images, as float64."""
    images = random_images(cfg) if images is None else images
    images = images.astype(np.float64 if precision == "fp64" else np.float32)
    a = jax_vit.from_arrays(cfg, arrays, precision).trace(images)
    b = torch_vit.from_arrays(cfg, arrays, precision).trace(to_torch(images))
    return (
        {n: np.asarray(v).astype(np.float64) for n, v in a.items()},
        {n: v.double().numpy() for n, v in b.items()},
    )


def worst(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> tuple[float, str]:
    """The largest relative L2 distance over the arrays of two dictionaries with the same names, and its name."""
    assert list(a) == list(b)
    return max((relative_l2(a[n], b[n]), n) for n in a)


def train_config(precision: str, **changes) -> Recipe:
    """A short recipe on digits; `image_size` and `dropout` change its model."""
    sizes = {n: changes.pop(n) for n in ("image_size", "dropout") if n in changes}
    model = dataclasses.replace(DIGITS.model, **sizes)
    return dataclasses.replace(DIGITS, precision=precision, model=model, **changes)


def jax_trainer(state: TrainState, train: Recipe, devices: int = 1) -> JaxTrainer:
    mesh = jax.make_mesh((devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])
    return JaxTrainer(state, train, mesh)


def torch_trainer(state: TrainState, train: Recipe) -> TorchTrainer:
    return TorchTrainer(state, train, torch.device("cpu"))


def random_state(cfg: ModelConfig, precision: str, seed: int = 0) -> TrainState:
    """A start from weights in which no tensor is zero."""
    return first_state(cfg, random_arrays(cfg, seed), precision)


def run(
    trainer,
    train: Recipe,
    steps: int,
    total: int | None = None,
    lr: Callable[[int], float] | None = None,
    machine: Machine = IN_THREADS,
) -> Curve:
    """Train `steps` updates; the curve."""
    stream = batches(train, "train", machine=machine)
    results = []
    for step in range(steps):
        rate = lr(step) if lr else learning_rate(step, total or steps, train.lr, train.warmup_steps)
        results.append(trainer.train_step(trainer.put(next(stream)), StepScalars(rate)).get())
    stream.close()
    loss, grad_norm = (np.array([getattr(r, name) for r in results]) for name in ("loss", "grad_norm"))
    return Curve(np.arange(1, steps + 1), loss, grad_norm)


def nudged_runs(
    state: TrainState, train: Recipe, steps: int, machine: Machine = IN_THREADS
) -> list[Curve]:
    """Three runs of the PyTorch twin that differ from its own by rounding alone."""
    configs = [dataclasses.replace(train, nudge=seed) for seed in (1, 2, 3)]
    return [run(torch_trainer(state, c), c, steps, machine=machine) for c in configs]
