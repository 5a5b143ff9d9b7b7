"""The location of a JAX program's equation in the user's code."""

from __future__ import annotations

import os
from typing import Any

import jax

from twinvit.port.places import short_path, user_place
from twinvit.port.record.jax_internals import Told, user_frames

_JAX = os.path.dirname(os.path.abspath(jax.__file__))
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def frames(source: Any) -> tuple[str, str]:
    """An equation's location: the user's, "file.py:12", or "layer NAME" where the model is
    made of a library's layers alone; and the innermost location outside JAX."""
    if isinstance(source, Told):
        return source.places
    called = user_frames(source)
    outside = [(name, line) for name, line, _ in called if not name.startswith((_JAX, _HERE))]
    inner = f"{short_path(outside[0][0])}:{outside[0][1]}" if outside else ""
    layer = str(getattr(source, "name_stack", ""))
    return user_place(called) or (f"layer {layer}" if layer else inner), inner


Place = tuple[str, str]
"""Where a type is narrowed, "file.py:12", and the type's name."""
