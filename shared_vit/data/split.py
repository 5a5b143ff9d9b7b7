"""Class folders to train/ and val/, by links or copies: `twinvit prepare FOLDER --val=0.2`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from shared_vit.data.sources.folder import VAL_NAMES
from shared_vit.data.sources.hold_out import hold_out
from shared_vit.data.sources.left_out import describe
from shared_vit.data.sources.listing import Listing, list_split, printable
from shared_vit.errors import UserError
from shared_vit.files import temporary_path


def split_folder(root: Path, out: Path, share: float, seed: int, copy: bool) -> None:
    """Make `out/train/<class>/` and `out/val/<class>/` of the class folders in `root`, or in its
    folder train; nothing in `root` changes.

    The fraction `share` of the images of each class, at least one of two or more, go to val, drawn
    by `seed`. Files are linked to, or copied. Raises UserError for a fraction outside 0 to 1, for a
    folder that has a validation split already, and where `out` exists; on failure nothing is left
    of it.
    """
    if not 0 < share < 1:
        raise UserError(f"--val={share}: the fraction of images for val must be between 0 and 1")
    if not root.is_dir():
        raise UserError(f"{root} is not there, or no folder: expected class folders in it")
    there = next((name for name in VAL_NAMES if (root / name).is_dir()), None)
    split = "train" if (root / "train").is_dir() else ""
    if split and there:
        raise UserError(f"{root} has train and {there} already: there is nothing to split")
    if out.exists():
        raise UserError(f"{out} exists already: choose another --out, or remove it")
    listing = list_split(root, split)
    train, val = hold_out(listing, split, share, seed)
    temporary = temporary_path(Path(os.path.abspath(out)))
    try:
        for name, part in (("train", train), ("val", val)):
            _place(root, split, temporary / name, part, copy)
        os.rename(temporary, out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if text := describe(str(root / split), listing.left_out):
        print(f"notice: {text}")
    print(
        f"{out}: {len(train.files):,} images in train and {len(val.files):,} in val, "
        f"{len(listing.class_names):,} classes, {'copied from' if copy else 'linked to'} {root}"
    )
    if alone := sorted(set(range(len(listing.class_names))) - set(val.labels.tolist())):
        names = ", ".join(printable(listing.class_names[i]) for i in alone[:4])
        print(f"notice: {len(alone):,} classes of one image are in train only, such as {names}")


def _place(root: Path, split: str, top: Path, part: Listing, copy: bool) -> None:
    base = os.path.abspath(root)
    for path in part.files.part(0, len(part.files)) if len(part.files) else []:
        source = os.path.join(os.fsencode(base), path)
        below = os.path.relpath(path, os.fsencode(split)) if split else path
        target = os.path.join(os.fsencode(top), below)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if copy:
            shutil.copyfile(source, target)
        else:
            os.symlink(source, target)
