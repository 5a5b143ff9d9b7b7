"""Both models recorded and compared in one mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from twinvit.port import models, verdict
from twinvit.port.costs import port_costs, reference_costs
from twinvit.port.downcasts import as_run, tell_alone
from twinvit.port.found import settle_layout
from twinvit.port.harness import check_port, check_reference, other_weights
from twinvit.port.index import Index
from twinvit.port.memory import give_back
from twinvit.port.native.run import NativeRun, run_native
from twinvit.port.outputs import (
    Leaves,
    Paired,
    by_numbers,
    check_chosen,
    labelled,
    leaves_of,
    pair_outputs,
    pick,
    pick_torch,
)
from twinvit.port.pair import Pair
from twinvit.port.port_leaves import PortLeaves
from twinvit.port.record import jax_trace, torch_program
from twinvit.port.record.graph import Graph, Node
from twinvit.port.record.jax_interpreter import Interpreter
from twinvit.port.record.jax_tape import Taping
from twinvit.port.record.jax_trace import Traced
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.report import Downcast, Finding, Operation
from twinvit.port.search.dropout import Pairing
from twinvit.port.search.loop import Progress, explain_divergences
from twinvit.port.search.noise import measure_noise, output_noise
from twinvit.port.search.session import Session, Snapshot
from twinvit.port.search.steps import other_sides, step_operands
from twinvit.port.search.unknown import operations_without_unknown
from twinvit.port.verify import Program

HEADS = ("head", "classifier", "logit")  # in names of modules that make logits
FOLDED = 1e-3  # relative L2: outputs that are nearer come of the same weights


@dataclass
class Recorded:
    """Both models recorded in one mode, their outputs paired.

    Attributes:
        graph: the reference; its outputs are the compared ones.
        index: the port's values.
        traced, arrays, pure: the port, what it was called with, and its call.
        interpreter: what the port's evaluation met (narrowings, branches).
        pairs: every output of the reference, compared or not.
        compared: those of `pairs` that are compared, in the order of the graph's outputs.
        port: the port's arrays of `compared`, as the port returns them.
        extra: names of the port's outputs that nothing was compared with.
    """

    graph: Graph
    index: Index
    traced: Traced
    arrays: list[np.ndarray]
    pure: models.Pure
    interpreter: Interpreter
    pairs: list[Paired]
    compared: list[Paired]
    port: list[np.ndarray]
    extra: list[str]
    chosen: list[int]
    """Places of the compared arrays among all that the port returns."""
    unclear: str
    """Why the pairing is not certain; "" where it is."""
    returned: list[int]
    """The port's entries that it returns, its new state among them."""


@dataclass
class Comparison:
    """Both models recorded and compared in one mode.

    Attributes:
        before, after: each compared output against the port's, without any edit and with those of
            known causes.
        remaining: the outputs' relative L2 distance with the edits of known causes.
        unknown: some difference has no proven edit.
        found: how many values of the reference the port has an equal of.
        native: both programs as they run.
        hidden: why outputs agree where values do not, in words.
        open: what could not be decided, in words: differences that a step hides, which may be none.
        at_edges: steps that were taken as the port took them, in words.
    """

    recorded: Recorded
    session: Session
    findings: list[Finding]
    before: list[verdict.Distance]
    after: list[verdict.Distance]
    distance: float
    remaining: float
    unknown: bool
    operations: list[Operation]
    operations_after: list[Operation]
    """The same with the edits of known causes; empty where there is no finding."""
    narrowings: list[Downcast]
    found: int
    native: NativeRun
    program: Program
    """The reference with the edits and the port, to be run on other inputs and weights."""
    hidden: list[str]
    open: list[str]
    at_edges: list[str]
    behind_draws: list[bool]
    """Of each compared output, whether it depends on random numbers that are not the port's."""

    @property
    def stale(self) -> bool:
        """True if the search ended where the reference is to be recorded again."""
        return self.session.stopped

    @property
    def agrees(self) -> bool:
        """True if no output differs, and nothing had to be changed for that."""
        return not self.findings and all(d.verdict != verdict.DIFFERENT for d in self.before)


