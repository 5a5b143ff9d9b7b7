"""A model that takes pictures as they are decoded. Twin of `jax_vit/classifier.py`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig
from torch_vit.bridge import from_arrays
from torch_vit.precision import set_backend_precision
from torch_vit.trainer import Objective


class Classifier:
    """Images uint8 [B, S, S, 3] -> logits, float64 NumPy [B, classes], on one device.

    They are normalised on the device, as an evaluation does it. Raises UserError as `from_arrays`
    does, and for `device="gpu"` where there is none.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        arrays: Mapping[str, np.ndarray],
        precision: str = "fp32",
        device: str = "auto",
    ):
        self.device, self.precision = find_device(device), precision
        self.model = from_arrays(cfg, arrays, precision).to(self.device)
        self.objective = Objective(self.model)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        with _backend(self.precision):
            logits = self.objective.logits(torch.from_numpy(images).to(self.device))
        return logits.double().cpu().numpy()


def find_device(device: str) -> torch.device:
    """The device of `auto`, `cpu` or `gpu`. Raises UserError where there is none."""
    there = device != "cpu" and torch.cuda.is_available()
    if device == "gpu" and not there:
        raise UserError(f"device gpu: PyTorch {torch.__version__} sees no GPU; use cpu")
    return torch.device("cuda" if there else "cpu")


@contextmanager
def _backend(precision: str) -> Iterator[None]:
    """The precision's switches, and then the caller's again."""
    products = torch.get_float32_matmul_precision()
    reduced = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    set_backend_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = reduced
