"""What an explanation of a port says: the verdict, its reasons, the findings and their proof."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from twinvit.port.errors import PortError
from twinvit.port.sides import turn

SHOWN = 12  # narrowings that are shown, and measured in the port
VERDICTS = ("same", "different", "undecided")
KINDS = ("cause", "precision", "weights", "expression", "unknown")
SIDES = ("torch", "jax")
WORST = 100.0
"""Roundings of its own that an element of two equal outputs is apart at most."""
CEILING = 1e-9
"""Relative L2 distance up to which equal outputs are apart where no rounding was measured."""
FAR = 1e-6
"""Relative L2 distance that no rounding of float64 makes, however it is measured."""


@dataclass
class Finding:
    """One difference between the reference and the port.

    Attributes:
        kind: "cause" (a catalogued wrong version, proven), "precision" (a constant made in a
            narrower type), "weights" (parameters without an equal), "expression" (a sub-program of
            the port, proven in the reference's place) or "unknown" (the place is known, the cause
            is not).
        cause: identifier of the catalogue; "" where there is none.
        text: what is wrong, in words.
        torch: the place in the PyTorch model, "layers.0.mlp.act: gelu".
        jax: the place in the JAX model, "modeling.py:118"; "" where it cannot be determined.
        before: the distance at this operation without the edit (relative L2).
        after: the distance at this operation with the edit.
        places: every place of the PyTorch model that the same edit was made at.
        what: "forward", "grad", "train" or "optimizer".
        fix: what to write in the side that is to be changed; "" where it is not known.
        torch_line: file and line of `torch`, "model.py:31"; "" where it cannot be determined.
        torch_lines: the lines of all places, in their order, each once.
        jax_lines: the same in the JAX model.
        operations: of an expression, how many operations of the reference it replaces and how many
            of the port it runs, library functions counted as one; None for other kinds.
        formulas: of an expression, what each side computes, whole, by side ("torch", "jax").
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
    fix: str = ""
    torch_line: str = ""
    torch_lines: list[str] = field(default_factory=list)
    jax_lines: list[str] = field(default_factory=list)
    operations: tuple[int, int] | None = None
    formulas: dict[str, str] = field(default_factory=dict)


@dataclass
class Downcast:
    """A computation in a narrower type than its inputs, ignored while the formulas were compared.

    Attributes:
        side: "torch" or "jax".
        where: file and line; it may be within a library.
        dtype: the type that was requested there.
        cost: the relative L2 distance of the outputs that this downcast alone makes; None if not
            measured.
        alone: True if the other side holds the same value in wider types alone as it runs, False if
            it rounds it as well (or this one does not as it runs), None if that cannot be
            determined.
        lines: the user's lines that lead there, each once.
        largest: the largest absolute difference of a number of the outputs that it makes; None if
            not measured, as the next two.
        divergence: of logits, the mean Kullback-Leibler divergence of the softmax over the last
            axis with it from that without it, in nats; None where no output is logits.
        agreement: of logits, the fraction of positions whose largest logit is the same one.
    """

    side: str
    where: str
    dtype: str
    cost: float | None = None
    alone: bool | None = None
    lines: list[str] = field(default_factory=list)
    largest: float | None = None
    divergence: float | None = None
    agreement: float | None = None


@dataclass
class Output:
    """One array that the models return, and how far the two sides' are apart.

    Attributes:
        torch: its name in what the PyTorch model returns, "logits" or "1.hidden"; "" for an array
            alone; None where the PyTorch model returns none.
        jax: the same of the JAX model.
        shape_torch: its shape; None where the PyTorch model returns none.
        shape_jax: the same of the JAX model.
        compared: whether the two arrays were compared.
        before: relative L2 distance before any edit.
        after: the same with the causes' edits alone.
        worst: the largest |difference| before any edit, in units of that element's own measured
            rounding; inf where one side has NaN or infinity and the other has not.
        permuted: the order of the PyTorch array's axes that the JAX array has, where it is another.
        note: what is to be said about it, in words.
    """

    torch: str | None = ""
    jax: str | None = ""
    shape_torch: tuple[int, ...] | None = None
    shape_jax: tuple[int, ...] | None = None
    compared: bool = True
    before: float = 0.0
    after: float = 0.0
    worst: float = 0.0
    permuted: tuple[int, ...] | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """The output in words: "logits", "0 (aux in the JAX model)", "the output"."""
        mine, theirs = self.torch, self.jax
        if mine is None or theirs is None:
            return (mine if theirs is None else theirs) or "the output"
        if mine == theirs or not theirs:
            return mine or "the output"
        return f"{mine} ({theirs} in the JAX model)" if mine else theirs


