"""A model that takes images as they are decoded. Twin of `torch_vit/classifier.py`."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from jax_vit.bridge import from_arrays
from jax_vit.objective import Objective
from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.precision import PRECISIONS
from shared_vit.weights.lazy import Arrays


class Classifier:
    """Images uint8 [B, S, S, 3] -> logits, float64 NumPy [B, classes], on one device.

    They are normalised on the device, as an evaluation does it. Raises UserError as `from_arrays`
    does, and for `device="gpu"` where there is none.

    A program is compiled for each number of images, so that it is rounded up: to a power of two,
    and at most to the largest number so far.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        arrays: Arrays,
        precision: str = "fp32",
        device: str = "auto",
        dtype: str | None = None,
    ):
        self.device, self.precision = find_device(device), precision
        with jax.default_device(self.device):
            self.model = from_arrays(cfg, arrays, precision, dtype)
        graphdef, _, _ = nnx.split(self.model, nnx.Param, ...)
        self.objective = Objective(graphdef, cfg, np.dtype(PRECISIONS[precision].param))
        self.compute_logits = jax.jit(self.objective.logits)
        self.compute_features = jax.jit(self._features)
        self.largest = 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(self._run(self.compute_logits, images), np.float64)[: len(images)]

    def features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pooled features [B, width] and patches' tokens [B, rows, columns, width] of images uint8
        [B, S, S, 3]: float32 NumPy."""
        found = self._run(self.compute_features, images)
        pooled, patches = (np.asarray(x, np.float32)[: len(images)] for x in found)
        return pooled, patches

    def _features(
        self, params: nnx.State, fixed: nnx.State, images: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        x = images.astype(self.objective.scale.dtype) * self.objective.scale + self.objective.shift
        found = nnx.merge(self.objective.graphdef, params, fixed).features(x)
        return found.pooled, found.spatial()

    def _run(self, compute: Callable, images: np.ndarray) -> Any:
        _, params, fixed = nnx.split(self.model, nnx.Param, ...)
        rows = len(images)
        self.largest = max(self.largest, rows)
        size = min(1 << (rows - 1).bit_length(), self.largest)
        padded = np.concatenate([images, np.zeros((size - rows, *images.shape[1:]), np.uint8)])
        with jax.default_device(self.device):
            return compute(params, fixed, padded)


def find_device(device: str) -> jax.Device:
    """The device of `auto`, `cpu` or `gpu`. Raises UserError where there is none."""
    if device == "auto":
        return jax.local_devices()[0]
    try:
        return jax.local_devices(backend=device)[0]
    except RuntimeError as error:
        raise UserError(f"device {device}: JAX {jax.__version__} sees none; use cpu") from error
