"""Decodes every image of a folder, in parallel, and tells those that cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shared_vit.data.decode import DecodeError, decode
from shared_vit.data.sources.folder import VAL_NAMES, FolderSource
from shared_vit.data.sources.listing import list_split
from shared_vit.data.workers import cores
from shared_vit.errors import UserError


def check_folder(root: Path) -> int:
    """Prints the path of each image below `root/train` and `root/val` that cannot be decoded, and why; how many.

    Threads on every core: the decoders release Python's lock. Raises UserError where there is no split to check.
    """
    from tqdm import tqdm

    splits = [name for name in ("train", *VAL_NAMES) if (root / name).is_dir()]
    if not splits:
        raise UserError(f"{root} has no folder train, val or test to check")
    bad = total = 0
    for split in splits:
        source = FolderSource(root, list_split(root, split))
        total += len(source)
        for where, reason in tqdm(
            _complaints(source), total=len(source), desc=split, unit=" images", mininterval=1
        ):
            if reason:
                bad += 1
                tqdm.write(f"{where}: {reason}")
    print(f"{total:,} images checked, {bad:,} cannot be decoded")
    return bad


def _complaints(source: FolderSource) -> Iterator[tuple[str, str]]:
    """Where and why for each image in turn; why is empty for a good one."""

    def check(index: int) -> tuple[str, str]:
        try:
            decode(source.read(index)[0])
        except (DecodeError, UserError) as error:
            return source.where(index), str(error)
        return "", ""

    step = 4096  # so that results of millions of images do not pile up
    with ThreadPoolExecutor(cores()) as pool:
        for begin in range(0, len(source), step):
            yield from pool.map(check, range(begin, min(begin + step, len(source))))
