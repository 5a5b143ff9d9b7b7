"""A model that takes images as they are decoded. Twin of `jax_vit/classifier.py`."""

import numpy as np
import torch

from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig
from shared_vit.weights.lazy import Arrays
from torch_vit.bridge import from_arrays
from torch_vit.objective import Objective
from torch_vit.precision import backend_precision


class Classifier:
    """Images uint8 [B, S, S, 3] -> logits, float64 NumPy [B, classes], on one device.

    They are normalised on the device, as an evaluation does it. Raises UserError as `from_arrays`
    does, and for `device="gpu"` where there is none.
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
        self.model = from_arrays(cfg, arrays, precision, dtype).to(self.device)
        self.objective = Objective(self.model)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        with backend_precision(self.precision):
            logits = self.objective.logits(torch.from_numpy(images).to(self.device))
        return logits.double().cpu().numpy()

    @torch.inference_mode()
    def features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pooled features [B, width] and patches' tokens [B, rows, columns, width] of images uint8
        [B, S, S, 3]: float32 NumPy."""
        scale, shift = self.objective.scale, self.objective.shift
        with backend_precision(self.precision):
            x = torch.from_numpy(images).to(self.device, scale.dtype) * scale + shift
            found = self.model.features(x.permute(0, 3, 1, 2))
        pooled, patches = found.pooled, found.spatial().permute(0, 2, 3, 1)
        return pooled.float().cpu().numpy(), patches.float().cpu().numpy()


def find_device(device: str) -> torch.device:
    """The device of `auto`, `cpu` or `gpu`. Raises UserError where there is none."""
    there = device != "cpu" and torch.cuda.is_available()
    if device == "gpu" and not there:
        raise UserError(f"device gpu: PyTorch {torch.__version__} sees no GPU; use cpu")
    return torch.device("cuda" if there else "cpu")
