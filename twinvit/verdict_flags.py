"""The flags `--json`, `--quiet` and `--github` of the commands that give a verdict."""

from __future__ import annotations

from collections.abc import Sequence

from shared_vit.errors import UserError
from twinvit.pages.verdicts import Flags, not_writable, take_flags


def checked(json: str | None, quiet: bool, github: bool) -> Flags:
    """The flags, with a path that can be written to. Raises UserError."""
    if why := not_writable(json):
        raise UserError(f"--json={json}: {why}")
    return Flags(json, quiet, github)


def take_verdict_flags(argv: Sequence[str]) -> tuple[Flags, list[str]]:
    """The flags of a command line, checked, and the rest of it. Raises UserError."""
    flags, rest = take_flags(argv)
    return checked(flags.json, flags.quiet, flags.github), rest
