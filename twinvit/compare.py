"""`twinvit compare`: the same inputs through two models, with the first divergent layer named."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from shared_vit import weights
from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.precision import Precision
from shared_vit.weights.lazy import Arrays, in_memory
from twinvit.noise_rule import relative_l2

# The most that two right implementations differ by, relative L2 of any layer's output. Measured at
# ViT-B/16: right implementations are 3e-15 apart in float64 and 2.5e-6 in float32, a wrong GELU
# 5e-4. For the others it is about twice what bfloat16 and TF32 themselves cost.
LIMITS = {"fp64": 1e-12, "fp32": 5e-6, "tf32": 5e-3, "bf16": 4e-2}

Twin = Literal["jax", "torch"]
Outputs = dict[str, np.ndarray]  # canonical module name: output; "" is the logits


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
    """Run the same random images through two weight files and name the first divergent layer.

    Args:
        a: a weight file of any known format, a run or a checkpoint directory, or a name on the
            Hugging Face hub, hf:OWNER/NAME[@REVISION][/FILE].
        b: another, or the same to compare the twins on it.
        precision: of both; fp64 shows a wrong formula that fp32 may hide.
        twin_a: which implementation computes a.
        twin_b: which implementation computes b.
        batch_size: how many images.
        seed: of the images.
        num_heads: for files that do not say.
    """
    if precision not in LIMITS:
        raise UserError(
            f"--precision={precision}: only the PyTorch twin has it; choose from "
            f"{', '.join(LIMITS)}"
        )
    cfg_a, arrays_a = weights.read(a, num_heads=num_heads)
    cfg_b, arrays_b = weights.read(b, num_heads=num_heads)
    if cfg_a.image_size != cfg_b.image_size:
        raise UserError(
            f"{a} takes images of {cfg_a.image_size} px and {b} of {cfg_b.image_size} px: convert "
            "one with --image_size first"
        )
    for line in differences(cfg_a, cfg_b):
        print(f"the functions differ: {line}")
    size = cfg_a.image_size
    images = np.random.default_rng(seed).standard_normal((batch_size, size, size, 3))
    images = images.astype(np.float32)
    outputs_a = trace(twin_a, cfg_a, arrays_a, images, precision)
    outputs_b = trace(twin_b, cfg_b, arrays_b, images, precision)
    return report(
        outputs_a, outputs_b, LIMITS[precision], f"{twin_a} {a}", f"{twin_b} {b}", precision
    )


def trace(
    twin: Twin, cfg: ModelConfig, arrays: Arrays, images: np.ndarray, precision: Precision
) -> Outputs:
    """Every module's output, as float64, of one twin on normalised images [B, H, W, 3]."""
    inputs = images.astype(np.float64 if precision == "fp64" else np.float32)
    run = _trace_jax if twin == "jax" else _trace_torch
    return run(cfg, in_memory(arrays), inputs, precision)


def _trace_jax(
    cfg: ModelConfig, arrays: dict[str, np.ndarray], inputs: np.ndarray, precision: Precision
) -> Outputs:
    import jax

    import jax_vit

    if precision == "fp64":
        jax.config.update("jax_enable_x64", True)
    outputs = jax_vit.from_arrays(cfg, arrays, precision).trace(inputs)
    return {name: np.asarray(value).astype(np.float64) for name, value in outputs.items()}


def _trace_torch(
    cfg: ModelConfig, arrays: dict[str, np.ndarray], inputs: np.ndarray, precision: Precision
) -> Outputs:
    import torch

    import torch_vit
    from torch_vit.precision import set_backend_precision

    set_backend_precision(precision)
    channels_first = torch.from_numpy(np.ascontiguousarray(inputs.transpose(0, 3, 1, 2)))
    with torch.no_grad():
        outputs = torch_vit.from_arrays(cfg, arrays, precision).trace(channels_first)
    return {name: value.double().numpy() for name, value in outputs.items()}


def report(a: Outputs, b: Outputs, limit: float, name_a: str, name_b: str, precision: str) -> int:
    """Print each output's distance and the verdict; the exit status, 1 where they diverge."""
    print(f"{name_a}  against  {name_b}, {precision}; relative L2 of each output")
    first = None
    for layer in [n for n in a if n in b]:
        distance = relative_l2(a[layer], b[layer])
        bad = not distance <= limit
        mark = "  <-- first divergence" if bad and first is None else ""
        print(f"  {layer or 'logits':<28} {distance:9.2e}{mark}")
        first = layer if bad and first is None else first
    alone = sorted(set(a) ^ set(b))
    if alone:
        print(f"only one of them has: {', '.join(alone)}")
    if not np.ptp(a[""], axis=0).any():
        print(
            "every image gives the same logits (a zero head?): the last layers' agreement shows "
            "nothing"
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