def record(pair: Pair, train: bool, say: Progress) -> Recorded:
    """Record both models and pair their outputs. Raises PortError."""
    say("recording the PyTorch model")
    mine: Leaves = []
    named: list[str] = []

    def choose(out: Any) -> list[Any]:
        named[:] = [n for n, _ in leaves_of(out) if n]
        mine[:] = pick_torch(out, pair.output)
        return [t for _, t in mine]

    live, like = pair.live or (None, None)
    graph = torch_program.record(
        pair.torch_model, pair.inputs, choose, train=train, like=like, live=live
    )
    pair.notes += [n for n in graph.notes if n not in pair.notes]
    say("recording the port")
    index = Index()
    if pair.layout is None:
        settle_layout(pair, graph, train)
    traced, arrays, pure = pair.trace(train=train)
    ids = [
        index.add(v, "parameter", n, [], pair.leaves.kept(k))
        for k, (v, n) in enumerate(zip(pair.leaves, pure.names))
    ]
    _add_slices(index, pair.leaves, pure.names, ids)
    strange = None if train else other_weights(graph, index, pair.leaves)
    ids += [index.add(x, "input", f"input {k}", []) for k, x in enumerate(arrays)]
    interpreter = Taping(index)
    given = interpreter.given(ids)
    outs, slots = jax_trace.evaluate(
        traced, [*pair.leaves.arguments(), *arrays], given, interpreter
    )
    index.tape = interpreter.tape
    index.tape.returned.update(slots)
    theirs = pick(labelled(traced.labels, outs, pure.stateful), pair.output, "JAX", named)
    check_chosen(pair.output, mine, theirs)
    pairs, compared, port, unclear = _paired(graph, mine, theirs, pair.relaid(arrays))
    graph = replace(graph, outputs=tuple(graph.outputs[p.mine] for p in compared))
    if strange is not None and not _near(graph, compared, port):
        raise strange
    extra = [n for k, (n, _) in enumerate(theirs) if k not in {p.port for p in compared}]
    chosen = [
        next(i for i, out in enumerate(outs) if out is theirs[p.port][1])
        for p in compared
        if p.port is not None
    ]
    return Recorded(
        graph,
        index,
        traced,
        arrays,
        pure,
        interpreter,
        pairs,
        compared,
        port,
        extra,
        chosen,
        unclear,
        [interpreter.tape.slots[i].entry for i in slots if i >= 0],
    )


def _paired(
    graph: Graph, mine: Leaves, theirs: Leaves, relaid: bool
) -> tuple[list[Paired], list[Paired], list[np.ndarray], str]:
    """All outputs of the reference, the compared ones with the port's arrays, and why the pairing
    is not certain."""
    pairs = pair_outputs(mine, theirs)
    compared = [p for p in pairs if p.port is not None]
    values = [to_numpy(graph.values[graph.outputs[p.mine]]) for p in compared]
    port = [np.asarray(theirs[p.port][1]) for p in compared if p.port is not None]
    unclear = by_numbers(compared, values, port)
    if unclear:
        port = [np.asarray(theirs[p.port][1]) for p in compared if p.port is not None]
    for p, value, array in zip(compared, values, port):
        p.fix_layout(value, array, relaid)
    return pairs, compared, port, unclear


def _near(graph: Graph, compared: Sequence[Paired], port: Sequence[np.ndarray]) -> bool:
    """True if every output is about the port's: then the weights are the same, folded."""
    return bool(compared) and all(
        verdict.relative(to_numpy(graph.values[o]), p.arrange(x)) < FOLDED
        for o, p, x in zip(graph.outputs, compared, port)
    )


