"""`twinvit prepare`: ImageNet's official files to class folders, and a check of all images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from shared_vit.data.check import check_folder
from shared_vit.data.sources.ilsvrc import prepare_imagenet
from shared_vit.errors import UserError


def prepare(
    what: Annotated[Literal["imagenet"] | None, tyro.conf.Positional] = None,
    train_tar: Path | None = None,
    val_tar: Path | None = None,
    devkit: Path | None = None,
    out: Path | None = None,
    check: Path | None = None,
) -> int:
    """Make ImageNet's class folders from the official files, or decode every image of a folder.

    twinvit prepare imagenet --train_tar A --val_tar B --devkit C --out DIR
    twinvit prepare --check DIR

    Args:
        what: imagenet: ILSVRC2012.
        train_tar: ILSVRC2012_img_train.tar
        val_tar: ILSVRC2012_img_val.tar
        devkit: ILSVRC2012_devkit_t12.tar.gz, which has the validation labels.
        out: Folder for train/ and val/. The same command continues an interrupted run.
        check: Folder with train/ and val/. Prints every image that cannot be decoded.
    """
    if check is not None:
        if what is not None:
            raise UserError(
                "`twinvit prepare imagenet` and `twinvit prepare --check DIR` are two commands"
            )
        return 1 if check_folder(check) else 0
    if what is None:
        raise UserError(
            "say what to do: `twinvit prepare imagenet --train_tar ...` or "
            "`twinvit prepare --check DIR`"
        )
    if train_tar is None or val_tar is None or devkit is None or out is None:
        given = dict(train_tar=train_tar, val_tar=val_tar, devkit=devkit, out=out)
        missing = [f"--{name}" for name, value in given.items() if value is None]
        raise UserError(f"`twinvit prepare imagenet` also needs {', '.join(missing)}")
    prepare_imagenet(train_tar, val_tar, devkit, out)
    return 0
