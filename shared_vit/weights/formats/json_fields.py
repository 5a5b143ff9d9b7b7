"""Fields of JSON files from strangers, each checked before it is used."""

from collections.abc import Mapping
from typing import Any, TypeVar

from shared_vit.errors import UserError

Number = TypeVar("Number", int, float)
Rgb = tuple[float, float, float]

HALF: tuple[Rgb, Rgb] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # images in [-1, 1], as Google trained


def section(config: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    """An object within a JSON file, empty where there is none. Raises UserError otherwise."""
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: its JSON says {key} = {value!r:.80}, expected an object")
    return value


def number(
    config: Mapping[str, Any], key: str, kind: type[Number], default: Any, where: str
) -> Any:
    """A number of type `kind`, `default` where there is none. Raises UserError otherwise."""
    value = config.get(key, default)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]  # image and patch sizes may be pairs
    if value is None:
        return default
    if not _is_number(value) or kind(value) != value:
        raise UserError(f"{where}: its JSON says {key} = {value!r:.80}, expected a number")
    return kind(value)


def colours(
    config: Mapping[str, Any], mean_key: str, std_key: str, default: tuple[Rgb, Rgb], where: str
) -> tuple[Rgb, Rgb]:
    """Mean and standard deviation of R, G and B, or `default`. Raises UserError otherwise."""
    out = []
    for key, usual in zip((mean_key, std_key), default):
        value = config.get(key) or usual
        triple = isinstance(value, list | tuple) and len(value) == 3
        if not triple or not all(_is_number(v) for v in value):
            raise UserError(f"{where}: its JSON says {key} = {value!r:.80}, expected three numbers")
        red, green, blue = (float(v) for v in value)
        out.append((red, green, blue))
    return out[0], out[1]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
