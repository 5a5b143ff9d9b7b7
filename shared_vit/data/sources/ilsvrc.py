"""ILSVRC2012's three official files to `train/<wnid>/` and `val/<wnid>/`, streaming and restartable."""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import NamedTuple

from shared_vit.errors import UserError

_PARTIAL = ".partial-"


class Counts(NamedTuple):
    train: int = 1_281_167
    val: int = 50_000
    classes: int = 1000


def prepare_imagenet(
    train_tar: Path, val_tar: Path, devkit: Path, out: Path, counts: Counts | None = None
) -> None:
    """Unpacks the training tar (a tar of one tar per class) and the validation tar (flat; labels from the devkit).

    A class of the training split is whole or absent, a validation image too: a second run skips what is there. Nothing
    is written before all three files are found to be what they should be. Raises UserError for a file that is missing
    or not what it should be, a tar that breaks off, a full disk, and counts that are not those of ILSVRC2012.
    """
    counts = counts or Counts()
    for flag, path in (("train_tar", train_tar), ("val_tar", val_tar), ("devkit", devkit)):
        if not path.is_file():
            raise UserError(
                f"--{flag}={path} is not there; the official files are at https://image-net.org/download.php"
            )
    wnids = validation_wnids(devkit)
    if len(wnids) != counts.val:
        raise UserError(
            f"{devkit} has labels for {len(wnids):,} validation images, not {counts.val:,}"
        )
    for path, member in ((train_tar, r"n\d{8}\.tar"), (val_tar, r"ILSVRC2012_val_\d{8}\.JPEG")):
        _check_first_member(path, member)
    for path, unpack in ((train_tar, lambda: _unpack_train(train_tar, out / "train")),
                         (val_tar, lambda: _unpack_val(val_tar, wnids, out / "val"))):  # fmt: skip
        try:
            unpack()
        except (tarfile.TarError, EOFError) as error:
            raise UserError(
                f"{path} breaks off or is damaged ({error}): get it anew; what is unpacked stays"
            ) from error
        except OSError as error:
            raise UserError(
                f"cannot unpack {path} to {out}: {error}; the same command goes on from there"
            ) from error
    _check_counts(out, counts)


def validation_wnids(devkit: Path) -> list[str]:
    """The wnid of each validation image in order, from the devkit's ground truth and synset table."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    wanted = ("data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat")
    found = {}
    try:
        with tarfile.open(devkit) as tar:
            for member in tar:
                for name in wanted:
                    if member.name.endswith(name):
                        found[name] = tar.extractfile(member).read()
        if missing := [name for name in wanted if name not in found]:
            raise UserError(
                f"--devkit={devkit} has no {missing[0]}: is it ILSVRC2012_devkit_t12.tar.gz?"
            )
        synsets = loadmat(io.BytesIO(found[wanted[1]]), squeeze_me=True)["synsets"]
        wnid_of = {
            int(number): str(wnid)
            for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"])
        }
        return [wnid_of[int(line)] for line in found[wanted[0]].split()]
    except (
        tarfile.TarError,
        EOFError,
        zlib.error,
        OSError,
        MatReadError,
        ValueError,
        KeyError,
        IndexError,
    ) as error:
        why = str(error).partition("\n")[0]
        raise UserError(
            f"--devkit={devkit} cannot be read: {why}. Is it ILSVRC2012_devkit_t12.tar.gz?"
        ) from error


def _check_first_member(path: Path, pattern: str) -> None:
    try:
        with tarfile.open(path, "r:") as tar:
            member = tar.next()
            while member is not None and member.isdir():
                member = tar.next()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path} is not a tar: {error}") from error
    if member is None or not re.fullmatch(pattern, os.path.basename(member.name)):
        found = "nothing" if member is None else member.name
        raise UserError(
            f"{path} is not the official file: it begins with {found}, not with a name like {pattern}"
        )


def _unpack_train(path: Path, out: Path) -> None:
    with _progress(path, "train") as bar, tarfile.open(path, "r:") as outer:
        for member in outer:
            wnid = os.path.basename(member.name).removesuffix(".tar")
            if not member.isfile() or not re.fullmatch(r"n\d{8}", wnid):
                continue
            if not (out / wnid).is_dir():
                partial = out / f"{_PARTIAL}{wnid}"
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                with tarfile.open(fileobj=outer.extractfile(member), mode="r:") as inner:
                    for image in inner:
                        if image.isfile():
                            _copy(inner, image, partial / _safe_name(image.name, path))
                partial.rename(out / wnid)
            _advance(bar, member)


def _unpack_val(path: Path, wnids: list[str], out: Path) -> None:
    with _progress(path, "val") as bar, tarfile.open(path, "r:") as tar:
        for wnid in sorted(set(wnids)):
            (out / wnid).mkdir(parents=True, exist_ok=True)
        for member in tar:
            if not member.isfile():
                continue
            name = _safe_name(member.name, path)
            match = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
            if not match or not 1 <= int(match[1]) <= len(wnids):
                raise UserError(
                    f"{path} holds {member.name}, which is no validation image of ILSVRC2012"
                )
            target = out / wnids[int(match[1]) - 1] / name
            if not target.exists():
                partial = target.with_name(_PARTIAL + name)
                _copy(tar, member, partial)
                partial.rename(target)
            _advance(bar, member)


def _safe_name(name: str, path: Path) -> str:
    base = os.path.basename(name)
    if not base or base.startswith("."):
        raise UserError(f"{path} holds a file named {name!r}, which is no image of ImageNet")
    return base


def _copy(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    data = tar.extractfile(member).read()
    if len(data) != member.size:
        raise tarfile.ReadError(f"{member.name} has {len(data)} of its {member.size} bytes")
    target.write_bytes(data)


def _progress(path: Path, name: str):
    from tqdm import tqdm

    return tqdm(total=path.stat().st_size, desc=name, unit="B", unit_scale=True, mininterval=1)


def _advance(bar, member: tarfile.TarInfo) -> None:
    bar.update(member.offset_data + member.size - bar.n)


def _check_counts(out: Path, counts: Counts) -> None:
    for split, images in (("train", counts.train), ("val", counts.val)):
        folders = [p for p in (out / split).iterdir() if p.is_dir() and not p.name.startswith(".")]
        found = sum(not name.startswith(".") for folder in folders for name in os.listdir(folder))
        if (found, len(folders)) != (images, counts.classes):
            raise UserError(
                f"{out / split} has {found:,} images in {len(folders):,} classes, and ILSVRC2012 has {images:,} in "
                f"{counts.classes:,}: the tar is not the whole official one"
            )
        print(f"{out / split}: {found:,} images in {len(folders):,} classes")
