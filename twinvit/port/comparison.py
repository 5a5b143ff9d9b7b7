"""Both models recorded and compared in one mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from twinvit.port import record_jax, record_torch
from twinvit.port.costs import port_costs, reference_costs
from twinvit.port.harness import check_port, check_reference, check_weights
from twinvit.port.index import Index
from twinvit.port.outputs import labelled, pair_outputs
from twinvit.port.pair import Pair
from twinvit.port.record_torch import pick_output, pick_torch
from twinvit.port.report import Finding, Narrowing, Operation
from twinvit.port.search.loop import Progress, explain_divergences
from twinvit.port.search.noise import measure_noise
from twinvit.port.search.session import Session


@dataclass
class Comparison:
    """Both models recorded and compared in one mode."""

    session: Session
    findings: list[Finding]
    distance: float
    remaining: float
    unknown: bool
    operations: list[Operation]
    narrowings: list[Narrowing]
    branches: list[str]
    arrays: list[np.ndarray]
    chosen: list[int]
    """Places of the compared arrays among the port's outputs."""
    compared: int

    @property
    def same(self) -> bool:
        return (
            self.distance <= self.session.output_tolerance()
            and not self.findings
            and self.compared > 0
        )


def compare(pair: Pair, train: bool, say: Progress) -> Comparison:
    output = pair.output
    say("recording the PyTorch model")
    first: list[tuple[str, Any]] = []

    def pick(out: Any) -> list[Any]:
        first[:] = pick_torch(out, output)
        return [t for _, t in first]

    graph = record_torch.record(pair.torch_model, pair.inputs, pick, train=train)
    say("recording the port")
    index = Index()
    traced, arrays, pure = pair.trace(train=train)
    ids = [index.add(v, "parameter", n, []) for v, n in zip(pair.leaves, pure.names)]
    _add_slices(index, pair.leaves, pure.names, ids)
    if not train:
        check_weights(graph, index, pair.leaves)
    ids += [index.add(x, "input", f"input {k}", []) for k, x in enumerate(arrays)]
    interpreter = record_jax.Interpreter(index.add)
    outs, _ = record_jax.evaluate(traced, [*pair.leaves, *arrays], ids, interpreter)
    theirs = pick_output(labelled(traced, outs, pure), output, "JAX")
    pair_outputs(graph, first, theirs)
    chosen = [next(i for i, out in enumerate(outs) if out is x) for _, x in theirs]
    port_outputs = [np.asarray(x) for _, x in theirs]
    if not train:
        check_reference(pair, graph)
        check_port(pair, port_outputs, theirs)
    say("measuring rounding")
    session = Session(graph, index, measure_noise(graph), port_outputs)
    if train:
        session.what = ("forward", "train")
        session.watch(
            {o for n in graph.nodes if "batch_norm" in n.name for o in n.outs[3:5] if o is not None}
        )
    distance = session.output_distance()
    operations = session.operations()
    findings, remaining, unknown = explain_divergences(session, say)
    narrowings = [Narrowing("torch", w, d) for w, d in graph.narrowings]
    for w, d in dict.fromkeys([*traced.narrowings, *interpreter.narrowings]):
        narrowings.append(Narrowing("jax", w, d))
    reference_costs(session, narrowings)
    if not train:
        port_costs(pair, arrays, theirs, narrowings)
    compared = sum(1 for e in session.match.values() if e is not None)
    return Comparison(
        session,
        findings,
        distance,
        remaining,
        unknown,
        operations,
        narrowings,
        list(interpreter.branches),
        arrays,
        chosen,
        compared,
    )


def _add_slices(
    index: Index, leaves: Sequence[Any], names: Sequence[str], ids: Sequence[int]
) -> None:
    """Slices of stacked parameters are values of the port, too."""
    for leaf, name, i in zip(leaves, names, ids):
        if (
            isinstance(leaf, np.ndarray)
            and leaf.ndim >= 2
            and leaf.dtype == np.float64
            and 1 < leaf.shape[0] <= 64
        ):
            for k in range(leaf.shape[0]):
                index.add(leaf[k], "parameter", f"{name}[{k}]", [i])
