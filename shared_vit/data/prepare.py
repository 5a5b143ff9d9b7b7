"""`twinvit prepare`: ImageNet's official files to class folders, class folders to a training and a
validation split, and a check of all images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from shared_vit.cli.function_command import Positional
from shared_vit.data.check import check_folder
from shared_vit.data.sources.ilsvrc import prepare_imagenet
from shared_vit.data.split import split_folder
from shared_vit.errors import UserError


def prepare(
    what: Annotated[str | None, Positional("imagenet|FOLDER")] = None,
    train_tar: Path | None = None,
    val_tar: Path | None = None,
    devkit: Path | None = None,
    out: Path | None = None,
    check: Path | None = None,
    val: float | None = None,
    seed: int = 0,
    by: Literal["link", "copy"] = "link",
) -> int:
    """Make ImageNet's class folders from the official files, split class folders, or decode every
    image of a folder.

    twinvit prepare imagenet --train_tar A --val_tar B --devkit C --out DIR
    twinvit prepare FOLDER --val 0.2
    twinvit prepare --check DIR

    Args:
        what: imagenet: ILSVRC2012. Else a folder of class folders.
        train_tar: ILSVRC2012_img_train.tar
        val_tar: ILSVRC2012_img_val.tar
        devkit: ILSVRC2012_devkit_t12.tar.gz, which has the validation labels.
        out: Folder for train/ and val/; of a FOLDER, FOLDER-split by default. For imagenet the same
            command continues an interrupted run.
        check: Folder with train/ and val/, or with class folders. Prints every image that cannot
            be decoded.
        val: Fraction of each class's images that goes to val.
        seed: Which ones.
        by: Links to the images, or copies of them.
    """
    if check is not None:
        if what is not None:
            raise UserError(
                f"`twinvit prepare {what}` and `twinvit prepare --check DIR` are two commands"
            )
        return 1 if check_folder(check) else 0
    if what is None:
        raise UserError(
            "say what to do: `twinvit prepare imagenet --train_tar ...`, `twinvit prepare FOLDER "
            "--val=0.2` or `twinvit prepare --check DIR`"
        )
    if what != "imagenet":
        if val is None:
            raise UserError(
                f"`twinvit prepare {what}` needs --val, the fraction of images to validate on: "
                f"`twinvit prepare {what} --val=0.2`, or `twinvit prepare imagenet --train_tar ...`"
            )
        folder = Path(what)
        named = folder if folder.name not in ("", "..") else folder.resolve()
        beside = named.with_name(f"{named.name}-split")
        split_folder(folder, out or beside, val, seed, by == "copy")
        return 0
    if val is not None:
        raise UserError("--val splits a folder: ImageNet has a validation split of its own")
    if train_tar is None or val_tar is None or devkit is None or out is None:
        given = dict(train_tar=train_tar, val_tar=val_tar, devkit=devkit, out=out)
        missing = [f"--{name}" for name, value in given.items() if value is None]
        raise UserError(f"`twinvit prepare imagenet` also needs {', '.join(missing)}")
    prepare_imagenet(train_tar, val_tar, devkit, out)
    return 0
