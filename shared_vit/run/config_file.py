"""`--config FILE.toml`: any flags in a file, a line each, by their names on a command line."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shared_vit.errors import UserError, nearest
from shared_vit.files import read_limited, reason

_MOST = 1 << 20


def read_config(path: str | Path, names: Iterable[str], switches: Iterable[str]) -> list[str]:
    """The flags of a file as a command line, to be read as any other.

    names: the known flags, `switches` among them: those without a value, which take true or false.
    Hyphens in keys equal underscores. Raises UserError for a file that cannot be read, an unknown
    key, a table or a list.
    """
    try:
        values = tomllib.loads(read_limited(Path(path), _MOST).decode())
    except FileNotFoundError as error:
        raise UserError(f"--config={path} is not there") from error
    except ValueError as error:  # TOML's own, or a file that is no text
        raise UserError(f"--config={path} is not TOML: {reason(error)}") from error
    known = sorted(set(names) - {"config"})
    switches = frozenset(switches)
    argv = []
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in known:
            raise UserError(f"--config={path}: unknown key {key!r}{nearest(name, known)}")
        argv += _flag(f"--config={path}: {key}", name, value, name in switches)
    return argv


def _flag(where: str, name: str, value: Any, switch: bool) -> list[str]:
    if switch:
        if not isinstance(value, bool):
            raise UserError(f"{where} must be true or false, not {value!r}")
        return [f"--{name}"] if value else []
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{where} must be a text or a number, not {value!r:.80}")
    return [f"--{name}={value}"]
