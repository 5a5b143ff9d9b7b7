"""Decode every image of a folder, in parallel, and report those that cannot be decoded."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shared_vit.cores import cores
from shared_vit.data.dataset import Dataset, Split
from shared_vit.data.decode import DecodeError, decode
from shared_vit.data.sources.folder import VAL_NAMES, FolderSplit, find_splits
from shared_vit.data.sources.left_out import describe
from shared_vit.data.sources.listing import list_split
from shared_vit.errors import UserError

_AT_ONCE = 4096  # images submitted at a time, so that few results wait to be read


def check_folder(root: Path) -> int:
    """Print path and reason for each image of `root` that cannot be decoded; return their number.

    Threads on every core: the decoders release Python's lock. Raises UserError where there is no
    split to check, or one that cannot be listed.
    """
    from tqdm import tqdm

    names = [name for name in ("train", *VAL_NAMES) if (root / name).is_dir()]
    if not names:
        if not root.is_dir():
            raise UserError(f"{root} has no folder train, val or test to check: it is not there")
        find_splits(root, training=False)  # says what is wrong with it
        names = [""]
    bad = total = 0
    for name in names:
        listing = list_split(root, name)
        if text := describe(str(root / name), listing.left_out):
            print(f"notice: {text}")
        split = FolderSplit(root, listing)
        total += len(split)
        checked = _complaints(split)
        for complaint in tqdm(
            checked, total=len(split), desc=name or root.name, unit=" images", mininterval=1
        ):
            if complaint:
                bad += 1
                tqdm.write(complaint)
    print(f"{total:,} images checked, {bad:,} cannot be decoded")
    return bad


def check_dataset(dataset: Dataset) -> list[str]:
    """Path and reason of each image of a data set that cannot be decoded; [] for data that are not
    encoded images. Shows a progress bar on terminals."""
    from tqdm import tqdm

    if not dataset.photographs:
        return []
    found = []
    for name, split in (("train", dataset.train), ("val", dataset.val)):
        bar = dict(desc=f"checking {name}", unit=" images", mininterval=1, disable=None)
        found += [text for text in tqdm(_complaints(split), total=len(split), **bar) if text]
    return found


def _complaints(split: Split) -> Iterator[str]:
    """For each image in order its path and why it cannot be decoded; "" if it can."""

    def check(index: int) -> str:
        try:
            data = split.read(index)[0]
            if isinstance(data, bytes):
                decode(data)
        except DecodeError as error:
            return f"{split.where(index)}: {error}"
        except UserError as error:  # not read; it says where
            return str(error)
        return ""

    with ThreadPoolExecutor(cores()) as pool:
        for begin in range(0, len(split), _AT_ONCE):
            yield from pool.map(check, range(begin, min(begin + _AT_ONCE, len(split))))
