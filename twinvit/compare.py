"""`twinvit compare`: the same inputs through two models, layer by layer, with the first divergence named."""

import dataclasses
import importlib
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from shared_vit import weights
from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.precision import Precision
from twinvit.noise_rule import relative_l2

# The most that two right implementations differ by, relative L2 of any layer's output: the parity contract's limits for
# float64 and float32; for the others, about twice what bfloat16 and TF32 themselves cost.
LIMITS = {"fp64": 1e-12, "fp32": 5e-6, "tf32": 5e-3, "bf16": 4e-2}

Twin = Literal["jax", "torch"]


def compare(
    a: tyro.conf.Positional[Path],
    b: tyro.conf.Positional[Path],
    /,
    precision: Precision = "fp32",
    twin_a: Twin = "jax",
    twin_b: Twin = "torch",
    batch_size: int = 2,
    seed: int = 0,
    num_heads: int | None = None,
) -> int:
    """Run the same random images through two weight files and name the first layer whose outputs differ.

    Args:
        a: a weight file of any known format, a run or a checkpoint directory.
        b: another, or the same to compare the twins on it.
        precision: of both; fp64 shows a wrong formula where fp32 may hide it.
        twin_a: which implementation computes a.
        twin_b: which implementation computes b.
        batch_size: how many images.
        seed: of the images.
        num_heads: for files that do not say.
    """
    if precision not in LIMITS:
        raise UserError(
            f"--precision={precision}: only the PyTorch twin has it; choose from {', '.join(LIMITS)}"
        )
    (cfg_a, arrays_a), (cfg_b, arrays_b) = (
        weights.read(path, num_heads=num_heads) for path in (a, b)
    )
    if cfg_a.image_size != cfg_b.image_size:
        raise UserError(
            f"{a} takes images of {cfg_a.image_size} px and {b} of {cfg_b.image_size} px: convert one with --image_size first"
        )
    for line in differences(cfg_a, cfg_b):
        print(f"the functions differ: {line}")
    size = cfg_a.image_size
    images = (
        np.random.default_rng(seed).standard_normal((batch_size, size, size, 3)).astype(np.float32)
    )
    outputs_a = trace(twin_a, cfg_a, arrays_a, images, precision)
    outputs_b = trace(twin_b, cfg_b, arrays_b, images, precision)
    return report(
        outputs_a, outputs_b, LIMITS[precision], f"{twin_a} {a}", f"{twin_b} {b}", precision
    )


def trace(
    twin: Twin, cfg: ModelConfig, arrays, images: np.ndarray, precision: Precision
) -> dict[str, np.ndarray]:
    """`{canonical module name: output as float64}` of one twin on images float32 [B, H, W, 3]."""
    package = importlib.import_module(f"{twin}_vit")
    if twin == "jax" and precision == "fp64":
        importlib.import_module("jax").config.update("jax_enable_x64", True)
    if twin == "torch":
        importlib.import_module("torch_vit.precision").set_backend_precision(precision)
    dtype = np.float64 if precision == "fp64" else np.float32
    inputs = images.astype(dtype)
    if twin == "torch":
        inputs = importlib.import_module("torch").from_numpy(
            np.ascontiguousarray(inputs.transpose(0, 3, 1, 2))
        )
    outputs = package.from_arrays(cfg, arrays, precision).trace(inputs)
    if twin == "torch":
        return {name: value.double().numpy() for name, value in outputs.items()}
    return {name: np.asarray(value).astype(np.float64) for name, value in outputs.items()}


def report(a: dict, b: dict, limit: float, name_a: str, name_b: str, precision: str) -> int:
    """Print the distance of every layer's outputs and the verdict; the exit status, 1 where they diverge."""
    print(f"{name_a}  against  {name_b}, {precision}; relative L2 of each output")
    first = None
    for layer in [n for n in a if n in b]:
        distance = relative_l2(a[layer], b[layer])
        bad = not distance <= limit
        print(
            f"  {layer or 'logits':<28} {distance:9.2e}{'  <-- first divergence' if bad and first is None else ''}"
        )
        first = layer if bad and first is None else first
    alone = sorted(set(a) ^ set(b))
    if alone:
        print(f"only one of them has: {', '.join(alone)}")
    if not np.ptp(a[""], axis=0).any():
        print(
            "every image gives the same logits (a zero head?): the last layers' agreement shows nothing"
        )
    if first is None and not alone:
        print(f"SAME: every output within {limit:g}")
        return 0
    if first is not None:
        print(f"DIFFERENT: the first divergence is at {first or 'the logits'} (limit {limit:g})")
    return 1


def differences(a: ModelConfig, b: ModelConfig) -> list[str]:
    """The fields in which two configurations differ, as `name: this, that`."""
    pairs = [(f.name, getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)]
    return [f"{name}: {x}, {y}" for name, x, y in pairs if x != y]
