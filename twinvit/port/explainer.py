"""`explain`: the port = the reference + these edits."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from twinvit.port.comparison import Comparison, compare
from twinvit.port.envelope import about
from twinvit.port.errors import PortError
from twinvit.port.harness import lost_weights
from twinvit.port.index import evidence
from twinvit.port.pair import Pair, shortened
from twinvit.port.record_torch import numbers
from twinvit.port.report import Finding, Report
from twinvit.port.search.loop import Progress
from twinvit.port.unseen import unseen

_FAILED = {
    "different": "the port differs from its reference",
    "undecided": "it could not be decided whether the port is its reference",
}


def explain(
    torch_model: Any,
    jax_model: Any,
    inputs: Sequence[Any] | Mapping[str, Any],
    *,
    jax_inputs: Sequence[Any] | None = None,
    weights: Any = "as_is",
    what: str | Sequence[str] = ("forward",),
    output: Any = None,
    reference: str = "torch",
    progress: Progress | None = None,
) -> Report:
    """Say what a port computes otherwise than its reference, where, and prove it.

    Both models run in float64 and neither is changed.

    Args:
        torch_model: the reference, nn.Module or callable of tensors.
        jax_model: the port: nnx.Module, (linen_module, variables), a callable pytree, or
            port.Function(fn, params).
        inputs: arrays as the reference takes them; a mapping gives them by name.
        jax_inputs: arrays as the port takes them; by default the same, and 4-D images NCHW -> NHWC
            if the port refuses those.
        weights: "as_is" (the port holds the weights already), "transfer" (the reference's weights
            are put into the port by a proposed map), a WeightMap or the path of one.
        what: of "forward", "grad", "train".
        output: which array of a structured output: a key, an index, or a function that is given
            what either model returns (PyTorch's tensors, the port's JAX arrays) and returns what is
            compared.
        reference: the side that is right, "torch" or "jax": the report's texts, fixes and places
            speak of the other, which is to be changed. The verdict does not depend on it.
        progress: told what is being done.

    Raises:
        PortError: the two cannot be judged: what was wrong and what to do.
    """
    started = time.perf_counter()
    say = progress or (lambda text: None)
    kinds = (what,) if isinstance(what, str) else tuple(what)
    for kind in kinds:
        if kind not in ("forward", "grad", "train"):
            raise PortError(f'what={kind!r} is none of "forward", "grad", "train"')
    threads = torch.get_num_threads()
    try:
        pair = Pair(
            torch_model, jax_model, inputs, jax_inputs, output, say, evaluate="train" in kinds
        )
        if weights != "as_is":
            pair.transfer(weights)
        return replace(_explain(pair, kinds, started, say), reference=reference)
    finally:
        torch.set_num_threads(threads)


def assert_same(torch_model: Any, jax_model: Any, inputs: Any, **arguments: Any) -> Report:
    """Fail with the report as the message unless the port is the reference; for pytest. Arguments
    as of `explain`."""
    __tracebackhide__ = True
    report = explain(torch_model, jax_model, inputs, **arguments)
    if not report.same:
        raise AssertionError(f"{_FAILED[report.verdict]}\n{report}")
    return report


def _explain(pair: Pair, kinds: tuple[str, ...], started: float, say: Progress) -> Report:
    alone = kinds == ("train",)
    forward = compare(pair, alone, say)
    session = forward.session
    findings = list(forward.findings)
    notes = [*pair.notes]
    lost = lost_weights(session)
    if lost:
        notes.append(f"parameters without an equal in the port: {shortened(lost)}")
    counts = (
        sum(session.graph.values[i].numel() for i in session.graph.params().values()),
        sum(int(np.size(x)) for x in pair.leaves),
    )
    if counts[0] != counts[1]:
        notes.append(
            f"the reference holds {counts[0]} numbers in "
            f"parameters and buffers, the port {counts[1]}"
        )
    for k, i in enumerate(session.graph.inputs()):
        given = numbers(session.graph.values[i])
        if evidence(given) and session.index.find(given, 1e-12) is None:
            notes.append(f"the port was given other numbers than the reference as input {k}")
    same, unknown, remaining = forward.same, forward.unknown, forward.remaining
    judged = remaining <= session.output_tolerance()
    if "grad" in kinds:
        from twinvit.port.gradients import compare_gradients

        say("comparing gradients")
        more, note, known = compare_gradients(session, pair, forward.chosen, forward.arrays)
        findings += more
        same, unknown = same and not more, unknown or not known
        notes.append(note)
    if alone:
        for finding in findings:
            finding.what = "train"
    elif "train" in kinds:
        say("comparing train mode")
        trained = compare(pair, True, say)
        known_ = {(f.cause, f.text) for f in findings}
        more = [f for f in trained.findings if (f.cause, f.text) not in known_]
        for finding in more:
            finding.what = "train"
        findings += more
        same = same and trained.distance <= trained.session.output_tolerance() and not more
        unknown = unknown or trained.unknown
        judged = judged and trained.remaining <= trained.session.output_tolerance()
        if forward.distance <= session.output_tolerance():
            remaining = max(remaining, trained.remaining)
    if session.errors:
        notes.append(
            f"{len(session.errors)} attempts of causes ended in an error: "
            f"{shortened(list(session.errors), 3)}"
        )
    index = session.index
    notes.append(
        f"{len(session.graph.nodes)} operations against "
        f"{len(index.entries)} values of the port ({pair.pure.kind}), "
        f"{index.lookups} looked up, {index.sorts} sorted, {session.trials} "
        f"edits tried, {time.perf_counter() - started:.1f} s"
    )
    not_seen = [*forward.branches, *unseen(session, kinds)]
    explained = same or (bool(findings) and not unknown and judged)
    verdict, reasons = _verdict(same, findings, forward)
    return Report(
        verdict,
        explained and verdict != "undecided",
        forward.distance,
        forward.distance if same else remaining,
        findings,
        forward.narrowings,
        not_seen,
        notes,
        forward.operations,
        reasons=reasons,
        seconds=time.perf_counter() - started,
        **about(pair.torch_model, pair.jax_model, pair.inputs),
    )


def _verdict(same: bool, findings: Sequence[Finding], forward: Comparison) -> tuple[str, list[str]]:
    """The verdict and what is said first."""
    if same:
        return "same", []
    if findings:
        return "different", []
    if forward.distance <= forward.session.output_tolerance():
        return "undecided", [
            "the outputs agree, and no value of the reference was there to be compared: all are "
            "constant or hold fewer than 8 numbers"
        ]
    return "different", ["nothing that was tried explains the difference"]
