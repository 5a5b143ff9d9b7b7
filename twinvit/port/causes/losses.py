"""Losses: reductions, label smoothing, what ignored targets count for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from twinvit.port.call import Call
from twinvit.port.causes import Variant, cause


@cause("loss_reduction", on=("nll_loss_forward", "nll_loss2d_forward"))
def loss_reduction(call: Call) -> Iterator[Variant]:
    """The port sums a loss where the reference takes the mean, or counts ignored targets."""
    log_p, target = call.args[0], call.args[1]
    ignore = call.args[4]
    n = target.numel()
    kept = int((target != ignore).sum())
    own = call.args[3]

    def reduced(r: int, factor: float) -> Any:
        def fn(*args: Any, **kw: Any) -> torch.Tensor:
            out = call.run(*args[:3], r, *args[4:], **kw)
            return out[0] * factor

        return fn

    yield Variant(
        "the port takes the sum; the reference the mean"
        if own == 1
        else "the port takes the mean; the reference the sum",
        reduced(3 - own, 1.0),
    )
    if kept != n:
        yield Variant(
            "the port divides by all targets; the reference by those not ignored", reduced(2, 1 / n)
        )
    yield Variant(
        "the port divides by the number of classes, too",
        reduced(2, 1 / (max(kept, 1) * log_p.shape[1])),
    )
    yield Variant("the port divides by the batch alone", reduced(2, 1 / target.shape[0]))


@cause("label_smoothing", on="nll_loss_forward")
def label_smoothing(call: Call) -> Iterator[Variant]:
    """The port smooths labels."""
    log_p, target, ignore, own = call.args[0], call.args[1], call.args[4], call.args[3]
    kept = target != ignore
    if own == 0 or not bool(kept.any()):
        return

    def smooth(log_p: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        each = -log_p.mean(1)[kept]
        return each.mean() if own == 1 else each.sum()

    sizes = [0.1, 0.05, 0.2]
    if call.target is not None and call.target.size == 1:
        plain, uniform = float(call.out), float(smooth(log_p, kept))
        solved = (float(call.target.reshape(-1)[0]) - plain) / (uniform - plain)
        sizes = [s for s in (float(f"{solved:.3g}"),) if 0 < s < 1 and abs(s - solved) < 1e-9]
    for s in sizes:

        def fn(
            log_p: torch.Tensor, target: torch.Tensor, *rest: Any, s: float = s, **kw: Any
        ) -> torch.Tensor:
            return (1 - s) * call.run(log_p, target, *rest, **kw)[0] + s * smooth(
                log_p, target != ignore
            )

        yield Variant(f"the port smooths the labels by {s:g}; the reference does not", fn)


@cause(
    "loss_reduction",
    on=(
        "mse_loss",
        "smooth_l1_loss",
        "huber_loss",
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
    ),
)
def elementwise_reduction(call: Call) -> Iterator[Variant]:
    """The port sums a loss where the reference takes the mean, or the other way."""
    n = call.args[0].numel()
    if call.out.numel() == 1:
        yield Variant(
            "the port takes the sum; the reference the mean",
            lambda *args, **kw: call.run(*args, **kw) * n,
        )
        yield Variant(
            "the port takes the mean; the reference the sum",
            lambda *args, **kw: call.run(*args, **kw) / n,
        )
        yield Variant(
            "the port sums over the last axis",
            lambda *args, **kw: call.run(*args, **kw) * args[0].shape[-1],
        )
    yield Variant(
        "the port halves the squared error", lambda *args, **kw: call.run(*args, **kw) / 2
    )


@cause("loss_kind", on=("mse_loss", "smooth_l1_loss", "huber_loss"))
def loss_kind(call: Call) -> Iterator[Variant]:
    """The port computes another loss."""
    functional = torch.nn.functional
    for text, fn in (
        ("the squared error", functional.mse_loss),
        ("the absolute error", functional.l1_loss),
        ("Huber's loss", functional.huber_loss),
        ("the smooth L1 loss", functional.smooth_l1_loss),
    ):
        yield Variant(f"the port computes {text}", lambda a, b, *_, f=fn, **__: f(a, b))
