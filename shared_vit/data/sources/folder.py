"""Image folders, laid out as ImageNet: `train/<class>/**/<image>`, `val/<class>/**/<image>`; or
with one of the two, or as `<class>/**/<image>`: then a part is held out to validate on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from shared_vit.data.dataset import Dataset, fingerprint
from shared_vit.data.decode import MOST_BYTES
from shared_vit.data.sources.class_order import BY_NAME, notice
from shared_vit.data.sources.hold_out import hold_out
from shared_vit.data.sources.left_out import describe
from shared_vit.data.sources.listing import Listing, layout, list_split, printable
from shared_vit.data.sources.wnids import WNIDS
from shared_vit.errors import UserError, some
from shared_vit.files import read_limited

VAL_NAMES = ("val", "valid", "validation", "test")  # the first one found


class FolderSplit:
    """The encoded images of a split, in the order of its listing."""

    def __init__(self, root: Path, listing: Listing):
        self._root, self._files, self._labels = os.fsencode(root), listing.files, listing.labels
        self._sizes = listing.sizes

    @property
    def labels(self) -> np.ndarray:
        """int32 [N]."""
        return self._labels

    def files(self) -> Iterator[tuple[str, int, int]]:
        """Path below the root as printable text, class, and size in bytes, of each file."""
        for index, (label, size) in enumerate(zip(self._labels.tolist(), self._sizes.tolist())):
            yield printable(os.fsdecode(self._files[index])), label, size

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, index: int) -> tuple[bytes, int]:
        """Raises UserError for a file that is missing, unreadable, not regular or too large."""
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


def folder(
    root: Path,
    imagenet: bool = False,
    order: str = BY_NAME,
    training: bool = True,
) -> Dataset:
    """An image folder as a data set. Its fingerprint covers paths, classes and sizes.

    Without a validation split a part of each class is held out. imagenet: whether the classes must
    be the 1,000 of ILSVRC2012; order: of the classes, see `class_order.ordered`; training: whether
    one class is too few. Raises UserError for a split that is missing, unreadable or empty, and for
    unexpected classes.
    """
    train, val = find_splits(root, training)
    if imagenet and (train != "train" or val is None):
        raise UserError(
            f"{root} is no ImageNet: {layout(root / 'train', root / 'val')}. --data=folder takes "
            "any classes"
        )
    notices = []
    split = val if train is None else train
    assert split is not None
    listing = list_split(root, split, order=order)
    if imagenet:
        _check_imagenet(root / split, listing.class_names)
    if training and len(listing.class_names) == 1:
        raise UserError(_one_class(root / split, listing))
    held_out = train is None or val is None
    if held_out:
        train_files, val_files = hold_out(listing, split)
        if training and not len(val_files.files):
            raise UserError(
                f"{root} has no validation split, and no class with a second image to hold out: "
                "add images, or a folder val"
            )
        notices.append(_held_out(root, split, train_files, val_files))
    else:
        assert val is not None
        train_files = listing
        val_files = list_split(root, val, listing.class_names)
        notices.append(describe(str(root / val), val_files.left_out))
    notices = [describe(str(root / split), listing.left_out), *notices]
    if order == BY_NAME:
        notices.append(notice(listing.class_names))
    return Dataset(
        name="imagenet" if imagenet else "folder",
        train=FolderSplit(root, train_files),
        val=FolderSplit(root, val_files),
        class_names=[printable(name) for name in listing.class_names],
        fingerprint=fingerprint(train_files.digest(), val_files.digest()),
        notices=[text for text in notices if text],
        held_out=held_out,
    )


def whole_folder(root: Path, names: Sequence[str] | None = None) -> Dataset:
    """The images of a folder with `val` or with class folders only, all of them to evaluate on.

    names: the classes of the weights. Folders with these names get their numbers, also where some
    are missing. Training and validation are the same split. Raises UserError.
    """
    train, val = find_splits(root, training=False)
    split = val if val is not None else train
    assert split is not None
    listing = list_split(root, split)
    folders = {printable(name): name for name in listing.class_names}
    if names and set(folders) <= set(names):
        listing = list_split(root, split, [folders.get(name, name) for name in names])
    text = describe(str(root / split), listing.left_out)
    return Dataset(
        name="folder",
        train=FolderSplit(root, listing),
        val=FolderSplit(root, listing),
        class_names=[printable(name) for name in listing.class_names],
        fingerprint=fingerprint(listing.digest(), listing.digest()),
        notices=[text] if text else [],
    )


def find_splits(root: Path, training: bool = True) -> tuple[str | None, str | None]:
    """Names of the training and the validation directory in `root`; None for a missing one.

    The first is "" where `root` has the class folders themselves. Raises UserError where there is
    nothing to train on.
    """
    if not root.is_dir():
        raise UserError(f"--data_dir={root} is {'not a folder' if root.exists() else 'not there'}")
    train = "train" if (root / "train").is_dir() else None
    val = next((name for name in VAL_NAMES if (root / name).is_dir()), None)
    if train or val:
        return train, val
    if training and root.name in ("train", *VAL_NAMES) and (root.parent / "train").is_dir():
        raise UserError(f"{root} is one split: name the folder above, --data_dir={root.parent}")
    below = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    deeper = [
        p for p in below if (p / "train").is_dir() or any((p / v).is_dir() for v in VAL_NAMES)
    ]
    if len(deeper) == 1 and len(below) == 1:
        raise UserError(
            f"{root} has no folder train, and {deeper[0]} looks like the data: "
            f"--data_dir={deeper[0]}"
        )
    if not below:
        expected = layout(root / "train", root / "val")
        raise UserError(f"{root} has no folder train, and no class folders either: {expected}")
    return "", None


def _held_out(root: Path, split: str, train: Listing, val: Listing) -> str:
    place = f"{root} has no validation split" if split in ("", "train") else f"{root} has no train"
    total = len(train.files) + len(val.files)
    return (
        f"{place}: {len(val.files):,} of its {total:,} images, a fifth of each class and always "
        f"the same ones, are held out to validate on (`twinvit prepare {root} --val=0.2` writes "
        "such a split)"
    )


def _one_class(top: Path, listing: Listing) -> str:
    """Why there is one class only, as far as the folders say."""
    name = listing.class_names[0]
    below = sorted(
        p.name for p in (top / name).iterdir() if p.is_dir() and not p.name.startswith(".")
    )
    told = f"{top} has one class folder, {printable(name)}, and training needs two or more classes"
    if not below:
        return f"{told}: {layout(top)}"
    inner = some([printable(n) for n in below], separator=", ")
    return (
        f"{told}. In it are the folders {inner}: if these are the classes, they are one level too "
        f"deep; name {top / name} in --data_dir, or move them up"
    )


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
