"""One difference between a reference optimizer and a port: what it sets, solves for and says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from twinvit.port.optimizer.model import Settings

DECAYED: tuple[str, tuple[object, ...]] = ("decayed", (False, True))
"""Weight decay, tensor by tensor."""


@dataclass
class Number:
    """A setting to solve for: x is free, `inverse(x)` the setting's value."""

    name: str
    starts: tuple[float, ...]
    kind: str = "log"  # "log": positive; "negative"; "logit": between 0 and 1

    def inside(self, value: float) -> float:
        if self.kind == "log":
            return float(np.log(max(value, 1e-30)))  # a setting may be zero
        if self.kind == "negative":
            return float(np.log(max(-value, 1e-30)))
        return float(np.log(value / (1 - value)))

    def outside(self, x: float) -> float:
        if self.kind == "log":
            return float(np.exp(np.clip(x, -80, 80)))
        if self.kind == "negative":
            return -float(np.exp(np.clip(x, -80, 80)))
        return float(1 / (1 + np.exp(-np.clip(x, -40, 40))))


@dataclass
class Edit:
    """One difference. `apply` changes settings; `numbers` are then solved for."""

    cause: str
    setting: str
    says: Callable[[Settings, Settings], str]
    apply: Callable[[Settings], None]
    numbers: tuple[Number, ...] = ()
    conflicts: frozenset[str] = frozenset()  # settings that another edit of the set must not touch
    late: bool = False  # so free that it is tried when nothing else explains the port
    chosen: tuple[str, tuple[object, ...]] | None = None
    """A setting of each tensor, and what it can be: chosen by which is nearest to the port."""
    text: str = ""
    before: float = 0.0
    places: list[str] = field(default_factory=list)


def _set(**values: object) -> Callable[[Settings], None]:
    def apply(s: Settings) -> None:
        for name, value in values.items():
            setattr(s, name, value)

    return apply


def make(
    cause: str,
    setting: str,
    says: str | Callable[[Settings, Settings], str],
    numbers: tuple[Number, ...] = (),
    late: bool = False,
    chosen: tuple[str, tuple[object, ...]] | None = None,
    also: tuple[str, ...] = (),
    **values: object,
) -> Edit:
    text = (lambda a, b: says) if isinstance(says, str) else says
    touched = frozenset(values) | {n.name for n in numbers} | set(also)
    return Edit(cause, setting, text, _set(**values), numbers, touched, late, chosen)