def compare(
    pair: Pair, train: bool, say: Progress, stop: bool = False, native: NativeRun | None = None
) -> Comparison:
    """Record both models, and explain where they part.

    Args:
        stop: end where edits change what the reference's control flow follows.
        native: both programs as they run, where that is known.
    """
    recorded = record(pair, train, say)
    graph = recorded.graph
    named = [(p.theirs, x) for p, x in zip(recorded.compared, recorded.port)]
    if not train:
        check_reference(pair, graph, [p.mine for p in recorded.compared])
        check_port(pair, recorded.port, named)
    say("running both as they are")
    mine = [(p.name, graph.values[o]) for p, o in zip(recorded.compared, graph.outputs)]
    if native is None:
        native = run_native(pair, recorded.pure, recorded.arrays, mine, named, train=train)
    say("measuring rounding")
    session = _session(recorded, train)
    pairing = _paired_draws(session) if train else None
    before = session.judge_outputs()
    agrees = all(d.verdict != verdict.DIFFERENT for d in before)
    hidden = session.hidden_texts() if agrees else []
    distance = session.output_distance()
    operations = session.operations()
    steps = [] if agrees else other_sides(session)
    start = session.snapshot()
    findings, remaining, unknown = explain_divergences(session, say, pairing, stop)
    after = _operations_after(session, start, unknown) if findings else []
    unpaired = [] if pairing is None else list(pairing.unpaired())
    if pairing is not None:
        before, distance = _before(session, start, pairing)
    undecided = _before_steps(session, findings) if agrees else []
    if undecided:
        findings = [f for f in findings if f not in undecided]
        unknown = any(f.kind == "unknown" for f in findings)
    if findings:
        remeasure(session)
    narrowings = _narrowings(pair, recorded, session, None if train else named)
    return Comparison(
        recorded,
        session,
        findings,
        before,
        session.judge_outputs(),
        distance,
        remaining,
        unknown,
        operations,
        after,
        narrowings,
        sum(1 for e in session.match.values() if e is not None),
        native,
        Program(pair, train, session, recorded),
        hidden,
        [*map(_behind_step, undecided), *_unclear(recorded), *map(_unpaired, unpaired)],
        steps,
        _behind(session, unpaired),
    )


def _operations_after(session: Session, start: Snapshot, unknown: bool) -> list[Operation]:
    """The picture with the edits of known causes, which the session has where all are known."""
    return operations_without_unknown(session, start) if unknown else session.operations()


def lost_values(recorded: Recorded, train: bool) -> int:
    """How many values of the reference the port lacks, as both are."""
    return len(_session(recorded, train).lost())


def _session(recorded: Recorded, train: bool) -> Session:
    """What is known of each value, before any edit."""
    graph = recorded.graph
    outputs = [p.arrange(x) for p, x in zip(recorded.compared, recorded.port)]
    session = Session(graph, recorded.index, measure_noise(graph, step_operands(graph)), outputs)
    if train:
        session.what = ("forward", "train")
        session.watch(
            {
                o
                for n in graph.nodes
                if "batch_norm" in n.name
                for o in n.outs[3:5]
                if o is not None
            },
            recorded.returned if recorded.pure.stateful else None,
        )
    return session


def _narrowings(
    pair: Pair, recorded: Recorded, session: Session, named: Leaves | None
) -> list[Downcast]:
    """Both sides' computations in narrower types, with what they cost where `named` outputs of the
    port are given."""
    found = [Downcast("torch", w, d) for w, d in recorded.graph.narrowings]
    places = dict.fromkeys([*recorded.traced.narrowings, *recorded.interpreter.narrowings])
    for w, d in pair.own_narrowings(places):
        found.append(Downcast("jax", w, d))
    own = recorded.interpreter.types if recorded.traced.marks is not None else None
    if named is not None:
        for side, types in (("torch", recorded.graph.types), ("jax", own)):
            if types is not None:
                as_run(found, side, types)
        tell_alone(found, session, own)
    logits = _logits(recorded)
    reference_costs(session, found, logits)
    if named is not None:
        traced, arrays = recorded.traced, recorded.arrays
        port_costs(pair, recorded.pure, traced, arrays, own, named, found, logits)
    return found


