"""From --data and --data_dir to a Dataset, everything checked."""

from __future__ import annotations

from pathlib import Path

from shared_vit.config import TrainConfig
from shared_vit.data.dataset import Dataset
from shared_vit.data.digits import digits
from shared_vit.errors import UserError


def open_dataset(cfg: TrainConfig, cache_dir: Path | None = None) -> Dataset:
    """The data set that `cfg.data` names. Raises UserError where it is not there or not what it should be.

    cache_dir: where the listing of an image folder is kept; None keeps none.
    """
    data = cfg.data or "digits"
    if data == "digits":
        return digits()
    raise UserError(f"unknown data set {data!r}")
