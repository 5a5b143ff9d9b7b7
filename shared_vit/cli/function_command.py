"""A command that is a function: its parameters are its arguments and flags, its docstring is its
help."""

from __future__ import annotations

import argparse
import inspect
import re
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared_vit.cli.parser import Parser


@dataclass(frozen=True)
class Positional:
    """The mark of a parameter without a flag: `Annotated[str, Positional("SRC")]`. Positional-only
    parameters need none.

    Attributes:
        metavar: what help and errors call it; its name in capitals by default.
    """

    metavar: str = ""


@dataclass(frozen=True)
class Flag:
    """The mark of a flag that is spelt otherwise than its parameter.

    Attributes:
        name: of the flag, without dashes; the parameter's by default.
        aliases: other spellings, with dashes.
    """

    name: str = ""
    aliases: tuple[str, ...] = ()


def run(command: Callable[..., Any], argv: Sequence[str], prog: str) -> Any:
    """Call a command with its command line.

    Parameters are str, int, float, Path, bool (--flag, --no_flag), Literal, a union of these or
    None, or a tuple of any number of one of them. One named `json` that takes text stands for
    standard output ("-") where no value follows.

    Args:
        command: the function.
        argv: its arguments.
        prog: what help and errors call it, "twinvit convert".

    Returns:
        What the function returns. Exits with status 2 where arguments are wrong.
    """
    given = vars(parser_of(command, prog).parse_args(argv))
    args, kwargs = [], {}
    for name, parameter in inspect.signature(command).parameters.items():
        value = given.get(name, parameter.default)
        if isinstance(value, list) or value is parameter.empty:  # of arguments that none were given
            value = tuple(value if isinstance(value, list) else ())
        if parameter.kind is parameter.POSITIONAL_ONLY:
            args.append(value)
        else:
            kwargs[name] = value
    return command(*args, **kwargs)


def parser_of(command: Callable[..., Any], prog: str) -> Parser:
    """The parser of a function's arguments and flags; what is not given is not in its result."""
    about, texts = _docstring(inspect.getdoc(command) or "")
    parser = Parser(
        prog=prog,
        usage=prog,
        description=about,
        add_help=False,
        argument_default=argparse.SUPPRESS,
    )
    hints = typing.get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        marks = getattr(hints[name], "__metadata__", ())
        own = next((m for m in marks if isinstance(m, Positional)), None)
        if own is None and parameter.kind is parameter.POSITIONAL_ONLY:
            own = Positional()
        if own is not None:
            _add_argument(parser, parameter, _bare(hints[name]), own, texts.get(name, ""))
        else:
            flag = next((m for m in marks if isinstance(m, Flag)), Flag())
            _add_flag(parser, parameter, hints[name], flag, texts.get(name, ""))
    parser.add_argument("-h", "--help", action="help", help="show this and exit")
    return parser


def _add_argument(
    parser: Parser, parameter: inspect.Parameter, kind: Any, mark: Positional, text: str
) -> None:
    many = typing.get_origin(kind) is tuple
    metavar = mark.metavar or parameter.name.upper()
    if many and "..." not in metavar:
        metavar += " ..."
    nargs = "*" if many else None if parameter.default is parameter.empty else "?"
    kind = typing.get_args(kind)[0] if many else kind
    parser.add_argument(
        parameter.name, metavar=metavar, nargs=nargs, type=_reader(kind, False), help=_plain(text)
    )


def _add_flag(
    parser: Parser, parameter: inspect.Parameter, hint: Any, flag: Flag, text: str
) -> None:
    name, kind = flag.name or parameter.name, _bare(hint)
    names = [*flag.aliases, f"--{name}"]
    text = _plain(text + _default(parameter))
    if kind is bool:
        dest: dict[str, Any] = {"dest": parameter.name, "action": "store_const"}
        parser.add_argument(*names, const=True, help=text, **dest)
        parser.add_argument(f"--no_{name}", const=False, help=argparse.SUPPRESS, **dest)
        return
    how: dict[str, Any] = {"dest": parameter.name, "help": text, "metavar": _kind(kind)}
    if name == "json" and kind is str:
        how |= {"nargs": "?", "const": "-", "metavar": "PATH"}
    elif typing.get_origin(kind) is tuple:
        how["nargs"] = "*"
        kind = typing.get_args(kind)[0]
    how["required"] = parameter.default is parameter.empty
    optional = type(None) in typing.get_args(_unmarked(hint))
    parser.add_argument(*names, type=_reader(kind, optional), choices=_choices(kind), **how)


def _reader(kind: Any, optional: bool) -> Callable[[str], Any]:
    """What makes a value of a type of its text; `optional`: the text None is None."""
    kinds = [k for k in (typing.get_args(kind) or (kind,)) if k in (int, float, Path)]

    def read(text: str) -> Any:
        if optional and text == "None":
            return None
        if kinds and str not in typing.get_args(kind):
            return kinds[0](text)
        try:  # a number, or text
            return kinds[0](text) if kinds else text
        except ValueError:
            return text

    read.__name__ = kinds[0].__name__ if kinds else "str"  # which errors name
    return read


def _choices(kind: Any) -> list[Any] | None:
    """The values of a Literal, or of a union of them; None of other types."""
    if typing.get_origin(kind) is typing.Literal:
        return [value for value in typing.get_args(kind) if value is not None]
    parts = [_choices(part) for part in typing.get_args(kind)] if _is_union(kind) else [None]
    return None if None in parts else [value for part in parts for value in part or ()]


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """What a docstring says of the function, and of each argument."""
    about, _, rest = text.partition("\nArgs:\n")
    rest = re.split(r"\n(?=\S)", rest)[0]
    found: dict[str, str] = {}
    for match in re.finditer(r"^    (\w+): (.*(?:\n(?:        .*)?)*)", rest, re.MULTILINE):
        found[match[1]] = " ".join(match[2].split())
    return re.split(r"\n(?:Returns|Raises):\n", about)[0], found


def _plain(text: str) -> str:
    """A text in which argparse finds nothing to fill in."""
    return text.replace("%", "%%")


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _unmarked(hint: Any) -> Any:
    return _unmarked(hint.__origin__) if hasattr(hint, "__metadata__") else hint


def _bare(hint: Any) -> Any:
    """A type without marks, and without None where that leaves one type."""
    hint = _unmarked(hint)
    if _is_union(hint):
        inner = [x for x in typing.get_args(hint) if x is not type(None)]
        return _bare(inner[0]) if len(inner) == 1 else hint
    return hint


def _kind(hint: Any) -> str:
    """What a flag's value is, as `twinvit train --help` shows it."""
    origin = typing.get_origin(hint)
    if (choices := _choices(hint)) is not None:
        return "{" + ",".join(map(str, choices)) + "}"
    if origin is tuple:
        return f"{_kind(typing.get_args(hint)[0])} ..."
    if _is_union(hint):
        kinds = [_kind(x) for x in typing.get_args(hint) if x is not type(None)]
        return "|".join(dict.fromkeys(kinds))
    return {int: "N", float: "X", Path: "PATH"}.get(hint, "TEXT")


def _default(parameter: inspect.Parameter) -> str:
    value = parameter.default
    if value is parameter.empty or value is None or value is False or value == ():
        return ""
    if value is True:
        return f" --no_{parameter.name} leaves it out."
    return f" Default: {value}."