def _logits(recorded: Recorded) -> list[bool]:
    """Which of the compared outputs are logits: by their names, or those of the modules that make
    them."""
    graph = recorded.graph
    found = []
    for pair, out in zip(recorded.compared, graph.outputs):
        producer = graph.producer[out]
        scope = "" if producer is None else graph.nodes[producer].scope.rpartition(".")[2]
        named = "logit" in f"{pair.name} {pair.theirs}".lower()
        found.append(
            graph.values[out].ndim > 1
            and graph.values[out].shape[-1] > 1
            and (named or any(part in scope.lower() for part in HEADS))
        )
    return found


def _unclear(recorded: Recorded) -> list[str]:
    """Why not even outputs that agree are compared for certain."""
    texts = [recorded.unclear] if recorded.unclear else []
    graph = recorded.graph
    dependent = graph.input_dependent()
    if graph.inputs() and not any(o in dependent for o in graph.outputs):
        lost = [i for o in graph.outputs for i in graph.ancestors(o) if graph.source[i] == "const"]
        if lost:
            texts.append(
                "no compared output depends on an input by PyTorch's operations: something in the "
                "reference leaves PyTorch (.numpy(), an array of NumPy) and cannot be followed"
            )
    return texts


def _paired_draws(session: Session) -> Pairing:
    """The dropouts of both sides; those that are alike have the same pattern from now on."""
    pairing = Pairing(session)
    session.drawn, session.random = session.graph.drawn(), pairing.random
    while pairing.step(alike=True):
        pass
    return pairing


def _before(
    session: Session, start: Snapshot, pairing: Pairing
) -> tuple[list[verdict.Distance], float]:
    """The outputs before any edit, but with the random patterns that were found to be alike."""
    present = session.snapshot()
    session.undo(start)
    try:
        if pairing.alike:
            session.apply(pairing.alike)
        return session.judge_outputs(), session.output_distance()
    finally:
        session.undo(present)


def _unpaired(node: Node) -> str:
    return (
        f"the reference draws random numbers at {node.place} ({node.where}), and the port none "
        "that the same value meets: what comes after is not compared"
    )


def _behind(session: Session, unpaired: Sequence[Node]) -> list[bool]:
    """Of each output whether one of these operations comes before it."""
    made = {o for n in unpaired for o in n.outs if o is not None}
    graph = session.graph
    return [bool(made & graph.ancestors(o)) if made else False for o in graph.outputs]


def _behind_step(finding: Finding) -> str:
    return (
        f"{finding.torch} ({finding.torch_line}) has no equal in the port, and the outputs depend "
        "on it through a step alone"
    )


def _before_steps(session: Session, findings: Sequence[Finding]) -> list[Finding]:
    """Differences without a cause before a step that both sides take alike: a value computed
    otherwise can be no mistake there."""
    places = session.seen_by_steps()
    return [f for f in findings if f.kind == "unknown" and f.torch in places]


def remeasure(session: Session) -> None:
    """Measure the rounding of the outputs again: edits have made other values of them."""
    give_back()
    fresh = output_noise(session.graph)
    session.noise.elements = fresh.elements
    session.noise.relative.update({o: fresh.get(o) for o in session.graph.outputs})


def _add_slices(index: Index, leaves: PortLeaves, names: Sequence[str], ids: Sequence[int]) -> None:
    """Slices of stacked parameters are values of the port, too."""
    for place, (leaf, name, i) in enumerate(zip(leaves, names, ids)):
        if (
            isinstance(leaf, np.ndarray)
            and leaf.ndim >= 2
            and leaf.dtype == np.float64
            and 1 < leaf.shape[0] <= 64
        ):
            for k in range(leaf.shape[0]):
                own = leaves.kept(place)[k]
                index.add(leaf[k], "parameter", f"{name}[{k}]", [i], own)
