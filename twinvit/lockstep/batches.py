"""A batch on a trainer's device, compared with the batch that it was given."""

from __future__ import annotations

from typing import Any

import numpy as np

from shared_vit.data.batch import Batch

TYPES = {"images": np.uint8, "labels": np.int64, "weight": np.float64, "rows": np.int64}


def altered(batch: Batch, own: Any) -> list[str]:
    """The names of what `own`, a trainer's DeviceBatch, has otherwise than `batch` has it."""
    found = [n for n, kind in TYPES.items() if not _same(getattr(batch, n), getattr(own, n), kind)]
    if int(batch.step) != int(own.step):
        found.append("step")
    if _mixing(batch.mix) != _mixing(own.mixing):
        found.append("mixing")
    return found


def _same(ours: Any, theirs: Any, kind: type) -> bool:
    """Whether the bytes are equal. The devices have the same values in other shapes and dtypes."""
    return np.array_equal(_bytes(ours, kind), _bytes(theirs, kind))


def _bytes(array: Any, kind: type) -> np.ndarray:
    if hasattr(array, "cpu"):  # torch's, which NumPy takes from the host alone
        array = array.cpu()
    values: np.ndarray = np.ascontiguousarray(np.asarray(array).reshape(-1), dtype=kind)
    return values.view(np.uint8)


def _mixing(mix: Any) -> str:
    if mix is None:
        return "none"
    if hasattr(mix, "lam"):
        numbers = [mix.lam, mix.pixels]
    else:
        numbers = np.asarray(mix[0].cpu() if hasattr(mix[0], "cpu") else mix[0]).tolist()
    box = mix.box if hasattr(mix, "lam") else mix[1]
    box = np.asarray(box.cpu() if hasattr(box, "cpu") else box)
    return f"{np.float32(numbers[0])} {np.float32(numbers[1])} {[int(n) for n in box.reshape(-1)]}"
