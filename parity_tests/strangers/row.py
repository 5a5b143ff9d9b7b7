"""A row of the list: a checkpoint of another program, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
from torch import nn

from shared_vit.spec.config import ModelConfig

# Small, with nothing square but the image: 4 heads of 7, an MLP of 56, 4 patches.
CFG = ModelConfig(
    image_size=8, patch_size=4, width=28, depth=2, num_heads=4, mlp_dim=56, num_classes=5
)

Logits = Callable[[np.ndarray], np.ndarray]  # images [B, H, W, 3] -> [B, classes], both float64


@dataclass(frozen=True)
class Stranger:
    """A checkpoint of a program that is not this one.

    name: of the row. writer: the program. wrote: what is in the file, beside the weights too.
    write: makes it in a folder, and gives the path to load and the writer's own model. by_library:
    whether the writer's own code saves it here; else its layout is written by hand. read: what is
    read of it, or why it is not. said: parts of the notices of reading it. refused: part of the
    error where it is not read. partly: other sizes of it are. hints: what has to be said when it is
    loaded.
    """

    name: str
    writer: str
    wrote: str
    write: Callable[[Path], tuple[Path | str, Logits | None]]
    by_library: bool = False
    read: str = ""
    said: tuple[str, ...] = ()
    refused: str = ""
    partly: bool = False
    hints: Mapping[str, Any] = field(default_factory=lambda: {"num_heads": CFG.num_heads})


def of_torch(model: nn.Module) -> Logits:
    """The function of a model of PyTorch, computed in float64."""

    def logits(images: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        dtypes = {name: p.dtype for name, p in model.named_parameters()}
        assert len(set(dtypes.values())) == 1
        with torch.no_grad():
            out = model.double().eval()(batch)
        return getattr(out, "logits", out).numpy()

    return logits


def drawn(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with weights that hide nothing."""
    return peers.randomize(model, seed).eval()


def stepped(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW after one update, which has changed the weights a little: its moments are arrays."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    side = CFG.image_size
    out = model.train()(torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)))
    getattr(out, "logits", out).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    model.eval()
    return optimizer
