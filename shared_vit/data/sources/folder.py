"""Image folders: `train/<class>/**/<image>` and `val/<class>/**/<image>`, as ImageNet is usually unpacked."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from shared_vit.data.dataset import Dataset, fingerprint
from shared_vit.data.sources.listing import Listing, cached_listing, keep_listing
from shared_vit.data.sources.wnids import WNIDS
from shared_vit.errors import UserError

VAL_NAMES = ("val", "test")  # the first that is there


class FolderSource:
    """The images of a split, as bytes, in the listing's order."""

    def __init__(self, root: Path, listing: Listing):
        self._root, self._files, self._labels = os.fsencode(root), listing.files, listing.labels

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, index: int) -> tuple[bytes, int]:
        try:
            with open(os.path.join(self._root, self._files[index]), "rb") as file:
                return file.read(), int(self._labels[index])
        except OSError as error:
            raise UserError(f"cannot read {self.where(index)}: {error.strerror}") from error

    def where(self, index: int) -> str:
        path = os.fsdecode(os.path.join(self._root, self._files[index]))
        return path.encode("utf-8", "replace").decode()


@dataclass
class FolderDataset(Dataset):
    """An image folder, and the listings of its splits: (name of the directory, classes given, listing)."""

    root: Path = field(kw_only=True)
    listings: list[tuple[str, list[str] | None, Listing]] = field(kw_only=True)

    def keep(self, directory: Path) -> None:
        for split, classes, listing in self.listings:
            keep_listing(self.root, split, classes, listing, directory)


def folder(root: Path, cache_dir: Path | None, imagenet: bool = False) -> Dataset:
    """An image folder as a data set; its fingerprint is of paths, classes and sizes.

    imagenet: whether the classes must be the 1,000 of ILSVRC2012. Raises UserError for a split that is missing,
    unreadable or empty, and for classes that are not what they should be.
    """
    train, val = find_splits(root)
    train_files = cached_listing(root, train, None, cache_dir)
    if imagenet:
        _check_imagenet(root / train, train_files.class_names)
    val_files = cached_listing(root, val, train_files.class_names, cache_dir)
    return FolderDataset(
        name="imagenet" if imagenet else "folder",
        train=FolderSource(root, train_files),
        val=FolderSource(root, val_files),
        class_names=train_files.class_names,
        fingerprint=fingerprint(train_files.digest(), val_files.digest()),
        root=root,
        listings=[(train, None, train_files), (val, train_files.class_names, val_files)],
    )


def find_splits(root: Path) -> tuple[str, str]:
    """Names of the training and the validation directory in `root`."""
    if not root.is_dir():
        raise UserError(f"--data_dir={root} is {'not a folder' if root.exists() else 'not there'}")
    layout = f"images are expected as {root}/train/<class>/<image>.JPEG and {root}/val/<class>/<image>.JPEG"
    if not (root / "train").is_dir():
        raise UserError(f"{root} has no folder train: {layout}")
    for name in VAL_NAMES:
        if (root / name).is_dir():
            return "train", name
    raise UserError(f"{root} has a folder train, and no val or test: {layout}")


def _check_imagenet(top: Path, classes: list[str]) -> None:
    missing, unknown = sorted(set(WNIDS) - set(classes)), sorted(set(classes) - set(WNIDS))
    if missing or unknown:
        told = [f"{len(names)} {what} (such as {names[0]})" for what, names in
                (("are missing", missing), ("are no classes of it", unknown)) if names]  # fmt: skip
        raise UserError(
            f"{top} has {len(classes)} class folders, not the 1,000 of ImageNet: {' and '.join(told)}. "
            "--data=folder takes any classes"
        )
