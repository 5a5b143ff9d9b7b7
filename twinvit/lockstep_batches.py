"""What a trainer has of a batch on its device, by checksum against what it was handed."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from shared_vit.data.batch import Batch


def altered(batch: Batch, own: Any) -> list[str]:
    """The names of what `own`, a trainer's DeviceBatch, has otherwise than `batch` has it."""
    ours, theirs = _sums(batch, batch.mix), _sums(own, own.mixing)
    return [name for name in ours if ours[name] != theirs[name]]


def _sums(batch: Any, mix: Any) -> dict[str, str]:
    """A checksum by field. The devices have the same numbers in other shapes and types."""
    types = {"images": np.uint8, "labels": np.int64, "weight": np.float64, "rows": np.int64}
    found = {name: _sum(getattr(batch, name), kind) for name, kind in types.items()}
    return found | {"step": str(int(batch.step)), "mixing": _mixing(mix)}


def _sum(array: Any, kind: type) -> str:
    if hasattr(array, "cpu"):  # torch's, which NumPy takes from the host alone
        array = array.cpu()
    values: np.ndarray = np.ascontiguousarray(np.asarray(array).reshape(-1), dtype=kind)
    return hashlib.blake2b(values.tobytes(), digest_size=16).hexdigest()


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
