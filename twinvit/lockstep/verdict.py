"""What was measured of a step, and the verdict over many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from shared_vit.errors import some
from twinvit.parity.noise_rule import STATUS
from twinvit.port.verdict import DIFFERENT, SAME, UNDECIDED


@dataclass(frozen=True)
class Measured:
    """One step from one state by both sides.

    gaps: {quantity: distance of b from a}, relative L2; a scalar named "loss" over max(1, |loss|).
    noise: the same of a from itself nudged, the largest of all nudges; None where not measured.
    distances: {quantity: (of a, of b)} from a step in float64; None without one. zero: arrays that
    are zero on both sides, in which nothing was compared. apart: quantities with a number that is
    finite on one side alone. vague: those with one that is finite on neither.
    """

    step: int
    gaps: dict[str, float]
    noise: dict[str, float] | None = None
    distances: dict[str, tuple[float, float]] | None = None
    zero: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()
    vague: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """A quantity outside its bound."""

    step: int
    name: str
    gap: float
    bound: float

    def __str__(self) -> str:
        return f"{self.name}: {self.gap:.2g} at step {self.step}, bound {self.bound:.2g}"


@dataclass
class Verdict:
    """Which steps were decided, and the first that differ.

    steps: indices of the compared steps. decided: one flag a step. differences: those of the first
    step that differs, the worst first. nothing: reasons why there was nothing to compare. open:
    {quantity: steps at which it is undecided}. among: of which steps these are, in words, where
    they are not all.
    """

    steps: list[int]
    decided: list[bool]
    differences: list[Difference] = field(default_factory=list)
    nothing: list[str] = field(default_factory=list)
    open: dict[str, list[int]] = field(default_factory=dict)
    among: str = ""

    @property
    def verdict(self) -> str:
        """ "same" where every step was decided, "different" where one differs, else "undecided"."""
        if self.differences:
            return DIFFERENT
        return SAME if self.steps and all(self.decided) and not self.nothing else UNDECIDED

    @property
    def matched(self) -> bool:
        return self.verdict == SAME

    @property
    def exit_status(self) -> int:
        """0: same; 1: different; 2: undecided."""
        return STATUS[self.verdict]

    def line(self) -> str:
        """The verdict in one line."""
        among = f" ({self.among})" if self.among else ""
        counted = f"lockstep: decided {sum(self.decided)} of {len(self.steps)} steps{among}"
        if self.differences:
            first = self.differences[0]
            return f"{counted}, {DIFFERENT} (first at step {first.step}, {first.name})"
        if self.verdict == UNDECIDED:
            return f"{counted}, {UNDECIDED} ({some([*self.nothing, *self.undecided()])})"
        return f"{counted}, {SAME}"

    def undecided(self) -> list[str]:
        """A line for each quantity that is undecided somewhere, and where."""
        return [f"{name} at {self.spans(steps)}" for name, steps in self.open.items()]

    def spans(self, steps: Sequence[int]) -> str:
        """Some of the compared steps in words: "steps 1, 4 to 9"."""
        places = sorted(self.steps.index(s) for s in steps)
        runs: list[list[int]] = []
        for i in places:
            if runs and i == runs[-1][1] + 1:
                runs[-1][1] = i
            else:
                runs.append([i, i])
        text = [
            f"{self.steps[a]}" if a == b else f"{self.steps[a]} to {self.steps[b]}" for a, b in runs
        ]
        return f"step{'s' if len(places) > 1 else ''} {some(text)}"

    def joined(self, other: Verdict) -> Verdict:
        """The verdict of two comparisons at the same steps, both of which must hold."""
        found = sorted((v for v in (self, other) if v.differences), key=_first_step)
        return Verdict(
            self.steps,
            [a and b for a, b in zip(self.decided, other.decided, strict=True)],
            found[0].differences if found else [],
            [*self.nothing, *other.nothing],
            self.open | other.open,
            self.among,
        )


def _first_step(verdict: Verdict) -> int:
    return verdict.differences[0].step
