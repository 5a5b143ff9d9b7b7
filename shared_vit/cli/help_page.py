"""The help of every command in one look: a usage line, what it does, its arguments, its flags."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from typing import Any

COLUMN, WIDTH = 26, 100
Row = tuple[str, str]
"""An argument or a flag as it is typed, and what it does."""


def page(usage: str, about: str, arguments: Iterable[Row], flags: Iterable[Row]) -> str:
    """A command's help, at most WIDTH columns wide.

    Args:
        usage: the command with its arguments, "twinvit compare A B".
        about: what it does: paragraphs.
        arguments: those without a name.
        flags: those with one.
    """
    flags = list(flags)
    lines = [f"usage: {usage}{' [--flag=value ...]' if flags else ''}"]
    for paragraph in re.split(r"\n\s*\n", about.strip()):
        shown = paragraph.split("\n")
        if not all(line.strip().startswith("twinvit ") for line in shown):  # else commands
            shown = textwrap.wrap(" ".join(paragraph.split()), WIDTH, **_WRAP)
        lines += ["", *shown]
    for rows in (list(arguments), flags):
        if rows:
            lines += ["", *(line for row in rows for line in _row(*row))]
    return "\n".join(lines) + "\n"


_WRAP: dict[str, Any] = dict(break_long_words=False, break_on_hyphens=False)


def _row(name: str, text: str) -> list[str]:
    shown = textwrap.wrap(text, WIDTH - COLUMN, **_WRAP)
    if len(name) > WIDTH // 2 and "{" in name:  # many choices, which are listed below
        name, _, choices = name.partition(" ")
        choices = ", ".join(dict.fromkeys(re.findall(r"[^{},|]+", choices)))
        name, shown = f"{name} NAME", textwrap.wrap(f"{text} One of {choices}.", WIDTH - COLUMN)
    first = [f"  {name:<{COLUMN - 2}}{shown[0] if shown else ''}".rstrip()]
    if len(name) > COLUMN - 4:
        first, shown = [f"  {name}"], ["", *shown]
    return first + [" " * COLUMN + line for line in shown[1:]]
