"""Image folders, laid out as ImageNet: `train/<class>/**/<image>`, `val/<class>/**/<image>`."""

from __future__ import annotations

import os
from pathlib import Path

from shared_vit.data.dataset import Dataset, fingerprint
from shared_vit.data.decode import MOST_BYTES
from shared_vit.data.sources.listing import Listing, layout, list_split, printable
from shared_vit.data.sources.wnids import WNIDS
from shared_vit.errors import UserError
from shared_vit.files import read_limited

VAL_NAMES = ("val", "test")  # the first one found


class FolderSplit:
    """The encoded images of a split, in the order of its listing."""

    def __init__(self, root: Path, listing: Listing):
        self._root, self._files, self._labels = os.fsencode(root), listing.files, listing.labels

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, index: int) -> tuple[bytes, int]:
        """Raises UserError for a file that is gone, unreadable, not regular or too large."""
        try:
            return read_limited(self._path(index), MOST_BYTES), int(self._labels[index])
        except UserError as error:
            raise UserError(printable(str(error))) from error
        except OSError as error:
            raise UserError(f"cannot read {self.where(index)}: {error.strerror}") from error

    def where(self, index: int) -> str:
        return printable(self._path(index))

    def _path(self, index: int) -> str:
        return os.fsdecode(os.path.join(self._root, self._files[index]))


def folder(root: Path, imagenet: bool = False) -> Dataset:
    """An image folder as a data set. Its fingerprint covers paths, classes and sizes.

    imagenet: whether the classes must be the 1,000 of ILSVRC2012. Raises UserError for a split that
    is missing, unreadable or empty, and for unexpected classes.
    """
    train, val = find_splits(root)
    train_files = list_split(root, train)
    if imagenet:
        _check_imagenet(root / train, train_files.class_names)
    val_files = list_split(root, val, train_files.class_names)
    return Dataset(
        name="imagenet" if imagenet else "folder",
        train=FolderSplit(root, train_files),
        val=FolderSplit(root, val_files),
        class_names=[printable(name) for name in train_files.class_names],
        fingerprint=fingerprint(train_files.digest(), val_files.digest()),
    )


def find_splits(root: Path) -> tuple[str, str]:
    """Names of the training and the validation directory in `root`. Raises UserError."""
    if not root.is_dir():
        raise UserError(f"--data_dir={root} is {'not a folder' if root.exists() else 'not there'}")
    expected = layout(root / "train", root / "val")
    if not (root / "train").is_dir():
        if root.name in ("train", *VAL_NAMES) and (root.parent / "train").is_dir():
            raise UserError(f"{root} is one split: name the folder above, --data_dir={root.parent}")
        raise UserError(f"{root} has no folder train: {expected}")
    for name in VAL_NAMES:
        if (root / name).is_dir():
            return "train", name
    raise UserError(f"{root} has a folder train, and no val or test: {expected}")


def _check_imagenet(top: Path, classes: list[str]) -> None:
    missing, unknown = sorted(set(WNIDS) - set(classes)), sorted(set(classes) - set(WNIDS))
    if not missing and not unknown:
        return
    kinds = ((missing, "are missing"), (unknown, "are no classes of it"))
    told = [f"{len(n)} {what} (such as {printable(n[0])})" for n, what in kinds if n]
    raise UserError(
        f"{top} has {len(classes)} class folders, not the 1,000 of ImageNet: "
        f"{' and '.join(told)}. --data=folder takes any classes"
    )
