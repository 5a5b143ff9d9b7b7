"""The parser of every command line: argparse with one way to spell flags, to refuse, to help."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from shared_vit.cli.help_page import Row, page
from shared_vit.errors import UserError, nearest

_NOT_SHOWN: Sequence[Any] = (None, [], "", argparse.SUPPRESS, False)


class Parser(argparse.ArgumentParser):
    """An argparse parser in which hyphens and underscores in flags' names are alike, flags are not
    abbreviated, and an unknown one is refused with the nearest that there is.

    Attributes:
        status: the exit status where arguments are wrong.
        raises: wrong arguments raise UserError, for flags that no command line gave.
        elsewhere: by what other programs call a flag, what it is here.
    """

    status: ClassVar[int] = 2
    raises = False
    elsewhere: ClassVar[Mapping[str, str]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The arguments by name. Exits with `status`, or raises UserError, where one is wrong."""
        among = not self._commands() and any(not a.option_strings for a in self._actions)
        parse = self.parse_known_intermixed_args if among else self.parse_known_args
        found, unknown = parse(args, namespace)
        if unknown:
            chosen = (c.choices[getattr(found, c.dest)] for c in self._commands())
            next(chosen, self)._refuse(unknown[0])
        return found

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, of flags in either spelling."""
        given = None if args is None else self._spelt(args)
        return super().parse_known_args(given, namespace)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments, and leave."""
        if self.raises:
            raise UserError(f"{self.prog}: {message}")
        end = "" if message.endswith(("?", ".")) else "."
        self.exit(self.status, f"error: {message}{end} {self.prog} --help lists the flags.\n")

    def format_help(self) -> str:
        """The page that --help prints."""
        arguments: list[Row] = []
        flags: list[Row] = []
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                arguments += [(c.dest, c.help or "") for c in action._choices_actions]
            elif not action.option_strings:
                text = (action.help or "").replace("%%", "%")
                arguments.append((str(action.metavar or action.dest), text))
            elif action.help != argparse.SUPPRESS:
                flags.append(_flag(action))
        names = ["COMMAND"] if self._commands() else [name for name, _ in arguments]
        about = "\n\n".join(text for text in (self.description, self.epilog) if text)
        return page(" ".join([self.prog, *names]), about, arguments, flags)

    def _commands(self) -> list[argparse._SubParsersAction]:
        return [a for a in self._actions if isinstance(a, argparse._SubParsersAction)]

    def _spelt(self, args: Iterable[str]) -> list[str]:
        """Arguments with the names of flags as they were added."""
        known = {s.replace("-", "_"): s for s in self._option_string_actions if s[:2] == "--"}
        found = []
        for arg in args:
            name, equals, value = arg.partition("=")
            found.append(known.get(name.replace("-", "_"), name) + equals + value)
        return found

    def _refuse(self, argument: str) -> NoReturn:
        name = argument.partition("=")[0].lstrip("-").replace("-", "_")
        ours = self.elsewhere.get(name)
        hint = f"; did you mean --{ours}?" if ours else "."
        if not ours and argument.startswith("-"):
            hint = nearest(f"--{name}", self._option_string_actions)
        self.error(f"unknown argument {argument!r}{hint}")


def _flag(action: argparse.Action) -> Row:
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
    text = (action.help or "").replace("%%", "%")
    if action.nargs != 0 and action.default not in _NOT_SHOWN and "default" not in text:
        text += f"{'.' if text and not text.endswith('.') else ''} Default: {action.default}."
    if action.required:
        text = f"{text.rstrip('.')}. Required."
    return f"{names} {kind}".strip(), text.strip()
