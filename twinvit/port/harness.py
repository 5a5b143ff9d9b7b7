"""Is the comparison itself valid: each model against itself, and the weights of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from twinvit.port.errors import PortError
from twinvit.port.index import Index, align_distance, evidence
from twinvit.port.ops import RANDOM
from twinvit.port.outputs import pick_torch
from twinvit.port.pair import Pair
from twinvit.port.port_leaves import PortLeaves
from twinvit.port.record import jax_trace, torch_program
from twinvit.port.record.graph import Graph
from twinvit.port.record.jax_interpreter import Interpreter
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.search.session import Session

CHECKED = 1 << 21  # parameters up to which a model is run again by itself


def check_reference(pair: Pair, graph: Graph, places: Sequence[int]) -> None:
    """Each model against itself: a model that differs from itself cannot be compared.

    The reference is recorded once more, as a widened model that mixes types runs under the recorder
    alone. `places` are those of the graph's outputs among all that the model returns.
    """
    random = [n for n in graph.nodes if n.name in RANDOM]
    size = sum(graph.values.shaped(i).numel() for i in graph.params().values())
    if not random and size > CHECKED:
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed() + 1)  # what is drawn is sampled anew
        live, like = pair.live or (None, None)
        again = torch_program.record(
            pair.torch_model,
            pair.inputs,
            lambda out: [t for _, t in pick_torch(out, pair.output)],
            like=like,
            live=live,
        )
    for i, j in zip(graph.outputs, [again.outputs[k] for k in places]):
        a, b = graph.values[i], again.values[j]
        d = align_distance(to_numpy(a), to_numpy(b))
        if d > 1e-9:
            raise PortError(
                f"the PyTorch model differs from itself by {d:.1e} on "
                "the same input: something in it is random in eval mode "
                "(dropout called with training=True?) or "
                "nondeterministic; make it deterministic first"
            )


def check_port(pair: Pair, outputs: Sequence[np.ndarray], named: Sequence[tuple[str, Any]]) -> None:
    """The port against itself, traced and evaluated once more."""
    if pair.leaves.numbers() > CHECKED:
        return
    traced, arrays, _ = pair.trace()
    values = [*pair.leaves.arguments(), *arrays]
    interpreter = Interpreter()
    outs, _ = jax_trace.evaluate(traced, values, [-1] * len(values), interpreter)
    again = dict(zip(traced.labels, outs))
    for (name, _), first in zip(named, outputs):
        second = np.asarray(again[name]) if name in again else first
        d = align_distance(first, second)
        if first.shape != second.shape or d > 1e-9:
            raise PortError(
                f"the JAX model differs from itself by {d:.1e} on the same input: something in it "
                "is drawn anew in each call (np.random, a counter); make it deterministic first"
            )


def other_weights(graph: Graph, index: Index, leaves: PortLeaves) -> PortError | None:
    """The error to raise where no parameter of the reference is in the port; None else."""
    own = [i for i in graph.params().values() if _tells(graph.values[i])]
    held = [k for k in range(len(leaves)) if leaves.is_real(k) and leaves.kept(k).size >= 8]
    if not own or not held:
        return None
    if any(index.find(to_numpy(graph.values[i]), 1e-12) is not None for i in own):
        return None
    numbers_held = np.sort(np.concatenate([leaves[k].reshape(-1) for k in held]))
    for i in own:
        flat = to_numpy(graph.values[i]).reshape(-1)
        sample = flat[:: max(1, flat.size // 64)][:64]
        place = np.searchsorted(numbers_held, sample).clip(1, numbers_held.size - 1)
        near = np.minimum(
            np.abs(numbers_held[place] - sample), np.abs(numbers_held[place - 1] - sample)
        )
        if float((near <= 1e-6 * np.abs(sample)).mean()) > 0.5:
            return None
    return PortError(
        f"none of the reference's {len(own)} weights of 8 numbers "
        "or more is found in the port: the two hold other weights. "
        'Convert the weights first, or give weights="transfer" to have them put into the port'
    )


def _tells(value: torch.Tensor) -> bool:
    return value.dtype == torch.float64 and evidence(to_numpy(value))


def lost_weights(session: Session) -> list[str]:
    """Parameters whose values the port does not hold, in any split."""
    lost = []
    for name, i in session.graph.params().items():
        if session.status(i) != "lost" or not any(
            u in session.live for u in session.graph.consumers.get(i, ())
        ):
            continue
        value = to_numpy(session.graph.values[i])
        if not any(
            value.shape
            and value.shape[0] % n == 0
            and all(session.index.find(part, 1e-12) is not None for part in np.split(value, n))
            for n in (2, 3, 4)
        ):
            lost.append(name)
    return lost
