"""The flags `--json`, `--quiet` and `--github` of the commands that judge."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from shared_vit.errors import UserError
from twinvit.pages.verdicts import Flags, take_flags


def checked(json: str | None, quiet: bool, github: bool) -> Flags:
    """The flags, with a path that can be written to. Raises UserError."""
    if json not in (None, "-"):
        path = Path(str(json))
        if path.is_dir() or not path.resolve().parent.is_dir():
            raise UserError(f"--json={json}: name a file in a folder that exists")
        if not os.access(path if path.exists() else path.resolve().parent, os.W_OK):
            raise UserError(f"--json={json}: the file cannot be written; name another")
    return Flags(json, quiet, github)


def take_verdict_flags(argv: Sequence[str]) -> tuple[Flags, list[str]]:
    """The flags of a command line, checked, and the rest of it. Raises UserError."""
    flags, rest = take_flags(argv)
    return checked(flags.json, flags.quiet, flags.github), rest
