"""What the tests share: small models, weights that hide nothing, and the twins side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.twin_pairs import (
    jax_trainer,
    random_arrays,
    random_images,
    to_torch,
    torch_trainer,
    traces,
    worst,
)
from shared_vit.run.schedule import learning_rate
from shared_vit.run.state import StepScalars, TrainState, first_state
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.recipe import Recipe
from shared_vit.spec.runtime import RuntimeConfig
from twinvit.parity.noise_rule import Curve, relative_l2

if TYPE_CHECKING:  # the tests of models, ports and conversion run without what only training needs
    from shared_vit.data.batch import Batch

__all__ = [
    "jax_trainer",
    "random_arrays",
    "random_images",
    "relative_l2",
    "to_torch",
    "torch_trainer",
    "traces",
    "worst",
]

# Sizes that hide nothing: heads x head width is not square, MLP width no multiple of 4, grid of 3.
SMALL = ModelConfig(
    image_size=24, patch_size=8, width=60, depth=3, num_heads=5, mlp_dim=100, num_classes=7
)
# The digits model with larger patches: 5 tokens, so that a step takes milliseconds.
TINY = ModelConfig(
    image_size=8, patch_size=4, width=64, depth=2, num_heads=4, mlp_dim=256, num_classes=10
)
DIGITS = Recipe(
    model=TINY, data="digits", batch_size=32, lr=1e-3, weight_decay=0.1, warmup_steps=10
)

IN_THREADS = RuntimeConfig(workers=0)

# Of a file of each format of weights; "" is a folder.
SUFFIX = {
    "torch": ".safetensors",
    "jax": ".safetensors",
    "timm": ".safetensors",
    "torchvision": ".pth",
    "huggingface": "",
    "google": ".npz",
    "big_vision": ".npz",
}

VARIANTS = {
    "token": SMALL,
    "gap, sincos, tanh": dataclasses.replace(
        SMALL, class_token=False, pool="mean", pos_embed="sincos2d", gelu="tanh"
    ),
    "mean without token, fc_norm": dataclasses.replace(
        SMALL, pool="mean", norm_after_pool=True, norm_eps=1e-5
    ),
    "mean with token, pre-logits": dataclasses.replace(
        SMALL, pool="mean", pool_class_token=True, pre_logits=28
    ),
}

# What the families after the first ViT have, on images that are not square too.
FAMILY = {
    "registers, centred rope": dataclasses.replace(
        SMALL,
        image_width=40,
        registers=4,
        pos_embed="none",
        rope="centred",
        rope_base=100.0,
        layer_scale="both",
        layer_scale_init=0.5,
        no_bias=("k",),
    ),
    "map": dataclasses.replace(
        SMALL, class_token=False, pool="map", map_heads=3, map_mlp=44, gelu="tanh"
    ),
    "mean, norm after it": dataclasses.replace(
        SMALL, image_width=32, pool="mean", norm_after_pool=True, registers=2
    ),
    "distilled": dataclasses.replace(SMALL, distilled=True, image_width=16),
    "norm of tokens": dataclasses.replace(
        SMALL, embed_norm="tokens", no_bias=("patch",), activation="quick_gelu", norm_eps=1e-5
    ),
    "relative bias": dataclasses.replace(
        SMALL, image_width=40, pos_embed="none", relative_bias=True, pool="token+mean"
    ),
}


def train_config(precision: str, **changes) -> Recipe:
    """A short recipe on digits; `image_size`, `dropout` and `drop_path` change its model."""
    sizes = {n: changes.pop(n) for n in ("image_size", "dropout", "drop_path") if n in changes}
    model = dataclasses.replace(DIGITS.model, **sizes)
    return dataclasses.replace(DIGITS, precision=precision, model=model, **changes)


def random_state(
    cfg: ModelConfig, precision: str, seed: int = 0, recipe: Recipe | None = None
) -> TrainState:
    """A start from weights in which no tensor is zero."""
    return first_state(cfg, random_arrays(cfg, seed), precision, recipe)


def first_batches(train: Recipe, steps: int) -> list[Batch]:
    """The batches of a run's first updates."""
    from shared_vit.data import batches

    stream = batches(train, "train")
    taken = [next(stream) for _ in range(steps)]
    stream.close()
    return taken


def run(
    trainer,
    train: Recipe,
    steps: int,
    total: int | None = None,
    lr: Callable[[int], float] | None = None,
    runtime: RuntimeConfig = IN_THREADS,
) -> Curve:
    """Train `steps` updates; the curve."""
    from shared_vit.data import batches

    stream = batches(train, "train", runtime=runtime)
    results = []
    for step in range(steps):
        rate = lr(step) if lr else learning_rate(step, total or steps, train.lr, train.warmup_steps)
        results.append(trainer.train_step(trainer.to_device(next(stream)), StepScalars(rate)).get())
    stream.close()
    loss, grad_norm = (
        np.array([getattr(r, name) for r in results]) for name in ("loss", "grad_norm")
    )
    return Curve(np.arange(1, steps + 1), loss, grad_norm)


def nudged_runs(
    state: TrainState, train: Recipe, steps: int, runtime: RuntimeConfig = IN_THREADS
) -> list[Curve]:
    """Three runs of the PyTorch twin that differ from its own by rounding alone."""
    configs = [dataclasses.replace(train, nudge=seed) for seed in (1, 2, 3)]
    return [run(torch_trainer(state, c), c, steps, runtime=runtime) for c in configs]
