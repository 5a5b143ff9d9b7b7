"""The backward of a torch.autograd.Function as it is written: its formula and its lines."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from twinvit.port.backward.flow import Flow
from twinvit.port.ops import LAYOUT
from twinvit.port.record.graph import Node
from twinvit.port.record.torch_gradients import CustomBackward
from twinvit.port.search.folding import count
from twinvit.port.search.formula import printed, reference_formula, value_name


@dataclass
class Written:
    """What a function's backward computes of the gradient that arrives.

    Attributes:
        formula, short: whole, and as it is printed; "" where it has several results.
        operations: how many it has.
        lines: the user's lines of them.
    """

    formula: str = ""
    short: str = ""
    operations: int = 0
    lines: list[str] = field(default_factory=list)


def written(flow: Flow, node: Node) -> Written:
    """The backward of a function, as it was run on the reference's values."""
    rule = node.op
    assert isinstance(rule, CustomBackward)
    refs = [a.id for a in node.args]
    given = [flow.values[r] for r in refs[rule.results :]]
    cotangents = [
        torch.from_numpy(flow.gradients[o])
        if o in flow.gradients
        else torch.zeros_like(flow.values[o])
        for o in node.outs
        if o is not None
    ]
    try:
        graph, _ = rule.program(given, cotangents)
    except Exception:
        return Written()
    wanted = [o for o, t in zip(graph.outputs, given) if t.is_floating_point()]
    inside = {p for o in wanted for i in graph.ancestors(o) if (p := graph.producer[i]) is not None}
    last = {i for k in graph.inputs()[len(given) :] for i in graph.following(k)}
    lines = dict.fromkeys(
        w
        for k in sorted(inside)
        if (w := graph.nodes[k].where) and any(o in last for o in graph.nodes[k].outs)
    )
    if len(wanted) != 1 or rule.results != 1:
        return Written(lines=list(lines))
    names = [f"param:{value_name(flow.graph, r)}" for r in refs[rule.results :]] + ["gradient"]
    source = list(graph.source)
    for i, name in zip(graph.inputs(), names):
        source[i] = name
    graph = replace(graph, source=tuple(source))
    kept = {k for k in inside if graph.nodes[k].name not in LAYOUT}
    formula = reference_formula(graph, wanted[0], inside if kept else set())
    return Written(printed(formula, None), printed(formula), count(formula), list(lines))
