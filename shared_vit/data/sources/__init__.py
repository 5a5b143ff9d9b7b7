"""The data sets that a run can name, a module for each kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shared_vit.data.dataset import Dataset
from shared_vit.data.sources import imagenet
from shared_vit.errors import UserError, nearest

NAMES = ("digits", "folder", "imagenet", "tfds:<name>")
_PREPARE = (
    "`twinvit prepare imagenet --train_tar ... --val_tar ... --devkit ... --out DIR` makes one "
    "from the official files"
)


def open_dataset(
    data: str = "digits",
    data_dir: str | None = None,
    class_order: str = "name",
    training: bool = True,
) -> Dataset:
    """The data set of a name (`digits`, `imagenet`, `folder`, `tfds:<name>`), in a folder.

    class_order: of class folders, as `--class_order` says; training: whether it is to be trained
    on, for which one class is too few. Raises UserError for data that are missing, unreadable, or
    not what the name says.
    """
    if data == "digits":
        from shared_vit.data.sources.digits import digits

        return digits()
    if data.startswith("tfds:"):
        from shared_vit.data.sources.tfds import tfds_dataset

        return tfds_dataset(data.removeprefix("tfds:"), data_dir)
    if data not in ("folder", "imagenet"):
        raise UserError(
            f"unknown data set {data!r}{nearest(data, NAMES)} Data sets: {', '.join(NAMES)}."
        )
    from shared_vit.data.sources.folder import folder

    return folder(_folder_root(data, data_dir), data == "imagenet", class_order, training)


def open_whole(data_dir: str | None, class_names: Sequence[str] | None) -> Dataset:
    """A folder without a training split, all of it to evaluate on; see `folder.whole_folder`."""
    from shared_vit.data.sources.folder import whole_folder

    return whole_folder(_folder_root("folder", data_dir), class_names)


def _folder_root(data: str, data_dir: str | None) -> Path:
    if data_dir:
        root = Path(data_dir).expanduser()
        if data == "imagenet" and not root.exists():
            raise UserError(f"--data_dir={data_dir} is not there: no ImageNet. {_PREPARE}")
        return root
    if data == "folder":
        raise UserError(
            "--data=folder needs --data_dir, a folder with train/<class>/ and val/<class>/, or "
            "with class folders alone"
        )
    found = imagenet.find_imagenet()
    if found is None:
        places = ", ".join(str(p) for p in imagenet.imagenet_places())
        raise UserError(
            f"no ImageNet found: looked for a folder with train/ at {places}. Give --data_dir; "
            f"{_PREPARE}"
        )
    return found
