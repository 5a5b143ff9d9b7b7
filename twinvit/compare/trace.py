"""Every module's output of a twin, and what rounding alone does to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from shared_vit.spec.config import ModelConfig
from shared_vit.spec.precision import PRECISIONS, Precision
from shared_vit.weights.lazy import Arrays, in_memory
from twinvit.convert.same_function import Outputs, measured_rounding

Twin = Literal["jax", "torch"]


def trace(
    twin: Twin, cfg: ModelConfig, arrays: Arrays, images: np.ndarray, precision: Precision
) -> Outputs:
    """Every module's output, as float64, of one twin on normalised images [B, H, W, 3]."""
    inputs = images.astype(np.float64 if precision == "fp64" else np.float32)
    if twin == "jax":
        return _trace_jax(cfg, in_memory(arrays), inputs, precision)
    return _trace_torch(cfg, in_memory(arrays), inputs, precision)


def rounding(
    cfg: ModelConfig, arrays: Arrays, images: np.ndarray, precision: Precision, first: Outputs
) -> Outputs:
    """What rounding alone does to each number of `first`, the PyTorch twin's trace: the largest
    absolute change in three runs in which everything is changed by one unit in the last place."""
    dtype = np.float64 if precision == "fp64" else np.float32

    def run(nudged: Arrays, pixels: np.ndarray, seed: int | None) -> Outputs:
        return _trace_torch(cfg, in_memory(nudged), pixels.astype(dtype), precision, seed)

    return measured_rounding(run, arrays, images.astype(dtype), precision, first)


def _trace_jax(
    cfg: ModelConfig, arrays: dict[str, np.ndarray], inputs: np.ndarray, precision: Precision
) -> Outputs:
    import jax

    import jax_vit

    with jax.enable_x64(precision == "fp64"):
        outputs = jax_vit.from_arrays(cfg, arrays, precision).trace(inputs)
        return {name: np.asarray(value).astype(np.float64) for name, value in outputs.items()}


def _trace_torch(
    cfg: ModelConfig,
    arrays: dict[str, np.ndarray],
    inputs: np.ndarray,
    precision: Precision,
    seed: int | None = None,
) -> Outputs:
    import torch

    import torch_vit
    from torch_vit.precision import set_backend_precision

    set_backend_precision(precision)
    channels_first = torch.from_numpy(np.ascontiguousarray(inputs.transpose(0, 3, 1, 2)))
    model = torch_vit.from_arrays(cfg, arrays, precision)
    if seed is not None:
        for module in model.modules():
            module.register_forward_hook(_nudging(seed, precision))
    with torch.no_grad():
        outputs = model.trace(channels_first)
    return {name: value.double().numpy() for name, value in outputs.items()}


def _nudging(seed: int, precision: Precision) -> Callable:
    """A hook that changes each value of a module's output by one unit in the last place."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    eps = float(np.finfo(PRECISIONS[precision].param).eps)

    def hook(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        signs = 2 * torch.randint(0, 2, output.shape, generator=generator, dtype=torch.int8) - 1
        return output * (1 + eps * signs.to(output.dtype))

    return hook
