"""Settings as data: what a field means, its range, and its value in files older than the field.

Configurations are dataclasses whose fields are made by `setting`. The command line, the records on
disk and the checks read the fields, so that a new setting is one line.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from shared_vit.errors import UserError

T = typing.TypeVar("T")


class _Absent:
    """The value of what was not given, None being a value."""

    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


@dataclass(frozen=True)
class Setting:
    """What is known of a field in addition to its name, type and default."""

    help: str
    group: str
    ge: float | None = None  # the smallest legal value
    gt: float | None = None  # a value must be greater
    le: float | None = None  # the largest legal value
    open: str | None = None  # what decides where the user does not; None: the default
    historical: Any = _ABSENT  # the value in force before the field existed
    parse: Callable[[str], Any] | None = None  # for values that argparse cannot read
    metavar: str | None = None


def setting(default: Any, help: str, *, group: str, **known: Any) -> Any:
    """A dataclass field with its description; `known` are fields of `Setting`."""
    return dataclasses.field(default=default, metadata={"setting": Setting(help, group, **known)})


def settings_of(cls: type) -> dict[str, Setting]:
    """`{name: Setting}` of a dataclass, without its fields of other kinds."""
    fields = dataclasses.fields(cls)
    return {f.name: f.metadata["setting"] for f in fields if "setting" in f.metadata}


class Kind(typing.NamedTuple):
    """A field's type: a plain one, the values of a Literal, whether None is legal, and of a tuple
    the type of what is in it."""

    type: type
    choices: tuple[str, ...]
    optional: bool
    items: Kind | None = None


def kinds_of(cls: type) -> dict[str, Kind]:
    """`{name: Kind}` of a dataclass."""
    return {name: _kind(hint) for name, hint in typing.get_type_hints(cls).items()}


def _kind(hint: Any) -> Kind:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [_kind(h) for h in typing.get_args(hint) if h is not type(None)]
        return Kind(inner[0].type, inner[0].choices, len(inner) < len(typing.get_args(hint)))
    if typing.get_origin(hint) is Literal:
        return Kind(str, typing.get_args(hint), False)
    if typing.get_origin(hint) is tuple:
        return Kind(tuple, (), False, _kind(typing.get_args(hint)[0]))
    return Kind(typing.get_origin(hint) or hint, (), False)


def written(values: Any) -> dict[str, Any]:
    """What a file holds of an instance: the dictionary of `dataclasses.asdict`, without the fields
    at their historical value, which older versions do not know. Those that older versions did
    write, its class's `WRITTEN_ALWAYS`, stay, so that no file of theirs changes.
    """
    always: frozenset[str] = getattr(type(values), "WRITTEN_ALWAYS", frozenset())
    about = settings_of(type(values))
    found = {}
    for f in dataclasses.fields(values):
        value = getattr(values, f.name)
        if f.name in about and f.name not in always and value == about[f.name].historical:
            continue
        found[f.name] = written(value) if dataclasses.is_dataclass(value) else value
    return found


def check_range(name: str, value: Any, about: Setting, say: str = "{}") -> None:
    """Raise UserError for a number outside a setting's range; `say` formats the name (`--{}`)."""
    if value is None or isinstance(value, str | bool) or not isinstance(value, int | float):
        return
    shown = say.format(name)
    if about.ge is not None and not value >= about.ge:
        raise UserError(f"{shown} must be at least {about.ge:g}, not {value}")
    if about.gt is not None and not value > about.gt:
        raise UserError(f"{shown} must be above {about.gt:g}, not {value}")
    if about.le is not None and not value <= about.le:
        raise UserError(f"{shown} must be at most {about.le:g}, not {value}")


def restore(cls: type[T], values: Any, where: str) -> T:
    """An instance from the plain values of a file, of this version of the project or an older one.

    A field that the file does not have takes the value that was in force before the field existed.
    Raises UserError for unknown fields, missing fields without a history, and wrong types.
    """
    name = cls.__name__
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: a {name} is expected, not {_shown(values)}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    about, kinds = settings_of(cls), kinds_of(cls)
    unknown = sorted(str(n) for n in set(values) - set(fields))
    missing = [
        n for n in fields if n not in values and (n not in about or about[n].historical is _ABSENT)
    ]
    if unknown or missing:
        raise UserError(
            f"{where}: this is no {name} of this version: unknown fields {_shown(unknown)}, "
            f"missing fields {_shown(missing)}"
        )
    found = {}
    for n in fields:
        value = values[n] if n in values else about[n].historical
        found[n] = _checked(f"{where}: {name} field {n}", value, kinds[n])
    return cls(**found)


def _checked(label: str, value: Any, kind: Kind) -> Any:
    if value is None and kind.optional:
        return None
    if kind.type is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if kind.items is not None and isinstance(value, list | tuple):
        value = tuple(_checked(f"{label}[{i}]", v, kind.items) for i, v in enumerate(value))
    if dataclasses.is_dataclass(kind.type) and isinstance(value, Mapping):
        return restore(kind.type, value, label)
    if not isinstance(value, kind.type) or (isinstance(value, bool) and kind.type is not bool):
        raise UserError(f"{label}: expected {kind.type.__name__}, found {_shown(value)}")
    if kind.choices and value not in kind.choices:
        raise UserError(f"{label}: expected one of {kind.choices}, found {_shown(value)}")
    if isinstance(value, float) and math.isnan(value):
        raise UserError(f"{label}: it is not a number")
    return value


def _shown(value: Any, le: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= le else text[:le] + "..."
