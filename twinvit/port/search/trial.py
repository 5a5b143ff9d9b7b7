"""What the search tries, and what it takes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from twinvit.port.causes import Cause, Variant
from twinvit.port.record_torch import Edit, Node


@dataclass
class Accepted:
    """An edit that was proven, with what it was proven by."""

    kind: str
    cause: str
    text: str
    node: Node
    edits: dict[int, Edit]
    values: dict[int, torch.Tensor]
    jax: str
    before: float
    after: float
    places: list[str] = field(default_factory=list)
    trial: Trial | None = None
    ties: list[str] = field(default_factory=list)


@dataclass
class Judged:
    """What an edit regains.

    Attributes:
        regained: lost values that are found with the edit.
        broken: found values that are lost with it.
        proof: the first regained value: its id, the port's entry (-1: an output), and the value.
    """

    regained: int
    broken: int
    proof: tuple[int, int, torch.Tensor] | None


@dataclass
class Trial:
    """A candidate edit and what it regains."""

    cause: Cause | None
    variant: Variant
    site: Node
    edits: dict[int, Edit]
    judged: Judged
    rank: int

    @property
    def gain(self) -> int:
        return self.judged.regained - self.judged.broken
