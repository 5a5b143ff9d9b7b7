"""The reference with a report's edits against the port, on random inputs and weights."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from twinvit.port import verdict
from twinvit.port.constant_inputs import constant_places, varied_inputs
from twinvit.port.errors import OtherNumbers
from twinvit.port.memory import give_back
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.redraw import (
    Weights,
    asymmetric,
    redrawn_inputs,
    redrawn_weights,
    signs_redrawn,
)
from twinvit.port.report import Draw, Finding
from twinvit.port.search.noise import output_noise
from twinvit.port.stored import stored_parameters
from twinvit.port.verify import NUDGE, Arrays, Further, Program, nudged
from twinvit.port.zero_weights import unplaced, zero_pairs

VARIED = "constant inputs with other numbers"


@dataclass
class Sample:
    """Other inputs or weights, that both programs are run on.

    Attributes:
        kind: "given", "inputs" or "weights", as of `Draw`.
        what: the same in words.
        mine, arrays: the reference's inputs, and the port's.
        weights: both sides'; None for their own.
        note: what is to be said about it.
    """

    kind: str
    what: str
    mine: Arrays
    arrays: Arrays
    weights: Weights | None = None
    note: str = ""


@dataclass
class Verified:
    """The results of the draws.

    Attributes:
        draws: each of them.
        apart: why the two are not the same on other inputs or weights; empty if they are.
        agreed, failed: what both were run on, by whether they were the same there.
        unclear: what they were apart on for another reason, perhaps.
        findings: parameters that one side reads and the other holds and does not read.
        open: what could not be decided.
        seen: positions of constant inputs that were tried with other values.
    """

    draws: list[Draw] = field(default_factory=list)
    apart: list[str] = field(default_factory=list)
    agreed: list[Sample] = field(default_factory=list)
    failed: list[Sample] = field(default_factory=list)
    unclear: list[Sample] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)

    def reason(self, edited: bool) -> str:
        """Why a port that was the same, or explained by edits, on the first inputs is not."""
        first = "with these edits the two agree" if edited else "the same"
        return f"{first} on these inputs, but not on others: {', '.join(self.apart)}"


def verified(program: Program, others: Further, drawn: bool, seed: int = 1) -> Verified:
    """Try the program on a caller's further inputs, and on random inputs and weights.

    Args:
        program: of the first inputs.
        others: further inputs of the caller's, each with the port's or None.
        drawn: draw inputs and weights, too.
        seed: what they are drawn from.
    """
    result = Verified()
    program.index.forget_sorted()
    if others or drawn:
        program.index.set_aside()
        give_back()
    for number, (inputs, jax_inputs) in enumerate(others, 2):
        mine, arrays = program.given(inputs, jax_inputs)
        _judge(result, program, Sample("given", f"inputs {number}", mine, arrays))
    if drawn:
        _draw_inputs(result, program, seed)
        give_back()
        _draw_weights(result, program, seed + 2)
        give_back()
        _draw_zeros(result, program, seed + 3)
        result.findings = stored_parameters(program)
    return result


def _draw_inputs(result: Verified, program: Program, seed: int) -> None:
    unmatched = program.unmatched()
    if unmatched:
        note = (
            f"inputs were not drawn: input {unmatched[0]} of the port is no rearrangement of one "
            "of the reference's; give a list of inputs and of jax_inputs"
        )
        result.draws.append(Draw("inputs", note=note))
        return
    varied = varied_inputs(program.inputs, program.rows, seed + 5)
    for what, mine in (
        ("other inputs", redrawn_inputs(program.inputs, seed)),
        ("inputs of both signs", signs_redrawn(program.inputs, seed + 1)),
        (VARIED, varied),
    ):
        if mine is None:
            continue
        if all(np.array_equal(a, b) for a, b in zip(mine, program.inputs)):
            if varied is not None:
                continue
            note = "inputs were not drawn: they are constant, or masks for a batch of one"
            result.draws.append(Draw("inputs", note=note))
            continue
        note = what if what == VARIED else ""
        sample = Sample("inputs", what, mine, program.convert(mine), note=note)
        done = _judge(result, program, sample)
        if done and what == VARIED:
            result.seen |= set(constant_places(program.inputs))
    _draw_asymmetric(result, program, seed + 6)


def _draw_asymmetric(result: Verified, program: Program, seed: int) -> None:
    """Symmetric inputs made asymmetric: where the two agree on these, too, nothing is unseen. Where
    they do not, a model of symmetric matrices is still right on its own."""
    mine, places = asymmetric(program.inputs, seed)
    if not places:
        return
    what, tried = "symmetric inputs made asymmetric", Verified()
    done = _judge(tried, program, Sample("inputs", what, mine, program.convert(mine), note=what))
    if tried.apart:
        note = f"the same on symmetric inputs alone: {tried.apart[0]}"
        result.draws.append(Draw("inputs", note=note))
    elif done:
        result.draws += tried.draws
        result.seen |= places


def _draw_weights(result: Verified, program: Program, seed: int) -> None:
    graph_params = program.params
    weights = redrawn_weights(program.mine, program.theirs, program.fixed, seed)
    if not weights.moved:
        if graph_params:
            note = "weights were not drawn: no parameter has an equal on the other side"
            result.draws.append(Draw("weights", note=note))
        return
    names = list(graph_params)
    still = [np.array_equal(a, b) for a, b in zip(weights.mine, graph_params.values())]
    left = [n for n, same in zip(names, still) if same and graph_params[n].any()]
    left += [f"the port's {program.pair.pure.names[program.leaves[i]]}" for i in weights.alone[1]]
    note = f"{weights.moved} of {len(names)} parameters drawn"
    if left:
        note += f"; {len(left)} kept their values, e.g. {left[0]}, for want of an equal"
    sample = Sample("weights", "other weights", program.inputs, program.arrays, weights, note)
    _judge(result, program, sample)


def _draw_zeros(result: Verified, program: Program, seed: int) -> None:
    """Open what is closed: gates and last layers of branches that start at zero, in both models."""
    mine, theirs = program.mine, program.theirs
    if not any(x.size and not x.any() for x in mine):
        return
    plain, opened = (redrawn_weights(mine, theirs, program.fixed, seed, o) for o in (False, True))
    if opened.moved == plain.moved:
        return
    what = "other weights, none zero"
    note = f"{opened.moved - plain.moved} parameters that are zero became other numbers"
    inputs, arrays = program.inputs, program.arrays
    before = len(result.apart)
    done = _judge(result, program, Sample("weights", what, inputs, arrays, opened, note))
    if not done or len(result.apart) > before:
        return
    names = list(program.params), [program.pair.pure.names[k] for k in program.leaves]
    pairs = zero_pairs(mine, theirs, names, program.layers())
    for pair in unplaced(opened, pairs, lambda w: not program.moves(w)):
        name = names[0][pair.mine]
        if pair.plain:
            result.apart.append(f"the two are apart where {name}, which is zero, has other numbers")
            continue
        result.open.append(
            f"{name} is zero, and the two agree with no other numbers in its place, in whatever "
            "layout the port holds them: what goes into it, or comes out of it, has another order "
            "in the port; draw it at random on both sides"
        )


def _judge(result: Verified, program: Program, sample: Sample) -> bool:
    """Run both on one draw and say whether they are the same there. True if it could be
    decided."""
    weights = sample.weights

    def open_(why: str) -> bool:
        note = "" if sample.note == sample.what else sample.note
        text = "; ".join(t for t in (note, f"{sample.what}: {why}") if t)
        result.draws.append(Draw(sample.kind, note=text))
        return False

    def fixed(error: OtherNumbers) -> bool:
        result.open.append(
            f"the same on these inputs and weights alone: {error}, so that no others were tried; "
            "record the model with operations of its framework in place of it, or explain the "
            "models themselves"
        )
        return open_(f"not decided, {_first_line(error)}")

    theirs: list[np.ndarray] = []
    failure: Exception | None = None
    try:  # first: what the reference computes is more, and is not held meanwhile
        theirs = program.port(sample.arrays, weights)
    except Exception as error:
        failure = error
    try:
        graph = program.reference(sample.mine, weights)
    except OtherNumbers as error:
        return fixed(error)
    except Exception as error:
        if sample.kind == "given":
            raise
        return open_(f"not decided, {_first_line(error)}")
    outs = [to_numpy(graph.values[o]) for o in graph.outputs]
    if any(x.dtype.kind in "fc" and np.isnan(x).any() for x in outs):
        return open_("not decided, the reference returns NaN")
    if sample.what == VARIED and any(x.dtype.kind in "fc" and np.isinf(x).any() for x in outs):
        return open_("not decided, the reference returns infinity")
    if isinstance(failure, OtherNumbers):
        return fixed(failure)
    if failure is not None:
        return open_(f"not decided, the port fails: {_first_line(failure)}")
    judged = [verdict.judge(x, y) for x, y in zip(outs, theirs)]
    if any(d.verdict != verdict.SAME for d in judged):
        noise = output_noise(graph)
        judged = [
            verdict.judge(x, y, noise.elements.get(o))
            for x, y, o in zip(outs, theirs, graph.outputs)
        ]
    wrong = [k for k, d in enumerate(judged) if d.verdict == verdict.DIFFERENT]
    if wrong:
        moved = nudged(graph, NUDGE, 4)
        clear = [k for k in wrong if judged[k].relative > 10 * moved[k]]
        if not clear:
            far = moved[wrong[0]]
            return open_(f"not decided, a change by {NUDGE:g} moves the output by {far:.1e}")
        if weights is not None and any(weights.alone):
            result.unclear.append(sample)
            return open_(
                "not decided: with these the two are apart, and one may hold in a parameter what "
                "it computed from others"
            )
        for k in clear:
            title, d = program.pairs[k].title, judged[k]
            result.apart.append(f"{title} is {d.relative:.1e} apart on {sample.what}")
    elif any(d.verdict == verdict.UNDECIDED for d in judged):
        return open_(f"not decided, {next(d.reason for d in judged if d.reason)}")
    (result.failed if wrong else result.agreed).append(sample)
    distances = {name: d.relative for name, d in zip(program.names, judged)}
    worst = max((d.worst for d in judged), default=0.0)
    result.draws.append(Draw(sample.kind, distances, sample.note, worst))
    return True


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
