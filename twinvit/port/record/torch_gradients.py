"""What a running PyTorch model says of its gradients, which its operations do not: functions with a
backward of their own, and blocks without gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointFunction

from twinvit.port.record.graph import Graph, flat_tensors

_BLOCKS = (torch.no_grad, torch.enable_grad, torch.set_grad_enabled, torch.inference_mode)
Told = Callable[[Any, tuple[Any, ...], Any], Any]
"""Given a torch.autograd.Function, what it was called with, and what it returned; returns what the
model gets."""


class Blocks:
    """Blocks of a model with and without gradients (`torch.no_grad`), while it is recorded.

    Attributes:
        off: True where the model runs within a block without gradients.
    """

    def __init__(self) -> None:
        self._entered: list[bool] = []
        self._checkpoints = 0

    @property
    def off(self) -> bool:
        return bool(self._entered) and self._entered[-1]

    def checkpoint(self) -> None:
        """The next block is that of a checkpoint, whose backward is the derivative."""
        self._checkpoints += 1

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        """Within this, blocks that are entered are known."""
        own = {kind: (kind.__enter__, kind.__exit__) for kind in _BLOCKS}
        for kind in _BLOCKS:
            self._follow(kind)
        try:
            yield
        finally:
            for kind, (enter, leave) in own.items():
                kind.__enter__, kind.__exit__ = enter, leave

    def _follow(self, kind: Any) -> None:
        enter, leave = kind.__enter__, kind.__exit__

        def entered(block: Any) -> Any:
            off = _is_off(block)
            if off and self._checkpoints:
                self._checkpoints, off = self._checkpoints - 1, self.off
            self._entered.append(off)
            return enter(block)

        def left(block: Any, *error: Any) -> Any:
            if self._entered:
                self._entered.pop()
            return leave(block, *error)

        kind.__enter__, kind.__exit__ = entered, left


def _is_off(block: Any) -> bool:
    if isinstance(block, torch.inference_mode):
        return bool(block.mode)
    if isinstance(block, torch.set_grad_enabled):
        return not block.mode
    return isinstance(block, torch.no_grad)


@contextlib.contextmanager
def functions_told(told: Told, blocks: Blocks) -> Iterator[None]:
    """Within this, `told` is called wherever a torch.autograd.Function is, but for PyTorch's
    checkpoints, whose backward is the derivative."""
    # `Function.apply` looks its own `apply` up here at each call, also where a model bound it
    # before (`reverse = Reverse.apply`).
    base: Any = torch.autograd.Function.__mro__[1]

    def function_applied(kind: Any, *args: Any, **kwargs: Any) -> Any:
        if issubclass(kind, CheckpointFunction):
            blocks.checkpoint()
            return super(base, kind).apply(*args, **kwargs)
        out = super(base, kind).apply(*args, **kwargs)
        return out if kwargs else told(kind, args, out)

    base.apply = classmethod(function_applied)
    try:
        yield
    finally:
        del base.apply


class CustomBackward:
    """Passes results of a torch.autograd.Function on; their gradient is that function's own.

    It takes the function's results and then the tensors that the function was called with.

    Attributes:
        kind: the function's class.
        args: what it was called with, None in the places of tensors.
        places: of the tensors.
        results: how many it returned.
    """

    def __init__(self, kind: Any, args: Sequence[Any], results: int) -> None:
        self.kind = kind
        self.places = [k for k, x in enumerate(args) if isinstance(x, torch.Tensor)]
        self.args = [None if k in self.places else x for k, x in enumerate(args)]
        self.results = results
        self._program: Graph | None = None

    @property
    def name(self) -> str:
        """The function's name."""
        return str(getattr(self.kind, "__name__", self.kind))

    def __call__(self, *values: torch.Tensor) -> Any:
        outs = values[: self.results]
        if torch.is_grad_enabled() and any(v.requires_grad for v in values):
            outs = _Custom.apply(self, *(v.detach() for v in outs), *values[self.results :])
            outs = outs if isinstance(outs, tuple) else (outs,)
        return outs[0] if self.results == 1 else tuple(outs)

    def gradients(
        self, given: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """What its backward returns for these tensors, zeros for None; of the others than
        floating-point ones zeros, too."""
        graph, now = self.program(given, cotangents)
        return [now.get(o, graph.values[o]) for o in graph.outputs]

    def program(
        self, given: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor]
    ) -> tuple[Graph, dict[int, torch.Tensor]]:
        """Its backward as operations, whose inputs are the tensors that it was called with and
        then the cotangents, and the values that are others than the recorded ones."""
        from twinvit.port.record.torch_program import recorded_wide

        values = [v.detach() for v in (*given, *cotangents)]
        known = self._program
        if known is not None and not known.follows_values():
            with torch.no_grad():
                return known, known.run({}, dict(zip(known.inputs(), values)), everything=True)
        count = len(given)

        def backward(*tensors: torch.Tensor) -> list[torch.Tensor]:
            return self._pulled(tensors[:count], tensors[count:])

        self._program = recorded_wide(backward, values)
        return self._program, {}

    def _pulled(
        self, given: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        with torch.enable_grad():
            floats = [t.is_floating_point() for t in given]
            leaves = [t.detach().requires_grad_(f) for t, f in zip(given, floats)]
            args = list(self.args)
            for k, leaf in zip(self.places, leaves):
                args[k] = leaf
            outs = [t for t in flat_tensors(self.kind.apply(*args)) if t is not None]
            chosen = [(o, c) for o, c in zip(outs, cotangents) if o.requires_grad]
            by = [leaf for leaf, f in zip(leaves, floats) if f]
            found: list[Any] = [None] * len(by)
            if chosen and by:
                grads = torch.autograd.grad(
                    [o for o, _ in chosen], by, [c for _, c in chosen], allow_unused=True
                )
                found = list(grads)
        rest = iter(found)
        taken = [next(rest) if f else None for f in floats]
        return [torch.zeros_like(t) if g is None else g for t, g in zip(given, taken)]


class _Custom(torch.autograd.Function):
    """Results as they are, with a backward of a function's own."""

    @staticmethod
    def forward(ctx: Any, rule: CustomBackward, *values: torch.Tensor) -> Any:
        outs = tuple(v.clone() for v in values[: rule.results])
        ctx.rule, ctx.given = rule, [v.detach() for v in values[rule.results :]]
        ctx.mark_non_differentiable(*(o for o in outs if not o.is_floating_point()))
        return outs

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        grads = ctx.rule.gradients(ctx.given, cotangents)
        wanted = [
            g if t.is_floating_point() and need else None
            for g, t, need in zip(grads, ctx.given, ctx.needs_input_grad[-len(ctx.given) :])
        ]
        return None, *(None for _ in cotangents), *wanted


class _Written(torch.autograd.Function):
    """New numbers with the gradient of those that they were written over."""

    @staticmethod
    def forward(ctx: Any, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        return new.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return None, grads[0]


def written_over(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Numbers that were written over others in a block without gradients: what flows to them goes
    on to the others."""
    if not torch.is_grad_enabled():
        return new
    made: torch.Tensor = _Written.apply(new.detach(), old)
    return made
