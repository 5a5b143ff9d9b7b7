"""What the search tries, and what it accepts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from twinvit.port.causes import Cause, Variant
from twinvit.port.record.graph import Edit, Graph, Node
from twinvit.port.report import Finding

NARROW = 1e-6  # no constant in float32 is further off, few formulas are nearer


@dataclass
class AppliedEdit:
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
    replaced: dict[int, Node] = field(default_factory=dict)
    """The operations that the edits and the values took the places of, by position."""
    made: dict[int, Node] = field(default_factory=dict)
    """What stands there with them."""
    groups: list[list[int]] = field(default_factory=list)
    """Of each place, the operations that are edited there."""
    left_out: list[dict[int, Edit]] = field(default_factory=list)
    """The edits at further places that nothing needed on these inputs."""
    originals: dict[int, torch.Tensor] = field(default_factory=dict)
    """Values of no operation that others were substituted for, as they were."""
    settled: bool = False
    """Proven together with another finding, without which it cannot be left out."""
    unseen: list[str] = field(default_factory=list)
    """Places where the edit is made, too, and that other inputs than the first show."""
    operations: tuple[int, int] | None = None
    """Of an expression: operations of the reference that it replaces, and of the port that it
    runs."""
    formulas: dict[str, str] = field(default_factory=dict)
    """Of an expression: what each side computes, by side."""
    lines: list[str] = field(default_factory=list)
    """Of an expression: the port's lines that it is taken from."""
    whole: bool = False
    """Made in every step of a loop, or in none."""
    again: Callable[[Node], bool] | None = None
    """Of an expression: makes it at another operation, where the port's program is the same."""
    finding: Finding | None = None
    """What it is reported as."""

    def extend(
        self,
        node: Node,
        edits: Mapping[int, Edit],
        before: Graph,
        after: Graph,
    ) -> None:
        """Note that the edit is made at a further place, too. `before`, `after`: the reference
        without and with it."""
        self.places.insert(len(self.groups), node.place)
        self.groups.append(list(edits))
        self.edits.update(edits)
        self.replaced.update({i: before.nodes[i] for i in edits})
        self.made.update({i: after.nodes[i] for i in edits})

    def forget(self, k: int) -> dict[int, Edit]:
        """Note that the edit is not made at the k-th place; returns what was made there."""
        edits = {}
        for i in self.groups.pop(k):
            edits[i] = self.edits.pop(i)
            del self.replaced[i], self.made[i]
        del self.places[k]
        return edits

    def took(
        self,
        replaced: dict[int, Node],
        made: dict[int, Node],
        originals: dict[int, torch.Tensor],
    ) -> AppliedEdit:
        """Note what the edits and values took the places of; returns itself."""
        self.replaced, self.made, self.originals = replaced, made, originals
        return self


@dataclass
class TrialResult:
    """What an edit regains.

    Attributes:
        regained: lost values after the edited operations that are found with the edit, the model's
            outputs among them.
        broken: found values that are lost with it.
        proof: the first regained value: its id, the port's entry (-1: an output), and the value;
            the edited operation's own result, where that is found.
        own: results of the edited operations themselves that are found. They prove nothing.
        arrays: how many of the regained values have enough elements to be told from others.
    """

    regained: int
    broken: int
    proof: tuple[int, int, torch.Tensor] | None
    own: int = 0
    arrays: int = 0


@dataclass
class Trial:
    """A candidate edit and what it regains. `stacked`: it was made with another edit in the
    graph, which its function may run."""

    cause: Cause | None
    variant: Variant
    site: Node
    edits: dict[int, Edit]
    judged: TrialResult
    rank: int
    stacked: bool = False

    @property
    def gain(self) -> int:
        return self.judged.regained + self.judged.own - self.judged.broken

    @property
    def provisional(self) -> bool:
        """True if nothing after the edit is regained yet: another difference may stand there."""
        return not self.judged.regained

    @property
    def key(self) -> tuple[int, str, str]:
        """What tells an edit from others in the same graph."""
        name = self.cause.name if self.cause else ""
        return self.site.index, name, self.variant.text
