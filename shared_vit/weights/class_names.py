"""Names of a model's classes, in the order of its logits: checked when written and when read."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from shared_vit.errors import UserError

Names = tuple[str, ...] | None  # None: nobody said

KEY = "class_names"  # of a file's metadata, and of a card
_LONGEST = 1000


def checked(names: Sequence[str] | None, num_classes: int, where: str | os.PathLike) -> Names:
    """The names as a tuple; None stays None.

    Raises UserError unless there is one for each class, printable and of at most 1,000 characters.
    """
    if names is None:
        return None
    if isinstance(names, str) or not all(_is_name(name) for name in names):
        bad = names if isinstance(names, str) else next(n for n in names if not _is_name(n))
        raise UserError(
            f"{where}: a list of class names, each printable and of at most {_LONGEST} characters, "
            f"is expected, not {bad!r:.80}"
        )
    if len(names) != num_classes:
        raise UserError(f"{where}: {len(names)} class names do not fit {num_classes} classes")
    return tuple(names)


def cleaned(names: Sequence[str]) -> tuple[str, ...]:
    """Names from data or from strangers, such that they can be written.

    What is not printable becomes an escape, what is too long is cut, and an empty name becomes the
    number of its class.
    """
    out = []
    for i, name in enumerate(names):
        escaped = (c if c.isprintable() else ascii(c)[1:-1] for c in name[:_LONGEST])
        out.append("".join(escaped)[:_LONGEST] or str(i))
    return tuple(out)


def to_metadata(names: Names) -> dict[str, str]:
    """What a file's metadata holds: nothing where there are no names."""
    return {} if names is None else {KEY: json.dumps(names)}


def from_metadata(path: str | os.PathLike, metadata: Mapping[str, str], num_classes: int) -> Names:
    """The names in a file's metadata; None in files without them, as all older ones are.

    Raises UserError where they are no names of these classes.
    """
    if KEY not in metadata:
        return None
    try:
        names = json.loads(metadata[KEY])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its class names are no JSON: {error}") from error
    if not isinstance(names, list):
        raise UserError(f"{path}: its class names are no list")
    return checked(names, num_classes, path)


def from_foreign(said: Any, num_classes: int, notices: list[str]) -> Names:
    """The names in a foreign JSON file: a list, or an object from labels to names.

    None where there are none, or only transformers' LABEL_0, LABEL_1, ... What does not fit is left
    out with a notice added to `notices`: the weights are as good without.
    """
    if isinstance(said, Mapping):
        by_label = {str(label): name for label, name in said.items()}
        said = [by_label.get(str(i)) for i in range(len(by_label))]
    if not said or (isinstance(said, list) and all(_is_placeholder(name) for name in said)):
        return None
    if isinstance(said, list) and len(said) == num_classes:
        if all(isinstance(name, str) for name in said):
            return cleaned(said)
    notices.append(f"its class names do not fit {num_classes} classes: left out")
    return None


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name.isprintable() and 0 < len(name) <= _LONGEST


def _is_placeholder(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"LABEL_\d+", name) is not None
