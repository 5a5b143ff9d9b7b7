"""What an explanation of a port says: findings, narrowings, and the proof at their end."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

FORMAT = 1
SHOWN = 12  # narrowings that are shown, and measured in the port


@dataclass
class Finding:
    """One difference between the reference and the port.

    Attributes:
        kind: "cause" (a catalogued wrong version, proven), "precision" (a constant made in a
            narrower type), "weights" (parameters without an equal) or "unknown" (the place is
            known, the cause is not).
        cause: identifier of the catalogue; "" where there is none.
        text: what is wrong and what to change where, in words.
        torch: the reference's place, "layers.0.mlp.act: gelu".
        jax: the port's place, "modeling.py:118"; "" where it cannot be told.
        before: the distance at this operation without the edit (relative L2).
        after: the distance at this operation with the edit.
        places: every place of the reference that the same edit was made at.
        what: "forward", "grad", "train" or "optimizer".
    """

    kind: str
    cause: str
    text: str
    torch: str
    jax: str
    before: float
    after: float
    places: list[str] = field(default_factory=list)
    what: str = "forward"


@dataclass
class Narrowing:
    """A computation in a narrower type than its inputs, ignored while the formulas were compared.

    Attributes:
        side: "torch" or "jax".
        where: file and line.
        dtype: the type that was asked for there.
        cost: the relative L2 distance of the outputs that this narrowing alone makes; None if not
            measured.
    """

    side: str
    where: str
    dtype: str
    cost: float | None = None


class Operation(NamedTuple):
    """One operation of the reference, as the page's picture shows it (before any edit).

    Attributes:
        index: position in execution order.
        scope: module path, "layers.0.mlp".
        name: operation, "gelu".
        distance: relative L2 distance of the sorted values to the nearest value in the port; inf
            without any of its size.
        noise: the same distance between reference runs whose inputs were nudged by one eps.
        status: "found", "passed" or "lost"; "" where the values prove nothing (constants, tiny
            arrays).
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nothing here calls
    scope: str
    name: str
    distance: float
    noise: float
    status: str


@dataclass
class Report:
    """The explanation of a port: the port = the reference + the findings' edits.

    Attributes:
        same: outputs equal to rounding, no finding but narrowings, and something was there to be
            compared.
        explained: `same`, or every finding has a proven cause and `remaining` is rounding.
        distance: relative L2 distance of the outputs before any edit.
        remaining: the same after the causes' edits alone.
        findings: differences, in the order in which data flows.
        narrowings: computations in narrower types, both sides.
        unseen: what these inputs could not show.
        notes: how the comparison was made, what was matched, how long it took.
        operations: the reference's operations, for a picture of where the two part.
    """

    same: bool
    explained: bool
    distance: float
    remaining: float
    findings: list[Finding] = field(default_factory=list)
    narrowings: list[Narrowing] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(self._lines(_colours()))

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON; numbers that JSON lacks are written as the strings "inf" and
        "nan"."""
        data = {"format": FORMAT, **asdict(self)}
        data["operations"] = [list(op) for op in self.operations]
        Path(path).write_text(json.dumps(_plain(data), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Report:
        """Read what `to_json` wrote. Raises ValueError on another format."""
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if data.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is not a report of this version (format {FORMAT})")
        for finding in data["findings"]:
            finding["before"], finding["after"] = float(finding["before"]), float(finding["after"])
        for narrowing in data["narrowings"]:
            if narrowing["cost"] is not None:
                narrowing["cost"] = float(narrowing["cost"])
        return cls(
            same=data["same"],
            explained=data["explained"],
            distance=float(data["distance"]),
            remaining=float(data["remaining"]),
            findings=[Finding(**f) for f in data["findings"]],
            narrowings=[Narrowing(**n) for n in data["narrowings"]],
            unseen=data["unseen"],
            notes=data["notes"],
            operations=[
                Operation(i, s, n, float(d), float(e), st)
                for i, s, n, d, e, st in data["operations"]
            ],
        )

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one HTML page that needs nothing else."""
        from twinvit.port import html

        Path(path).write_text(html.page(self), encoding="utf-8")

    def _lines(self, c: dict[str, str]) -> Iterator[str]:
        if self.same:
            yield (
                f"{c['good']}SAME{c['end']}  the port computes what the "
                f"reference computes: outputs {self.distance:.1e} apart"
            )
        elif self.explained:
            n = len(self.findings)
            yield (
                f"{c['bad']}DIFFERENT{c['end']}, explained: the port = the reference + "
                f"{'this edit' if n == 1 else f'these {n} edits'}"
            )
        else:
            yield f"{c['bad']}DIFFERENT{c['end']}, not fully explained"
        for number, finding in enumerate(self.findings, 1):
            yield ""
            label = finding.cause or finding.kind
            where = f"  {finding.jax}" if finding.jax else ""
            yield f"{c['bold']}{number}. {label}{c['end']}{where}"
            yield f"   {finding.text}"
            yield f"   reference: {finding.torch}"
            if len(finding.places) > 1:
                shown = ", ".join(finding.places[:6]) + (", ..." if len(finding.places) > 6 else "")
                yield f"   {len(finding.places)} places: {shown}"
            yield (
                f"   distance there: {finding.before:.1e} "
                f"before the edit, {finding.after:.1e} after"
            )
        if not self.same:
            yield ""
            yield (
                f"outputs: {self.distance:.1e} apart; "
                f"{self.remaining:.1e} with the edits made to the reference"
            )
        if self.narrowings:
            yield ""
            yield "Narrowings (ignored above: both sides ran in float64):"
            for narrow in self.narrowings[:SHOWN]:
                cost = "" if narrow.cost is None else f", costs {narrow.cost:.1e}"
                yield f"   {narrow.side}: {narrow.where} to {narrow.dtype}{cost}"
            if len(self.narrowings) > SHOWN:
                yield f"   and {len(self.narrowings) - SHOWN} more"
        for title, texts in (("Not seen with these inputs:", self.unseen), ("Notes:", self.notes)):
            if texts:
                yield ""
                yield title
                for text in texts:
                    yield f"   {text}"


def _colours() -> dict[str, str]:
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        return {"good": "\033[32m", "bad": "\033[31m", "bold": "\033[1m", "end": "\033[0m"}
    return dict.fromkeys(("good", "bad", "bold", "end"), "")


def _plain(value: Any) -> Any:
    """`value` without the floats that JSON lacks."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
