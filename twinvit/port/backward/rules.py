"""Edits that leave an operation's result and change its backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from twinvit.port.record.graph import Edit, Graph, Node, flat_tensors

Rule = Callable[..., torch.Tensor]
"""A gradient for the gradient that arrives, and the values that it reads."""


@dataclass(frozen=True)
class Made:
    """Edits of a graph's backward.

    Attributes:
        edits: of operations, by their positions.
        leaves: rules that the gradients of parameters go through, by the parameter's id.
    """

    edits: Mapping[int, Edit] = field(default_factory=dict)
    leaves: Mapping[int, Rule] = field(default_factory=dict)

    def node(self, graph: Graph, index: int) -> Node:
        """An operation as it is edited."""
        node = graph.nodes[index]
        return node.edited(self.edits[index]) if index in self.edits else node

    def plus(self, node: Node, edit: Edit) -> Made:
        return Made({**self.edits, node.index: edit}, self.leaves)

    def at_leaf(self, value: int, rule: Rule) -> Made:
        before = self.leaves.get(value)

        def both(g: torch.Tensor) -> torch.Tensor:
            return rule(g if before is None else before(g))

        return Made(self.edits, {**self.leaves, value: both})


class _Ruled(torch.autograd.Function):
    """The same values; the gradient goes through a rule."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rule: Rule) -> torch.Tensor:
        ctx.rule = rule
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.rule(grads[0]), None


class _Attached(torch.autograd.Function):
    """The first values; the gradient goes on to them, and to the second ones through a rule."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, other: torch.Tensor, rule: Rule) -> torch.Tensor:
        ctx.rule = rule
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        return grads[0], ctx.rule(grads[0]), None


def ruled(x: torch.Tensor, rule: Rule) -> torch.Tensor:
    """The same values, whose gradient goes through a rule."""
    made: torch.Tensor = _Ruled.apply(x, rule)
    return made


def at_result(node: Node, out: int, rule: Rule) -> Edit:
    """The operation with the gradient of a result going through a rule."""

    def fn(*values: torch.Tensor) -> Any:
        return _replaced(
            node, out, node.run(dict(zip(node.refs, values))), lambda x: ruled(x, rule)
        )

    return Edit(fn, node.refs)


def at_operand(node: Node, operand: int, rule: Rule) -> Edit:
    """The operation with the gradient of an operand going through a rule."""

    def fn(*values: torch.Tensor) -> Any:
        known = dict(zip(node.refs, values))
        return node.run({**known, operand: ruled(known[operand], rule)})

    return Edit(fn, node.refs)


def cut(node: Node, operands: Sequence[int]) -> Edit:
    """The operation without a gradient for these operands."""

    def fn(*values: torch.Tensor) -> Any:
        known = dict(zip(node.refs, values))
        return node.run({**known, **{i: known[i].detach() for i in operands}})

    return Edit(fn, node.refs)


def instead(
    node: Node, out: int, value: int, rule: Rule, reads: Sequence[int], without: Sequence[int]
) -> Edit:
    """The operation with a backward of its own: the gradient of a value is what a rule makes of
    the gradient of a result.

    Args:
        value: an operand, or what an operand is computed from.
        rule: takes the result's gradient and the values `reads`, results of the operation among
            them.
        without: operands that get no other gradient from it.
    """
    own = tuple(dict.fromkeys([*node.refs, value, *(r for r in reads if r not in node.outs)]))

    def fn(*values: torch.Tensor) -> Any:
        known = dict(zip(own, values))
        made = node.run({**known, **{i: known[i].detach() for i in without}})
        held = {i: v.detach() for i, v in known.items()}
        held.update((o, t.detach()) for o, t in zip(node.outs, flat_tensors(made)) if o is not None)

        def given(g: torch.Tensor) -> torch.Tensor:
            return rule(g, *(held[r] for r in reads)).reshape(known[value].shape)

        def attached(x: torch.Tensor) -> torch.Tensor:
            done: torch.Tensor = _Attached.apply(x, known[value], given)
            return done

        return _replaced(node, out, made, attached)

    return Edit(fn, own)


def plain(node: Node, results: int = 1) -> Edit:
    """The first operands as they are, with their own gradients: the derivative of what comes
    before."""
    if results == 1:
        return Edit(lambda *values: values[0], node.refs)
    return Edit(lambda *values: values[:results], node.refs)


def _replaced(
    node: Node, out: int, made: Any, change: Callable[[torch.Tensor], torch.Tensor]
) -> Any:
    if isinstance(made, torch.Tensor):
        return change(made)
    results = list(flat_tensors(made))
    position = node.outs.index(out)
    results[position] = change(results[position])
    return tuple(results)


def scaled_by(factor: float) -> Rule:
    return lambda g: g * factor


def clipped_to(low: float, high: float) -> Rule:
    return lambda g: g.clamp(low, high)


def clipped_norm(most: float) -> Rule:
    def rule(g: torch.Tensor) -> torch.Tensor:
        norm = torch.linalg.vector_norm(g)
        return g * (most / norm) if norm > most else g

    return rule


def straight(g: torch.Tensor) -> torch.Tensor:
    return g
