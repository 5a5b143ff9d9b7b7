"""From --data and --data_dir to a Dataset, everything checked."""

from __future__ import annotations

from pathlib import Path

from shared_vit.data.dataset import Dataset
from shared_vit.data.sources.imagenet import find_imagenet, imagenet_places
from shared_vit.errors import UserError, nearest

_PREPARE = "`twinvit prepare imagenet --train_tar ... --val_tar ... --devkit ... --out DIR` makes one from the official files"


def open_dataset(data: str = "digits", data_dir: str | None = None) -> Dataset:
    """The data set of a name (`digits`, `imagenet`, `folder`, `tfds:<name>`), in a folder.

    Raises UserError where the data are not there, cannot be read, or are not what they should be.
    """
    if data == "digits":
        from shared_vit.data.sources.digits import digits

        return digits()
    if data.startswith("tfds:"):
        from shared_vit.data.sources.tfds import tfds_dataset

        return tfds_dataset(data.removeprefix("tfds:"), data_dir)
    if data not in ("folder", "imagenet"):
        known = ("digits", "folder", "imagenet", "tfds:<name>")
        raise UserError(
            f"unknown data set {data!r}{nearest(data, known)} Data sets: {', '.join(known)}."
        )
    from shared_vit.data.sources.folder import folder

    return folder(_folder_root(data, data_dir), None, imagenet=data == "imagenet")


def _folder_root(data: str, data_dir: str | None) -> Path:
    if data_dir:
        root = Path(data_dir).expanduser()
        if data == "imagenet" and not root.exists():
            raise UserError(f"--data_dir={data_dir} is not there: no ImageNet. {_PREPARE}")
        return root
    if data == "folder":
        raise UserError(
            "--data=folder needs --data_dir, a folder with train/<class>/ and val/<class>/"
        )
    found = find_imagenet()
    if found is None:
        places = ", ".join(str(p) for p in imagenet_places())
        raise UserError(
            f"no ImageNet found: looked for a folder with train/ at {places}. Give --data_dir; {_PREPARE}"
        )
    return found
