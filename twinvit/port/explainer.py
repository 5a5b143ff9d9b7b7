"""`explain`: the port = the reference + these edits."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from twinvit.port import verdict
from twinvit.port.arguments import checked, hint
from twinvit.port.comparison import compare
from twinvit.port.conclusion import Judged, conclude, evidence_of
from twinvit.port.control_flow import compare_following
from twinvit.port.errors import PortError
from twinvit.port.expected import expected
from twinvit.port.folded import unfold
from twinvit.port.layers import order_layers
from twinvit.port.map_again import left_open, map_again
from twinvit.port.memory import give_back
from twinvit.port.pair import Pair
from twinvit.port.report import Report
from twinvit.port.rounded_weights import round_alike, tell_rounded
from twinvit.port.search.extend import verified_further
from twinvit.port.search.loop import Progress
from twinvit.port.verify import Further, several

REMAPS = 3  # times that a proposed map of weights is corrected
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
        inputs: arrays as the reference takes them; a mapping gives them by name. A list of such
            tuples or mappings: the first is explained, the port must follow it on the others.
        jax_inputs: arrays as the port takes them; by default the same, and 4-D images NCHW -> NHWC
            if the port refuses those. A list of tuples if `inputs` is one.
        weights: "as_is" (the port holds the weights already), "transfer" (the reference's weights
            are loaded into the port by a proposed map), a WeightMap or the path of one.
        what: of "forward", "grad", "train".
        output: which array of a structured output: a key, an index, or a function that is given
            what either model returns (PyTorch's tensors, the port's JAX arrays) and returns what is
            compared.
        reference: the side that is right, "torch" or "jax": the report's texts, fixes and places
            speak of the other, which is to be changed. The verdict does not depend on it but where
            one model returns NaN as it runs: it is blamed on the port alone.
        progress: called with what is being done.

    Raises:
        PortError: the two cannot be compared: what was wrong and what to do.
    """
    started = time.perf_counter()

    def say(text: str) -> None:
        give_back()
        if progress is not None:
            progress(text)

    (inputs, jax_inputs), *further = several(inputs, jax_inputs)
    given = checked(
        torch_model,
        jax_model,
        inputs,
        jax_inputs=jax_inputs,
        weights=weights,
        what=what,
        reference=reference,
    )
    threads = torch.get_num_threads()
    try:
        pair = Pair(
            given.torch_model,
            given.jax_model,
            given.inputs,
            given.jax_inputs,
            output,
            say,
            evaluate="train" in given.what,
        )
        pair.notes += given.notes
        return explain_pair(pair, weights, given.what, further, started, reference)
    except PortError as error:
        more = hint(str(error), given.inputs)
        if not more:
            raise
        raise PortError(f"{error}{more}") from error
    finally:
        torch.set_num_threads(threads)


def explain_pair(
    pair: Pair,
    weights: Any,
    kinds: tuple[str, ...],
    further: Further,
    started: float,
    reference: str,
) -> Report:
    """The report of a pair of models; the arguments are those of `explain`, checked."""
    pair.say(expected(pair))
    if isinstance(weights, str) and weights == "as_is":
        round_alike(pair)
        order_layers(pair, kinds == ("train",), pair.say)
    else:
        pair.transfer(weights)
    return _explain(pair, kinds, further, started, pair.say, reference)


def assert_same(
    torch_model: Any,
    jax_model: Any,
    inputs: Any,
    *,
    narrowings: float | None = None,
    **arguments: Any,
) -> Report:
    """Fail with the report as the message unless the port is the reference; for pytest.

    Args:
        narrowings: how far (relative L2) the port's outputs may be changed by a computation in a
            narrower type than the reference has there; None: by any amount.
        arguments: as of `explain`.
    """
    __tracebackhide__ = True
    report = explain(torch_model, jax_model, inputs, **arguments)
    if not report.same:
        raise AssertionError(f"{_FAILED[report.verdict]}\n{report}")
    if narrowings is not None and report.rounded_alone(narrowings):
        raise AssertionError(
            f"the port rounds where its reference does not, by more than {narrowings:g}\n{report}"
        )
    return report


def _explain(
    pair: Pair,
    kinds: tuple[str, ...],
    further: Further,
    started: float,
    say: Progress,
    reference: str,
) -> Report:
    alone = kinds == ("train",)
    forward = compare_following(pair, alone, say)
    for _ in range(REMAPS):
        if not map_again(pair, forward):
            break
        forward = compare_following(pair, alone, say)
    folded = unfold(pair, forward)
    if folded:
        again = compare_following(pair, alone, say)
        again.findings = [*folded, *again.findings]
        again.before, again.distance = forward.before, forward.distance
        forward = again
    tell_rounded(pair, forward)
    judged = Judged(forward, reference=reference)
    judged.notes += left_open(pair, forward)
    if alone:
        for finding in judged.forward.findings:
            finding.what = "train"
    if "grad" in kinds:
        from twinvit.port.gradients import compare_gradients

        say("comparing gradients")
        judged.gradients, note, judged.known, left = compare_gradients(
            judged.forward.session, pair, judged.forward.recorded, judged.forward.program
        )
        judged.notes.append(note)
        judged.open += left
    if "train" in kinds and not alone:
        say("comparing train mode")
        pair.live = None
        judged.trained = compare(pair, True, say)
    say("trying other inputs and weights")
    # A step at its edge may fall to either side on a draw: no draw decides then.
    drawn = judged.closed and not judged.forward.at_edges
    tried = verified_further(judged.forward.session, judged.forward.program, further, drawn)
    judged.draws += tried.draws
    forward.findings += tried.findings
    judged.seen = tried.seen
    judged.open += tried.open
    if drawn and tried.apart:
        judged.wrong.append(tried.reason(bool(judged.findings)))
    side = "jax" if reference == "torch" else "torch"
    failures = [f for c in judged.compared if (f := c.native.failure(side))]
    if failures:
        alike = verdict.decide(evidence_of(judged)) == verdict.SAME
        judged.wrong.insert(0, ("in float64 the same, but " if alike else "") + failures[0])
    judged.open += [d for c in judged.compared if (d := c.native.drift(side))]
    if not alone:
        judged.native = judged.forward.native.report()
    return conclude(pair, kinds, judged, started)
