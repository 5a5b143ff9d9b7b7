"""The machine-readable output of commands with a verdict: JSON, one line, workflow annotations.

`verdicts.schema.json` next to this module describes the JSON field by field; that of
`twinvit port explain` is `twinvit/port/report.schema.json`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

SCHEMA = 2
SCHEMA_FILE = Path(__file__).with_name("verdicts.schema.json")
STATUS = {"same": 0, "different": 1, "undecided": 2}
LEVELS = {"same": "notice", "different": "error", "undecided": "warning"}
MOST = 10  # annotations of one kind that GitHub shows of a step

command_line: ContextVar[str] = ContextVar("command_line", default="")
"""The command that runs, as it was typed; "" where a function was called."""


@dataclass(frozen=True)
class Flags:
    """How a verdict is to be said.

    Attributes:
        json: a file to write the JSON to, "-" for standard output; None: none is written.
        quiet: print the verdict's line only.
        github: print annotations of a GitHub workflow, too.
    """

    json: str | None = None
    quiet: bool = False
    github: bool = False

    def given(self) -> bool:
        """Whether any of them was requested."""
        return self.json is not None or self.quiet or self.github


@dataclass(frozen=True)
class Verdict:
    """What a command found.

    Attributes:
        tool: the command, "compare".
        verdict: "same", "different" or "undecided".
        line: the verdict in one line.
        reasons: why it is different or undecided, in words.
        fields: the command's own fields, as the schema has them under its name.
    """

    tool: str
    verdict: str
    line: str
    reasons: Sequence[str] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exit_status(self) -> int:
        """0 same, 1 different, 2 undecided."""
        return STATUS[self.verdict]


def announce(flags: Flags, work: Callable[[], Verdict | int]) -> int:
    """Run a command with a verdict, and print the verdict as the flags request.

    Args:
        flags: where the JSON goes, and what is printed.
        work: prints as it goes, and returns its verdict; an exit status where it reached none.

    Returns:
        The exit status: 0 same, 1 different, 2 undecided, or what `work` returned.
    """
    started = time.perf_counter()
    clear(flags.json)
    with printing(flags):
        found = work()
    if isinstance(found, int):
        return found
    lines = [found.line] if flags.quiet else []
    lines += workflow_commands(found) if flags.github else []
    if lines:
        print_safely("\n".join(lines), sys.stderr if flags.json == "-" else sys.stdout)
    if flags.json is not None:
        write(envelope(found, time.perf_counter() - started), flags.json)
    return found.exit_status


def not_writable(path: str | None) -> str:
    """Why no JSON is written to a path, in words; "" where it can be. A file that is no verdict is
    not replaced: it may be one that is to be read."""
    if path in (None, "-"):
        return ""
    file = Path(str(path))
    if file.is_dir():
        return "is a folder; name a file in it"
    if not file.resolve().parent.is_dir():
        return "its folder does not exist"
    if not os.access(file if file.exists() else file.resolve().parent, os.W_OK):
        return "cannot be written; name another file"
    if file.is_file() and file.stat().st_size and not _is_verdict(file):
        return "exists and is no verdict that a command wrote; name another file"
    return ""


def _is_verdict(file: Path) -> bool:
    """True for what `write` wrote: a JSON object with a schema and a verdict."""
    with file.open("rb") as opened:
        if opened.read(1) != b"{":  # weights, which may be large
            return False
    try:
        found = json.loads(file.read_bytes())
    except ValueError:
        return False
    return isinstance(found, dict) and {"schema", "verdict"} <= found.keys()


def clear(path: str | None) -> None:
    """Remove what a former command wrote there: where there is no verdict there is no file."""
    if path not in (None, "-"):
        Path(str(path)).unlink(missing_ok=True)


@contextlib.contextmanager
def printing(flags: Flags) -> Iterator[None]:
    """What is printed within goes nowhere if quiet, and to standard error if standard output is the
    JSON's."""
    if flags.quiet:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    elif flags.json == "-":
        with contextlib.redirect_stdout(sys.stderr):
            yield
    else:
        yield


def envelope(found: Verdict, seconds: float | None = None) -> dict[str, Any]:
    """A verdict as what JSON can hold: the fields of every command, then the command's own."""
    own = {name: plain(value) for name, value in found.fields.items()}
    return {
        "schema": SCHEMA,
        "tool": found.tool,
        "verdict": found.verdict,
        "reasons": [plain(text) for text in found.reasons],
        "command": plain(command_line.get()),
        "versions": versions(),
        "seconds": None if seconds is None else round(seconds, 3),
        **own,
    }


def versions() -> dict[str, str]:
    """Versions of what was at work: twinvit, torch, jax, numpy, python; "" where one is absent."""
    found = {}
    for name in ("twinvit", "torch", "jax", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found | {"python": platform.python_version()}


def write(data: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a JSON object to a file, or to standard output if the path is "-"."""
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    if os.fspath(path) == "-":
        print_safely(text.rstrip("\n"), sys.stdout)
    else:
        Path(path).write_text(text, encoding="utf-8")


def print_safely(text: str, stream: Any) -> None:
    """Print what the stream's encoding may lack; a reader that left changes no exit status."""
    codec = stream.encoding or "utf-8"
    try:
        print(text.encode(codec, "backslashreplace").decode(codec), file=stream, flush=True)
    except BrokenPipeError:  # `| head`: the verdict stands, and the status says it
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def plain(value: Any) -> Any:
    """`value` as JSON has it: dataclasses as objects, tuples as arrays, and the numbers that JSON
    lacks as the strings "inf", "-inf" and "nan"."""
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, float):  # NumPy's float64 among them
        value = float(value)
        return value if value - value == 0 else str(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, str):  # half a surrogate pair, as file names can hold, is not UTF-8
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if value is None or isinstance(value, bool | int):
        return value
    return plain(value.item()) if hasattr(value, "item") else str(value)  # NumPy's scalars


def workflow_commands(found: Verdict) -> list[str]:
    """The verdict as workflow commands, one a line: the line, then each reason that it lacks."""
    level = LEVELS[found.verdict]
    texts = [found.line]
    texts += [text for text in found.reasons if text not in found.line]
    title = f"{found.tool}: {found.verdict}"
    return [workflow_command(level, text, title=title) for text in texts[:MOST]]


def workflow_command(level: str, message: str, **properties: str) -> str:
    """A line that GitHub reads as an annotation, "::error file=port.py,line=3::..."."""
    told = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    return f"::{level} {told}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def optional_path(argv: Sequence[str], flag: str = "--json") -> list[str]:
    """A command line in which a flag without a value has "-" for one: where no argument follows,
    or another flag."""
    found = []
    for i, arg in enumerate(argv):
        following = argv[i + 1] if i + 1 < len(argv) else "--"
        alone = arg == flag and following.startswith("-") and following != "-"
        found.append(f"{flag}=-" if alone else arg)
    return found


def take_flags(argv: Sequence[str]) -> tuple[Flags, list[str]]:
    """`Flags` of a command line, and the rest of it."""
    path: str | None = None
    quiet = github = False
    rest = []
    arguments = iter(optional_path(argv))
    for arg in arguments:
        name, equals, value = arg.partition("=")
        if name == "--json":
            path = value if equals else next(arguments)
        elif arg == "--quiet":
            quiet = True
        elif arg == "--github":
            github = True
        else:
            rest.append(arg)
    return Flags(path, quiet, github), rest
