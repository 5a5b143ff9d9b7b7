"""Operands that an edited operation does not depend on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from twinvit.port.record.graph import Node, flat_tensors

SCALES = (0.1, 1.0, 10.0, 1000.0)  # of the random operands, past the edges of steps and clamps


def unused_operands(node: Node, values: Mapping[int, torch.Tensor]) -> set[int]:
    """Ids of the floating-point operands that change nothing, whatever values the others have.

    Positive and signed random operands of several sizes are tried, with random masks; an operand
    counts as used where other random values, or NaN, in its place change any result.

    Args:
        values: the operands by id; their shapes and types count, and the values of integers.
    """
    unused = {r for r in node.refs if values[r].is_floating_point() and values[r].numel()}
    try:
        for given, other in _random_operands(node, values):
            made = flat_tensors(node.run(given))
            for r in sorted(unused):
                nan = torch.full_like(given[r], float("nan"))
                if any(not _same(made, node.run({**given, r: x})) for x in (other[r], nan)):
                    unused.discard(r)
    except Exception:  # an edit that fits the recorded values alone
        return set()
    return unused


def _random_operands(
    node: Node, values: Mapping[int, torch.Tensor]
) -> Iterator[tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]]:
    """The operands of the operation, drawn twice at each scale and with either sign or both."""
    generator = torch.Generator().manual_seed(0)

    def drawn(x: torch.Tensor, scale: float, signed: bool) -> torch.Tensor:
        if x.dtype == torch.bool:
            return torch.rand(x.shape, generator=generator) < 0.5
        if not x.is_floating_point():
            return x
        made = (torch.rand(x.shape, generator=generator, dtype=x.dtype) + 0.1) * scale
        minus = torch.rand(x.shape, generator=generator) < 0.5
        return torch.where(minus, -made, made) if signed else made

    for scale in SCALES:
        for signed in (False, True):
            first, second = ({r: drawn(values[r], scale, signed) for r in node.refs} for _ in "ab")
            yield first, second


def _same(made: list[torch.Tensor | None], again: object) -> bool:
    """True if two results are equal, NaN with NaN at the same places too."""
    return all(
        a is b or (a is not None and b is not None and _equal(a, b))
        for a, b in zip(made, flat_tensors(again), strict=True)
    )


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
