"""The help of every command in one look: a usage line, what it does, its arguments, its flags."""

from __future__ import annotations

import argparse
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
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


def of_function(command: Callable[..., Any], prog: str) -> str:
    """The help of a command whose parameters are its arguments and flags, of its docstring."""
    about, texts = _docstring(inspect.getdoc(command) or "")
    hints = typing.get_type_hints(command, include_extras=True)
    arguments, flags = [], []
    for name, parameter in inspect.signature(command).parameters.items():
        metavar, spelling, aliases, positional = _told(hints[name])
        text = texts.get(name, "")
        if positional or parameter.kind is parameter.POSITIONAL_ONLY:
            shown = metavar or name.upper()
            many = typing.get_origin(_bare(hints[name])) is tuple
            arguments.append((f"{shown} ..." if many and "..." not in shown else shown, text))
            continue
        kind = metavar or _kind(_bare(hints[name]))
        if name == "json" and _bare(hints[name]) is str:
            kind = "[PATH]"
        spelt = ", ".join([*aliases, f"--{spelling or name}"])
        flags.append((f"{spelt} {kind}".strip(), text + _default(parameter)))
    flags.append(("-h, --help", "show this and exit"))
    usage = " ".join([prog, *(name for name, _ in arguments)])
    return page(usage, about, arguments, flags)


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """What a docstring says of the function, and of each argument."""
    about, _, rest = text.partition("\nArgs:\n")
    rest = re.split(r"\n(?=\S)", rest)[0]
    found: dict[str, str] = {}
    for match in re.finditer(r"^    (\w+): (.*(?:\n(?:        .*)?)*)", rest, re.MULTILINE):
        found[match[1]] = " ".join(match[2].split())
    return re.split(r"\n(?:Returns|Raises):\n", about)[0], found


def _told(hint: Any) -> tuple[str, str, tuple[str, ...], bool]:
    """(metavar, name, aliases, whether it is positional), as tyro's marks on a type say it."""
    metavar, name, aliases, positional = "", "", (), False
    for mark in getattr(hint, "__metadata__", ()):
        metavar = getattr(mark, "metavar", None) or metavar
        name = getattr(mark, "name", None) or name if hasattr(mark, "metavar") else name
        aliases = tuple(getattr(mark, "aliases", None) or aliases)
        positional = positional or "positional" in repr(mark).lower()
    return metavar, name, aliases, positional


def _bare(hint: Any) -> Any:
    """A type without marks, and without None where that leaves one type."""
    if hasattr(hint, "__metadata__"):
        return _bare(hint.__origin__)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [x for x in typing.get_args(hint) if x is not type(None)]
        return _bare(inner[0]) if len(inner) == 1 else hint
    return hint


def _kind(hint: Any) -> str:
    """What a flag's value is, as `twinvit train --help` shows it."""
    origin = typing.get_origin(hint)
    if hint is bool:
        return ""
    if origin is typing.Literal:
        return "{" + ",".join(str(x) for x in typing.get_args(hint) if x is not None) + "}"
    if origin is tuple:
        return f"{_kind(typing.get_args(hint)[0])} ..."
    if origin in (typing.Union, types.UnionType):
        kinds = [_kind(x) for x in typing.get_args(hint) if x is not type(None)]
        return "|".join(dict.fromkeys(kinds))
    return {int: "N", float: "X", Path: "PATH"}.get(hint, "TEXT")


def _default(parameter: inspect.Parameter) -> str:
    value = parameter.default
    if value is parameter.empty:
        return " Required."
    if value is None or value is False or value == ():
        return ""
    if value is True:
        return f" --no_{parameter.name} leaves it out."
    return f" Default: {value}."


class Parser(argparse.ArgumentParser):
    """An argparse parser whose help has the look of the other commands'."""

    def format_help(self) -> str:
        arguments, flags = [], []
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                arguments += [(c.dest, c.help or "") for c in action._choices_actions]
            elif not action.option_strings:
                arguments.append((str(action.metavar or action.dest), action.help or ""))
            else:
                flags.append(self._flag(action))
        names = [name for name, _ in arguments]
        commands = any(isinstance(a, argparse._SubParsersAction) for a in self._actions)
        usage = f"{self.prog} COMMAND" if commands else " ".join([self.prog, *names])
        about = "\n\n".join(text for text in (self.description, self.epilog) if text)
        return page(usage, about, arguments, flags)

    def _flag(self, action: argparse.Action) -> Row:
        names = ", ".join(action.option_strings)
        kind = action.metavar or (
            "{" + ",".join(map(str, action.choices)) + "}" if action.choices else ""
        )
        if action.nargs == 0:
            kind = ""
        elif not kind:
            kind = {int: "N", float: "X", Path: "PATH"}.get(action.type, "TEXT")  # type: ignore[call-overload]
        if action.nargs == "?":
            kind = f"[{kind}]"
        text = action.help or ""
        shown: Sequence[Any] = (None, [], "", argparse.SUPPRESS, False)
        if action.nargs != 0 and action.default not in shown and "default" not in text:
            text += f"{'.' if text and not text.endswith('.') else ''} Default: {action.default}."
        if action.required:
            text += ". Required."
        return f"{names} {kind}".strip(), text.strip()