@dataclass
class Native:
    """Both models as they are, in their own types and jitted, against themselves in float64.

    Attributes:
        torch: relative L2 distance of the PyTorch model's outputs from its own in float64; None if
            it did not run.
        jax: the same of the JAX model.
        torch_dtype: the type that the PyTorch model's outputs have, "float32".
        jax_dtype: the same of the JAX model.
        text: what is to be said about it, in words (NaN, where and how many; why it did not run).
    """

    torch: float | None = None
    jax: float | None = None
    torch_dtype: str = ""
    jax_dtype: str = ""
    text: str = ""


@dataclass
class Draw:
    """The reference with the report's edits against the port, on other inputs or weights.

    Attributes:
        kind: "inputs" (random inputs), "weights" (random weights) or "given" (the caller's inputs).
        distances: relative L2 distance by the output's name.
        note: what is to be said about it, in words.
        worst: the largest |difference| of any element in units of its own measured rounding; None
            where rounding was not measured: then no distance may be above 1e-9.
    """

    kind: str
    distances: dict[str, float] = field(default_factory=dict)
    note: str = ""
    worst: float | None = None

    @property
    def rounding(self) -> bool:
        """Whether what is left is rounding."""
        if self.worst is not None:
            return self.worst <= WORST
        return all(d <= CEILING for d in self.distances.values())


@dataclass
class Input:
    """An array that both models were given, as the PyTorch model takes it.

    Attributes:
        name: the parameter's name; "" for an input given by its position.
        shape: its shape.
        dtype: its type as it was given, "float32".
    """

    name: str
    shape: tuple[int, ...]
    dtype: str


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


Verify = Callable[..., dict[str, float]]
"""Runs the edited reference and the port on inputs; distances by output."""


