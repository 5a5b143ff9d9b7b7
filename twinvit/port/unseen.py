"""What these inputs and weights cannot show."""

from __future__ import annotations

from collections.abc import Container

import torch

from twinvit.port.ops import LINEAR, LOWER_AT, MASKING, MOVES, TAILED, UPPER_AT
from twinvit.port.record.graph import Graph
from twinvit.port.search.session import Session


def _raw(session: Session, value: int) -> bool:
    """True for images that the reference's first weights take as they come."""
    graph = session.graph
    if graph.values[value].ndim != 4 or not graph.values[value].is_floating_point():
        return False
    layer = [value]
    for v in layer:
        for user in graph.consumers.get(v, ()):
            node = graph.nodes[user]
            if node.name in MOVES:
                layer += [o for o in node.outs if o is not None and o not in layer]
            elif node.name not in LINEAR:
                return False
    return True


def _inputs(graph: Graph, tried: Container[int]) -> list[str]:
    """Inputs whose numbers are all equal, and square ones that equal their transpose."""
    found: list[str] = []
    for k, i in enumerate(graph.inputs()):
        x = graph.values[i]
        if x.numel() < 2 or k in tried:
            continue
        if bool((x == x.reshape(-1)[0]).all()):
            found.append(
                f"input {k} is constant ({x.reshape(-1)[0].item():g} everywhere): what is done "
                "with it, or left out, cannot be seen; give one of different numbers"
            )
        elif x.ndim >= 2 and x.shape[-1] == x.shape[-2] and bool((x == x.mT).all()):
            found.append(f"input {k} is symmetric: a transposition of it cannot be seen")
    return found


def _bounds(graph: Graph) -> list[str]:
    """Bounds of operations that no number of these inputs reaches."""
    found: list[str] = []
    for node in graph.nodes:
        if node.name not in LOWER_AT | UPPER_AT or not node.refs or node.outs[0] is None:
            continue
        x, y = graph.values[node.refs[0]], graph.values[node.outs[0]]
        if x.is_complex() or x.shape != y.shape or not x.numel():
            continue
        low, high = (
            None if at is None else node.args[at] if at < len(node.args) else None
            for at in (LOWER_AT.get(node.name), UPPER_AT.get(node.name))
        )
        idle = [
            side
            for side, bound, reached in (
                ("lower", low, bool((y > x).any())),
                ("upper", high, bool((y < x).any())),
            )
            if bound is not None and not reached
        ]
        if idle:
            found.append(
                f"{node.place}: no number reaches the {' or the '.join(idle)} bound of {node.name}"
            )
    return found


def unseen(session: Session, kinds: tuple[str, ...], tried: Container[int] = ()) -> list[str]:
    """What these inputs and weights could not show; `tried`: positions of constant inputs that were
    compared with other values."""
    graph = session.graph
    found: list[str] = []
    constant = [
        n
        for n, i in graph.params().items()
        if graph.values.shaped(i).numel() >= 2
        and graph.values.shaped(i).dtype == torch.float64
        and float(graph.values[i].max()) == float(graph.values[i].min())
    ]
    if constant:
        found.append(
            f"{len(constant)} parameters are constant "
            f"({', '.join(constant[:4])}{' ...' if len(constant) > 4 else ''}): "
            "an exchange or a missing one among them cannot "
            "be seen; draw them at random on both sides"
        )
    for i in graph.inputs():
        if graph.values[i].ndim >= 2 and graph.values[i].shape[0] == 1:
            found.append("a batch of one: mixing along the batch cannot be seen")
            break
    if any(_raw(session, i) for i in graph.inputs()):
        found.append(
            "preprocessing is no part of the models: scaling, mean and standard deviation, resize, "
            "crop and order of channels are not compared"
        )
    found += _inputs(graph, tried)
    found += _bounds(graph)
    for node in graph.nodes:
        if (
            node.name in TAILED
            and node.refs
            and graph.values[node.refs[0]].numel()
            and float(graph.values[node.refs[0]].abs().max()) < 1
        ):
            found.append(f"{node.place}: no input beyond 1, the activation's tails are not reached")
            break
    masks = [n for n in graph.nodes if n.name in MASKING]
    if masks and not any(
        bool(graph.values[r].any())
        for n in masks
        for r in n.refs
        if graph.values.shaped(r).dtype == torch.bool
    ):
        found.append("no position is masked")
    for node in graph.nodes:
        if node.name == "softmax" and node.refs and graph.values[node.refs[0]].shape[-1] == 1:
            found.append(
                f"{node.place}: a softmax over one position is 1 whatever is computed before it"
            )
            break
    if "train" not in kinds:
        found.append(
            'evaluation mode only: dropout and batch statistics are not compared (what="train")'
        )
    if "grad" not in kinds:
        found.append('gradients are not compared (what="grad")')
    return found
