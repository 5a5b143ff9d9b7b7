"""What programs return as they run, against what they return in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from twinvit.port import report

NAMES = {"torch": "the reference", "jax": "the port"}  # as the search's texts call them


FAR, FAR_NARROW = 1e-2, 0.3  # relative L2: more than a type's rounding makes
OWN = 1000.0  # times the reference's own distance


@dataclass
class Broken:
    """Numbers of an output that are NaN or infinite as the program runs, and finite in float64.

    Attributes:
        side: "torch" or "jax".
        output: the output's name; "" where there is one array.
        count, size: how many of how many elements.
        kind: "NaN" or "infinity", that of the most.
        where: the first place that makes one, "rope.py:11"; "" where it cannot be determined.
        own: how many of them the other side has not, as it runs.
    """

    side: str
    output: str
    count: int
    size: int
    kind: str
    where: str = ""
    own: int = 0

    @property
    def text(self) -> str:
        """ "returns NaN in 3 of 108 numbers, first at rope.py:11"."""
        name = f" of {self.output}" if self.output else ""
        place = f", first at {self.where}" if self.where else ""
        return f"returns {self.kind} in {self.count} of {self.size} numbers{name}{place}"


@dataclass
class NativeRun:
    """What the two programs return as they are, against what they return in float64.

    Attributes:
        torch, jax: the largest relative L2 distance of an output from its own float64 value, over
            numbers that are finite in both; None where the program could not be run.
        outputs: the same by side and name of the output, ("jax", "logits").
        dtypes: the outputs' types by side, {"jax": "bfloat16"}; several are joined by commas.
        broken: outputs with NaN or infinity that float64 has not.
        integers: by side, the largest fraction of an output's integers or booleans that are others
            than in float64.
        overflow: where an integer of the port leaves its type as it runs, "rope.py:11", looked for
            where the port is far from itself; "" where none does.
        jitted: the port ran under `jax.jit`.
        notes: what could not be done, and why.
    """

    torch: float | None = None
    jax: float | None = None
    outputs: dict[tuple[str, str], float] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)
    integers: dict[str, float] = field(default_factory=dict)
    overflow: str = ""
    jitted: bool = True
    notes: list[str] = field(default_factory=list)

    def failure(self, port: str) -> str:
        """What the port, "torch" or "jax", returns as it runs that is wrong; "" if nothing is.

        The port alone is blamed: NaN that the reference returns in the same places as it runs is
        the reference's program, rightly ported. NaN of the reference alone is said, and the verdict
        stands on float64: a port should compute the reference's formulas, not its faults.
        """
        blamed = [b for b in self.broken if b.side == port and b.own]
        if blamed:
            return f"{NAMES[port]} as it runs {blamed[0].text}"
        if port == "jax" and self.overflow:
            far = self.jax or 0.0
            away = f"is {far:.1e} away from it" if far else "returns other integers"
            return f"{NAMES[port]} as it runs {away}: an integer overflows at {self.overflow}"
        return ""

    def strays(self, port: str) -> bool:
        """True if the port, "torch" or "jax", is far from its own formulas in float64 as it runs,
        or returns other integers, and the reference does not."""
        other = {"jax": "torch", "torch": "jax"}[port]
        return self._far(port) or (
            self.integers.get(port, 0.0) > 0 and self.integers.get(other) == 0.0
        )

    def _far(self, port: str) -> bool:
        mine, others = (self.jax, self.torch) if port == "jax" else (self.torch, self.jax)
        if mine is None or others is None or not np.isfinite(mine):
            return False
        narrow = any(name in self.dtypes.get(port, "") for name in ("bfloat16", "float16"))
        return mine > (FAR_NARROW if narrow else FAR) and mine > OWN * others

    def drift(self, port: str) -> str:
        """Why it is open whether the port, "torch" or "jax", is right as it runs: it is far from
        its own formulas in float64, and not for an integer that overflows; "" if it is not.
        Integers alone that are others are ties that rounding decides, on either side."""
        if (port == "jax" and self.overflow) or not self._far(port):
            return ""
        mine, others = (self.jax, self.torch) if port == "jax" else (self.torch, self.jax)
        other = NAMES["torch" if port == "jax" else "jax"]
        return (
            f"{NAMES[port]} as it runs is {mine:.1e} from itself in float64, {other} "
            f"{others:.1e}: a step that rounding decides"
        )

    def report(self) -> report.Native:
        """The distances as a report holds them, with what is to be said."""
        texts = [f"{NAMES[b.side]} as it runs {b.text}" for b in self.broken]
        return report.Native(
            self.torch,
            self.jax,
            self.dtypes.get("torch", ""),
            self.dtypes.get("jax", ""),
            "; ".join(texts + self.notes),
        )


Named = Sequence[tuple[str, Any]]
Found = list[tuple[str, str, np.ndarray, np.ndarray]]
"""Name, own type, native and float64 values of each output."""


def first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