@dataclass
class Report:
    """The explanation of a port: the port = the reference + the findings' edits.

    What it says of itself is checked when it is made and before it is written: a report that
    contradicts itself raises ValueError. With JAX as the reference its texts are turned when it is
    made: none calls the JAX model "the port" or the PyTorch model "the reference".

    Attributes:
        verdict: "same" (every output that the reference has was compared and is equal to rounding,
            and nothing was found but precision), "different", or "undecided" (`reasons` says why).
        explained: the same, or every difference has a proven edit and `remaining` is rounding.
        distance: relative L2 distance of the outputs before any edit.
        remaining: the same after the causes' edits alone.
        findings: differences, in the order in which data flows.
        narrowings: computations in narrower types, both sides.
        unseen: what these inputs could not show.
        notes: how the comparison was made, what was matched, how long it took.
        operations: the reference's operations, for a picture of where the two part.
        reasons: why undecided, or what is said before everything else.
        outputs: each array that the models return.
        native: both models as they run, against float64.
        verified: the edits proven on further inputs and weights.
        reference: "torch" or "jax": the side that is right; texts and `fix` speak of the other.
        models: the models' names by side, {"torch": "ViT", "jax": "function"}.
        inputs: the arrays that both were given.
        seed: what the inputs were drawn from; None where the caller gave them.
        command: the command line; "" where there was none.
        versions: of twinvit, torch, jax, numpy and python.
        seconds: how long it took; None where it was not measured.
        operations_after: the reference's operations with the edits of known causes made; empty
            where nothing was found.
    """

    verdict: str
    explained: bool
    distance: float
    remaining: float
    findings: list[Finding] = field(default_factory=list)
    narrowings: list[Downcast] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    native: Native | None = None
    verified: list[Draw] = field(default_factory=list)
    reference: str = "torch"
    models: dict[str, str] = field(default_factory=dict)
    inputs: list[Input] = field(default_factory=list)
    seed: int | None = None
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None
    operations_after: list[Operation] = field(default_factory=list)
    _verify: Verify | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.reference == "jax":
            turn(self)
        self.check()

    @property
    def same(self) -> bool:
        """Whether the verdict is "same"."""
        return self.verdict == "same"

    @property
    def exit_status(self) -> int:
        """0 same, 1 different, 2 undecided."""
        return VERDICTS.index(self.verdict)

    def rounded_alone(self, least: float = 0.0) -> list[Downcast]:
        """Downcasts of the side that is to be changed which the other side has not, and that move
        its outputs by more than `least` (relative L2) or by an unknown amount; the costliest
        first."""
        side = "jax" if self.reference == "torch" else "torch"
        found = [
            n
            for n in self.narrowings
            if n.side == side and n.alone and (n.cost is None or not n.cost <= least)
        ]
        return sorted(found, key=lambda n: float("inf") if n.cost is None else -n.cost)

    def check(self) -> None:
        """Raise ValueError if the report contradicts itself."""
        for lie in contradictions(self):
            raise ValueError(f"a report that contradicts itself: {lie}")

    def verify(self, inputs: Any, jax_inputs: Any = None) -> dict[str, float]:
        """Run the reference with the report's edits, and the port, on other inputs, in float64.

        Args:
            inputs: arrays as `explain` takes them, of the shapes and types of the first ones.
            jax_inputs: arrays as the port takes them; by default made of `inputs` as the first
                ones were.

        Returns:
            Relative L2 distance by the output's name; inf where one side has NaN or infinity and
            the other has not.

        Raises:
            PortError: the inputs have other names, shapes or types; the report was read from a
                file, which holds neither model.
        """
        if self._verify is None:
            raise PortError(
                "this report holds neither model (it was read from a file, or made by another "
                "function than explain): call verify on the report that explain returns"
            )
        return self._verify(inputs) if jax_inputs is None else self._verify(inputs, jax_inputs)

    def __str__(self) -> str:
        from twinvit.port.report_text import colours, lines

        return "\n".join(lines(self, colours()))

    def _repr_html_(self) -> str:
        """The page, as a notebook shows it."""
        from twinvit.port import html

        return html.frame(self)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON to a file, or to standard output if the path is "-".

        Numbers that JSON lacks are written as the strings "inf", "-inf" and "nan". The file
        `report.schema.json` next to this module describes it field by field.
        """
        from twinvit.port.report_json import write

        write(self, path)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Report:
        """Read what `to_json` wrote, now or in a former version.

        Raises:
            ValueError: the file is no report, or one of a later version.
        """
        from twinvit.port.report_json import read

        return read(path)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one HTML page that needs nothing else."""
        from pathlib import Path

        from twinvit.port import html

        self.check()
        Path(path).write_text(html.page(self), encoding="utf-8", errors="backslashreplace")


def contradictions(report: Report) -> list[str]:
    """What a report says that cannot all be true."""
    lies = []
    if report.verdict not in VERDICTS:
        lies.append(f"verdict {report.verdict!r} is none of {', '.join(VERDICTS)}")
    if report.reference not in SIDES:
        lies.append(f"reference {report.reference!r} is none of {', '.join(SIDES)}")
    lies += [f"a finding of kind {f.kind!r}" for f in report.findings if f.kind not in KINDS]
    if report.explained and any(f.kind == "unknown" for f in report.findings):
        lies.append("explained, with a finding of unknown cause")
    if report.explained and not report.remaining <= FAR:
        lies.append(f"explained, and {report.remaining:g} apart with the edits")
    if report.verdict == "same":
        lies += _against_same(report)
    if report.verdict == "different" and not report.findings and not report.reasons:
        lies.append("different, without a finding or a reason")
    if report.verdict == "undecided" and not report.reasons:
        lies.append("undecided, without a reason")
    return lies


def _against_same(report: Report) -> list[str]:
    """What stands in a report whose verdict is "same" and speaks against it."""
    lies = [
        f"same, with a finding of kind {f.kind}" for f in report.findings if f.kind != "precision"
    ]
    if not report.explained:
        lies.append("same, and not explained")
    if not report.distance <= FAR:
        lies.append(f"same, and {report.distance:g} apart")
    for output in report.outputs:
        present = output.torch if report.reference == "torch" else output.jax
        if present is not None and not output.compared:
            lies.append(f"same, and {output.name} was not compared")
        if output.compared and not output.worst <= WORST:
            lies.append(f"same, and {output.name} is {output.worst:g} roundings apart")
    for draw in report.verified:
        if not draw.rounding:
            lies.append(f"same, and apart with other {draw.kind}")
    return lies
