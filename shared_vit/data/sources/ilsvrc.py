"""ILSVRC2012's three official files to `train/<wnid>/` and `val/<wnid>/`; it can be restarted."""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from shared_vit.data.decode import MOST_BYTES
from shared_vit.errors import UserError
from shared_vit.files import reason

if TYPE_CHECKING:
    from tqdm import tqdm

_PARTIAL = ".partial-"
_WNID = re.compile(r"n[0-9]{8}")
_MOST_OF_DEVKIT = 1 << 26  # bytes of one of its files; the largest official one has under 1 MB


class Counts(NamedTuple):
    train: int = 1_281_167
    val: int = 50_000
    classes: int = 1000


def prepare_imagenet(
    train_tar: Path, val_tar: Path, devkit: Path, out: Path, counts: Counts | None = None
) -> None:
    """Unpack the training tar (of one tar a class) and the flat validation tar into class folders.

    A training class is complete or absent, and so is a validation image: a second run skips what is
    there. All three files are checked before anything is written, and nothing is written outside
    `out`. Raises UserError for a file that is missing or not the official one, a tar that ends
    early, a full disk, and counts other than those of ILSVRC2012.
    """
    counts = counts or Counts()
    for flag, path in (("train_tar", train_tar), ("val_tar", val_tar), ("devkit", devkit)):
        if not path.is_file():
            raise UserError(
                f"--{flag}={path} is not there; the official files are at "
                "https://image-net.org/download.php"
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
                f"{path} ends early or is damaged ({error}): get it anew; what is unpacked stays"
            ) from error
        except OSError as error:
            raise UserError(
                f"cannot unpack {path} to {out}: {error}; the same command continues from there"
            ) from error
    _check_counts(out, counts)


def validation_wnids(devkit: Path) -> list[str]:
    """The WordNet number of each validation image in order, from the devkit's two tables.

    Raises UserError for a devkit that cannot be read or has other than WordNet numbers.
    """
    from scipy.io import loadmat

    truth, table = _devkit_files(devkit)
    try:
        synsets = loadmat(io.BytesIO(table), squeeze_me=True)["synsets"]
        pairs = zip(synsets["ILSVRC2012_ID"], synsets["WNID"])
        wnid_of = {int(number): str(wnid) for number, wnid in pairs}
        wnids = [wnid_of[int(line)] for line in truth.split()]
    except Exception as error:  # scipy raises many kinds on damaged files
        raise _odd_devkit(devkit, f"{type(error).__name__}: {reason(error)}") from error
    if odd := next((w for w in wnids if not _WNID.fullmatch(w)), None):
        raise _odd_devkit(devkit, f"{ascii(odd)[:80]} is no WordNet number, such as n01440764")
    return wnids


def _devkit_files(devkit: Path) -> list[bytes]:
    """The contents of the ground truth and of the synset table."""
    wanted = ("data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat")
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(devkit) as tar:
            for member in tar:
                name = next((n for n in wanted if member.name.endswith(n)), None)
                file = tar.extractfile(member) if name and member.isreg() else None
                if name is None or file is None:
                    continue
                if member.size > _MOST_OF_DEVKIT:
                    raise _odd_devkit(devkit, f"{name} has {member.size:,} bytes")
                found[name] = file.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError) as error:
        raise _odd_devkit(devkit, reason(error)) from error
    if missing := [name for name in wanted if name not in found]:
        raise _odd_devkit(devkit, f"it has no {missing[0]}")
    return [found[name] for name in wanted]


def _odd_devkit(devkit: Path, why: str) -> UserError:
    return UserError(
        f"--devkit={devkit} cannot be read: {why}. Is it ILSVRC2012_devkit_t12.tar.gz?"
    )


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
            f"{path} is not the official file: it begins with {found}, not with a name like "
            f"{pattern}"
        )


def _unpack_train(path: Path, out: Path) -> None:
    with _progress(path, "train") as bar, tarfile.open(path, "r:") as outer:
        for member in outer:
            wnid = os.path.basename(member.name).removesuffix(".tar")
            if not member.isfile() or not _WNID.fullmatch(wnid):
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
    if member.size > MOST_BYTES:
        raise tarfile.ReadError(f"{member.name} has {member.size:,} bytes")
    file = tar.extractfile(member)
    data = b"" if file is None else file.read()
    if len(data) != member.size:
        raise tarfile.ReadError(f"{member.name} has {len(data)} of its {member.size} bytes")
    target.write_bytes(data)


def _progress(path: Path, name: str) -> tqdm:
    from tqdm import tqdm

    return tqdm(total=path.stat().st_size, desc=name, unit="B", unit_scale=True, mininterval=1)


def _advance(bar: tqdm, member: tarfile.TarInfo) -> None:
    bar.update(member.offset_data + member.size - bar.n)


def _check_counts(out: Path, counts: Counts) -> None:
    for split, images in (("train", counts.train), ("val", counts.val)):
        top = out / split
        folders = [p for p in top.iterdir() if p.is_dir() and not p.name.startswith(".")]
        found = sum(not name.startswith(".") for folder in folders for name in os.listdir(folder))
        if (found, len(folders)) != (images, counts.classes):
            raise UserError(
                f"{top} has {found:,} images in {len(folders):,} classes, and ILSVRC2012 "
                f"has {images:,} in {counts.classes:,}: the tar is not the complete official one"
            )
        print(f"{top}: {found:,} images in {len(folders):,} classes")
