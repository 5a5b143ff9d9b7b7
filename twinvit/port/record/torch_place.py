"""The user's line of what PyTorch computes now."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextvars import ContextVar

from twinvit.port.places import Frame, user_place

PLACE: ContextVar[str | None] = ContextVar("PLACE", default=None)
"""The location of what a recording computes again, whose own code is absent."""


def where_in_user_code() -> str:
    """File and line in the user's code of what is called now, "model.py:12"; "" if there is
    none."""

    recorded = PLACE.get()
    if recorded is not None:
        return recorded

    def stack() -> Iterator[Frame]:
        frame = sys._getframe(3)  # of what called this function
        while frame is not None:
            yield frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
            frame = frame.f_back  # type: ignore[assignment]

    return user_place(stack())
