"""Evaluation of a trainer's weights, and its result in words."""

from __future__ import annotations

from collections import deque

import numpy as np

from shared_vit.errors import StoppedTogether, UserError
from shared_vit.run.feed import LAG, empty_batch
from shared_vit.run.interrupt import Interrupt
from shared_vit.run.plan import Plan
from shared_vit.run.state import Lazy, Trainer
from shared_vit.spec.input import describe_input, numbers
from shared_vit.spec.sides import shown
from shared_vit.weights.positions import describe_positions


def evaluate(plan: Plan, trainer: Trainer, interrupt: Interrupt) -> dict[str, float] | None:
    """Each validation example once: val_loss, val_top1, val_top5 (fractions of 1), val_count; None
    if requested to stop, as all processes are where one of them cannot read an image.

    A run with --ema gives those of the averaged weights too: val_loss_ema and so on. Raises
    UserError in the process whose image it is, StoppedTogether where there are others.
    """
    result: dict[str, float] = {}
    for suffix in ("", "_ema") if plan.recipe.ema and plan.mode == "train" else ("",):
        sums = _sums(plan, trainer, interrupt, averaged=suffix == "_ema")
        if sums is None:
            return None
        correct1, correct5, loss_sum, count = sums
        result[f"val_loss{suffix}"] = loss_sum / count
        result[f"val_top1{suffix}"] = correct1 / count
        result[f"val_top5{suffix}"] = correct5 / count
        result["val_count"] = int(count)
    return result


def _sums(plan: Plan, trainer: Trainer, interrupt: Interrupt, averaged: bool) -> np.ndarray | None:
    """Sums over the validation split: correct1, correct5, loss, examples; None on a request to
    stop."""
    sums, stopping = np.zeros(4), False
    in_flight: deque[Lazy] = deque()
    stream = plan.batches("val", 0, trainer.process, trainer.num_processes)

    def read(lag: int) -> None:
        nonlocal sums, stopping
        while len(in_flight) > lag:
            counts = in_flight.popleft().get()
            sums += counts[:4]
            stopping |= counts.stop

    failure: UserError | None = None
    try:
        for step in range(-(-len(plan.dataset.val) // plan.recipe.batch_size)):
            try:
                batch = empty_batch(plan, trainer.num_processes, step) if failure else next(stream)
            except UserError as error:
                if trainer.num_processes == 1:
                    raise
                failure, batch = error, empty_batch(plan, trainer.num_processes, step)
            stop = interrupt.requested or failure is not None
            in_flight.append(trainer.eval_step(trainer.to_device(batch), stop, averaged))
            read(LAG)
            if stopping:
                break
        read(0)
    finally:
        stream.close()
    if failure is not None:
        raise StoppedTogether(str(failure)) from failure
    return None if stopping else sums


def describe(result: dict[str, float]) -> str:
    """An evaluation in words."""
    averaged = ""
    if "val_top1_ema" in result:
        averaged = f"; averaged weights: top-1 {100 * result['val_top1_ema']:.2f} %"
    return (
        f"top-1 {100 * result['val_top1']:.2f} %, top-5 {100 * result['val_top5']:.2f} %, "
        f"loss {result['val_loss']:.4f} on {result['val_count']} examples{averaged}"
    )


def describe_evaluated(plan: Plan, result: dict[str, float]) -> str:
    """One line: which weights, on which data, prepared how, with which result."""
    assert plan.weights is not None
    at = plan.weights.source.step
    step = "" if at is None else f" (step {at})"
    of_weights, resampled = plan.weights.source.cfg, ""
    if of_weights.grid != plan.model.grid:
        resampled = describe_positions(of_weights, plan.model, plan.recipe.positions)
        resampled = f"positions {resampled}, "
    split = "the part held out of training" if plan.dataset.minival else "validation split"
    return (
        f"{plan.weights.path}{step} on {plan.dataset.name}, {split}, {resampled}"
        f"{describe_preprocessing(plan)}: {describe(result)}"
    )


def describe_preprocessing(plan: Plan) -> str:
    """What turns an image of the validation split into the model's input."""
    model = plan.model
    if plan.dataset.photographs:
        return describe_input(model)
    colour = f"mean {numbers(model.mean)}, std {numbers(model.std)}"
    return f"{shown(model.image_shape)} by the nearest pixel, {colour}"
