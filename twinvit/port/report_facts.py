"""What was compared, in words: models, inputs, seed, command; and what every report lacks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from twinvit.port.report import Downcast, Input, Report

ALWAYS = ("preprocessing is no part", "evaluation mode only", "gradients are not compared")
"""How the texts begin that every comparison of its kind says, whatever its inputs are."""
FRAMEWORKS = {"torch": "PyTorch", "jax": "JAX"}
INPUTS = 6  # that are named


def number(value: float) -> str:
    """A distance, in words where it is no number."""
    if math.isnan(value):
        return "not a number"
    return "no value of its size" if math.isinf(value) else f"{value:.1e}"


def models(report: Report) -> str:
    """Both models by name, the reference first: "ViT (PyTorch) and ViT (JAX)"."""
    sides = ("torch", "jax") if report.reference == "torch" else ("jax", "torch")
    named = [(report.models.get(side, ""), FRAMEWORKS[side]) for side in sides]
    if not any(name for name, _ in named):
        return ""
    return " and ".join(f"{name} ({side})" if name else side for name, side in named)


def roles(report: Report) -> str:
    """Both models by name with what each is: "ViT (PyTorch), the reference; f (JAX), the port"."""
    both = models(report)
    if not both:
        return ""
    first, _, second = both.partition(" and ")
    last = "the port" if report.reference == "torch" else "to be changed"
    return f"{first}, the reference; {second}, {last}"


def inputs(report: Report) -> str:
    """The inputs: "tokens int64 (2, 16), float32 (2, 3, 8, 8)"."""
    shown = [_input(x) for x in report.inputs[:INPUTS]]
    more = len(report.inputs) - INPUTS
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _input(x: Input) -> str:
    shape = f"({', '.join(map(str, x.shape))})"
    return f"{x.name} {x.dtype} {shape}".strip()


def drawn(report: Report) -> str:
    """Where the inputs' values are from: "seed 3", "given by the caller"; "" without inputs."""
    if report.seed is not None:
        return f"seed {report.seed}"
    return "given by the caller" if report.inputs else ""


def line(report: Report) -> str:
    """What was compared, on one line; "" where the report does not say."""
    seed = "" if report.seed is None else drawn(report)
    parts = [models(report), inputs(report), seed]
    return "; ".join(part for part in parts if part) if parts[0] else ""


def by_kind(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """What these inputs could not show, and what every comparison of its kind leaves out."""
    fixed = [text for text in texts if text.startswith(ALWAYS)]
    return [text for text in texts if text not in fixed], fixed


def costliest_first(narrowings: Sequence[Downcast]) -> list[Downcast]:
    """By what each costs; those that were not measured come last."""
    return sorted(narrowings, key=lambda n: -1.0 if n.cost is None else n.cost, reverse=True)
