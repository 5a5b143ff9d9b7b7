"""The same function with fewer parts, for formats that have no place for all of them.

Rows of positions and biases of zeros are exact. A layer scale goes into the product before it,
diag(g) W x + g b, which is the same function up to one rounding of each weight.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig
from shared_vit.weights.adapt import zeros
from shared_vit.weights.formats.base import Format
from shared_vit.weights.lazy import Arrays, LazyArray

_SCALED = {"ls1": "attn.proj", "ls2": "mlp.fc2"}


@dataclasses.dataclass(frozen=True)
class Step:
    """One part less. applies: whether the model has the part. change: its configuration without.
    make: its arrays without. says: for the user."""

    applies: Callable[[ModelConfig], bool]
    change: Callable[[ModelConfig], ModelConfig]
    make: Callable[[ModelConfig, Arrays], Arrays]
    says: str


def _with_rows(cfg: ModelConfig, arrays: Arrays) -> Arrays:
    positions = arrays["pos_embed"]
    shape = (1, cfg.num_tokens, cfg.width)

    def load() -> np.ndarray:
        values = np.asarray(positions)
        none = np.zeros((1, cfg.num_prefix, cfg.width), values.dtype)
        return np.concatenate([none, values], axis=1)

    return {**arrays, "pos_embed": LazyArray(shape, positions.dtype, load)}


def _with_biases(cfg: ModelConfig, arrays: Arrays) -> Arrays:
    shapes = canonical.shapes(dataclasses.replace(cfg, no_bias=()))
    dtype = arrays["patch_embed.proj.weight"].dtype
    missing = {n: zeros(shape, dtype) for n, shape in shapes.items() if n not in arrays}
    keys = {
        name: _without_keys(arrays[name], cfg.width)
        for name in shapes
        if "k" in cfg.no_bias and name.endswith("attn.qkv.bias")
    }
    return {**arrays, **missing, **keys}


def _without_keys(bias: np.ndarray | LazyArray, width: int) -> LazyArray:
    """The bias as it counts: that of keys is zero."""

    def load() -> np.ndarray:
        values = np.array(bias)
        values[width : 2 * width] = 0
        return values

    return LazyArray(tuple(bias.shape), bias.dtype, load)


def _without_scales(cfg: ModelConfig, arrays: Arrays) -> Arrays:
    out = {name: a for name, a in arrays.items() if not name.endswith((".ls1.gamma", ".ls2.gamma"))}
    for name in arrays:
        block, _, scale = name.removesuffix(".gamma").rpartition(".")
        if name.endswith(".gamma") and scale in _SCALED:
            for leaf in ("weight", "bias"):
                product = f"{block}.{_SCALED[scale]}.{leaf}"
                if product in out:
                    out[product] = _scaled(out[product], arrays[name])
    return out


def _scaled(array: np.ndarray | LazyArray, gamma: np.ndarray | LazyArray) -> LazyArray:
    def load() -> np.ndarray:
        values, scale = (np.asarray(a).astype(np.float64) for a in (array, gamma))
        return (values * scale.reshape(-1, *[1] * (values.ndim - 1))).astype(array.dtype)

    return LazyArray(tuple(array.shape), array.dtype, load)


STEPS = (
    Step(
        lambda c: not c.prefix_positions and c.pos_embed != "none",
        lambda c: dataclasses.replace(c, prefix_positions=True),
        _with_rows,
        "the tokens before the patches' get positions of zeros, which training would change",
    ),
    Step(
        lambda c: bool(c.no_bias),
        lambda c: dataclasses.replace(c, no_bias=()),
        _with_biases,
        "biases that the model has not are zeros there, which training would change",
    ),
    Step(
        lambda c: c.layer_scale != "none",
        lambda c: dataclasses.replace(c, layer_scale="none"),
        _without_scales,
        "layer scale is folded into attn.proj and mlp.fc2, which is the same function up to one "
        "rounding of their weights",
    ),
)


def steps_for(cfg: ModelConfig, fmt: Format) -> tuple[Step, ...]:
    """The fewest parts to leave out so that `fmt` holds the model: none where it does already, or
    where no choice of them helps."""
    for steps in _choices(cfg):
        if not fmt.not_held(_changed(cfg, steps)):
            return steps
    return ()


def fold(
    cfg: ModelConfig, arrays: Arrays, steps: tuple[Step, ...]
) -> tuple[ModelConfig, Arrays, list[str]]:
    """The model without the parts of `steps`, and the notices for the user. Lazy arrays stay
    lazy."""
    for step in steps:
        arrays, cfg = step.make(cfg, arrays), step.change(cfg)
    if steps:
        arrays = {name: arrays[name] for name in canonical.shapes(cfg)}
    return cfg, arrays, [step.says for step in steps]


def folded_config(cfg: ModelConfig, fmt: Format) -> ModelConfig:
    """The model as `fmt` holds it."""
    return _changed(cfg, steps_for(cfg, fmt))


def _choices(cfg: ModelConfig) -> Iterator[tuple[Step, ...]]:
    possible = [step for step in STEPS if step.applies(cfg)]
    for count in range(len(possible) + 1):
        yield from itertools.combinations(possible, count)


def _changed(cfg: ModelConfig, steps: tuple[Step, ...]) -> ModelConfig:
    for step in steps:
        cfg = step.change(cfg)
    return cfg
