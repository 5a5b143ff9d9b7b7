"""The order of class folders, which numbers the labels: by name, by number, or as a file says."""

from __future__ import annotations

import os
import re
from pathlib import Path

from shared_vit.errors import UserError, some
from shared_vit.files import read_limited

BY_NAME, BY_NUMBER = "name", "number"
_MOST = 1 << 26  # bytes of a file of names


def ordered(names: list[str], order: str, where: str) -> list[str]:
    """The class folders `names`, sorted by name, in the order of --class_order.

    `order` is `name`, `number` (folders named by integers, 2 before 10), or the path of a text
    file with the name of a class in each line. Raises UserError where the names do not fit.
    """
    if order == BY_NAME:
        return names
    if order == BY_NUMBER:
        other = [name for name in names if _number(name) is None]
        if other:
            raise UserError(
                f"--class_order=number, and {where} has class folders that are no numbers: "
                f"{some(other)}"
            )
        return sorted(names, key=lambda name: (_number(name), name))
    said = _lines(order)
    missing, unknown = sorted(set(said) - set(names)), sorted(set(names) - set(said))
    if missing or unknown:
        told = [f"{where} lacks {some(missing)}"] if missing else []
        told += [f"the file lacks {some(unknown)}"] if unknown else []
        raise UserError(f"--class_order={order} does not name the class folders: {'; '.join(told)}")
    return said


def notice(names: list[str]) -> str:
    """A notice about folders that are numbers and are sorted by name."""
    by_number = sorted(names, key=lambda name: (_number(name) or 0, name))
    if any(_number(name) is None for name in names) or by_number == names:
        return ""
    return (
        f"the class folders are numbers, and in the order of their names ({some(names, 3, ', ')}): "
        "--class_order=number puts 2 before 10"
    )


def _number(name: str) -> int | None:
    return int(name) if re.fullmatch(r"\d{1,18}", name, re.ASCII) else None


def _lines(path: str) -> list[str]:
    try:
        text = read_limited(Path(path).expanduser(), _MOST)
    except FileNotFoundError:
        raise UserError(
            f"--class_order={path}: expected name, number, or a file with the name of a class in "
            "each line"
        ) from None
    names = [os.fsdecode(line) for line in text.splitlines() if line.strip()]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(names) < 9999 else []
    if twice or len(set(names)) != len(names):
        raise UserError(f"--class_order={path} names a class twice: {some(twice)}")
    return names
