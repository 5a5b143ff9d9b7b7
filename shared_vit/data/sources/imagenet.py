"""Where ImageNet's class folders are looked for."""

import os
from pathlib import Path


def imagenet_places() -> list[Path]:
    """Where ImageNet's class folders are looked for when no data set is named."""
    named = [os.environ["IMAGENET_DIR"]] if os.environ.get("IMAGENET_DIR") else []
    return [
        Path(p).expanduser()
        for p in (*named, "imagenet", "data/imagenet", "~/imagenet", "/data/imagenet")
    ]


def find_imagenet() -> Path | None:
    """The first of `imagenet_places` that has a `train` folder."""
    return next((p for p in imagenet_places() if (p / "train").is_dir()), None)
