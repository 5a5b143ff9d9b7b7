"""Operands that an edited operation does not depend on."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from twinvit.port.record.graph import Node, flat_tensors


def unused_operands(node: Node, values: Mapping[int, torch.Tensor]) -> set[int]:
    """Ids of the floating-point operands that change nothing, whatever numbers the others hold.

    Args:
        values: the operands by id; their shapes and types count.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn(x: torch.Tensor) -> torch.Tensor:
        if not x.is_floating_point():
            return x
        return torch.rand(x.shape, generator=generator, dtype=x.dtype) + 0.1

    others = {r: drawn(values[r]) for r in node.refs}
    floats = [r for r in node.refs if values[r].is_floating_point() and values[r].numel()]
    try:
        made = flat_tensors(node.run(others))
        return {
            r
            for r in floats
            if all(
                a is b or torch.equal(a, b)
                for a, b in zip(made, flat_tensors(node.run({**others, r: drawn(values[r])})))
            )
        }
    except Exception:  # an edit that fits the recorded numbers alone
        return set()
