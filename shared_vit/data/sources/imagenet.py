"""Where ImageNet's class folders are looked for."""

from __future__ import annotations

import os
from pathlib import Path


def imagenet_places() -> list[Path]:
    """The folders that may hold ImageNet when no data set is named, in order."""
    named = [os.environ["IMAGENET_DIR"]] if os.environ.get("IMAGENET_DIR") else []
    usual = ("imagenet", "data/imagenet", "~/imagenet", "/data/imagenet")
    return [Path(place).expanduser() for place in (*named, *usual)]


def find_imagenet() -> Path | None:
    """The first of `imagenet_places` that has a folder `train`."""
    return next((p for p in imagenet_places() if (p / "train").is_dir()), None)
