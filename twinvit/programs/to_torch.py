"""Programs for PyTorch: `torch.export`, one `.pt2` file. Twin of `to_jax.py`."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

import torch_vit
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.pixels import normalization
from twinvit.programs.target import BATCH, INPUT, Options, Run, moved


class Program(nn.Module):
    """uint8 RGB [B, S, S, 3] -> probabilities float32 [B, classes], or features [B, width]."""

    def __init__(self, model: nn.Module, cfg: ModelConfig):
        super().__init__()
        self.model, self.of_head = model, bool(cfg.num_classes)
        scale, shift = (torch.from_numpy(a).float() for a in normalization(cfg))
        self.scale, self.shift = nn.Buffer(scale), nn.Buffer(shift)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        x = images.to(self.scale.dtype) * self.scale + self.shift
        found = self.model(x.permute(0, 3, 1, 2))
        return torch.softmax(found, dim=-1) if self.of_head else found


class TorchTwin:
    """The PyTorch twin on the CPU, where programs are made; a `.pt2` can be moved from there."""

    def __init__(self, cfg: ModelConfig, arrays: dict[str, np.ndarray], options: Options):
        self.cfg, self.options = cfg, options
        with torch.device("cpu"):
            self.model = torch_vit.from_arrays(cfg, arrays, options.precision)

    def logits(self, images: np.ndarray, seed: int | None = None) -> np.ndarray:
        model = self.model
        if seed is not None:
            rng = np.random.default_rng(seed)
            images, model = moved(images, rng), copy.deepcopy(model)
            for p in model.parameters():
                p.data = torch.from_numpy(moved(p.detach().numpy(), rng))
        x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        with torch.no_grad():
            return model(x).numpy()

    def write(self, file: BinaryIO) -> dict[str, object]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about its own serialization
            torch.export.save(self.exported(), file)
        return {}

    def exported(self) -> Any:
        """The `torch.export.ExportedProgram`. Its caller hides torch's warnings."""
        with torch.device("cpu"):
            size = self.options.batch_size or 2  # 1 would be fixed
            example = torch.zeros((size, *self.cfg.image_shape, 3), dtype=torch.uint8)
            batch = None if self.options.batch_size else {0: torch.export.Dim(BATCH)}
            program = torch.export.export(
                Program(self.model, self.cfg), (example,), dynamic_shapes={INPUT: batch}
            )
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        return program


twin = TorchTwin


def load(file: BinaryIO, folder: Path | None = None) -> Run:
    """The program of a `.pt2` file, on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(file).module()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return program(torch.from_numpy(np.ascontiguousarray(images))).numpy()

    return run
