"""Record a PyTorch model into a folder; needs no JAX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from twinvit.port.envelope import model_name
from twinvit.port.errors import PortError
from twinvit.port.given_torch import checked_torch
from twinvit.port.index import align_distance
from twinvit.port.outputs import apply_output, leaves_of
from twinvit.port.record import torch_program, torch_values
from twinvit.port.record.given import split_inputs
from twinvit.port.record.graph import Graph
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.recording.arrays import Written
from twinvit.port.recording.torch_graph import written_graph

CHECKED = 1 << 21  # parameters up to which a model is run again by itself
_LAYERS = {"linear": torch.nn.Linear, "conv": torch.nn.modules.conv._ConvNd}


def torch_program_of(
    model: Any, inputs: Any, output: Any, train: bool, say: Callable[[str], None]
) -> tuple[dict[str, Any], Written]:
    """What a recording holds of a PyTorch model, and its arrays.

    Args:
        model: nn.Module or a function of tensors; neither is changed.
        inputs: NumPy arrays as it takes them, a tuple or a mapping.
        output: a function that chooses of what the model returns, or None.
        train: record train mode, too.
        say: called with what is being done.

    Raises:
        PortError: the model does not run, or differs from itself.
    """
    notes: list[str] = []
    model = checked_torch(model, ("forward", "train") if train else ("forward",), notes)
    arrays = Written()
    names, given = split_inputs(inputs)
    modes = {}
    for mode in ("eval", "train") if train else ("eval",):
        say(f"recording the PyTorch model, {'train mode' if mode == 'train' else 'evaluation'}")
        modes[mode] = _mode(model, inputs, output, mode == "train", arrays)
    found = {
        "model": model_name(model),
        "module": isinstance(model, torch.nn.Module),
        "inputs": {"names": names, "arrays": [arrays.add(x) for x in given]},
        "modes": modes,
        "notes": notes,
        **_state(model, arrays),
    }
    return found, arrays


def _state(model: Any, arrays: Written) -> dict[str, Any]:
    """Parameters and buffers by name, and the modules that hold them."""
    if not isinstance(model, torch.nn.Module):
        return {"tensors": [], "aliases": [], "modules": []}
    saved = set(model.state_dict(keep_vars=True))
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    tensors = [
        [n, arrays.add(t.detach().cpu()), n in parameters, t.requires_grad, n in saved]
        for n, t in (parameters | buffers).items()
    ]
    first = {id(t): n for n, t in (parameters | buffers).items()}
    every = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    aliases = [[n, first[id(t)]] for n, t in every if first[id(t)] != n]
    modules = [[n, type(m).__name__, _layer(m)] for n, m in model.named_modules() if n]
    return {"tensors": tensors, "aliases": aliases, "modules": modules}


def _layer(module: torch.nn.Module) -> str:
    return next((k for k, kind in _LAYERS.items() if isinstance(module, kind)), "")


def _mode(model: Any, inputs: Any, output: Any, train: bool, arrays: Written) -> dict[str, Any]:
    """The program in one mode: in float64, in its own types, and what it returned in those."""
    names: list[str] = []

    def pick(out: Any) -> list[Any]:
        leaves = leaves_of(apply_output(output, out, "PyTorch"))
        if not leaves:
            raise PortError("the PyTorch model returns no array; choose one with output=")
        names[:] = [n for n, _ in leaves]
        return [t for _, t in leaves]

    graph = torch_program.record(model, inputs, pick, train=train)
    wide = written_graph(graph, arrays, names)
    if not train:
        _check(model, inputs, pick, graph)
    native = torch_program.record_native(model, inputs, pick, train)
    own = None if native is None else written_graph(native, arrays, names)
    return {"wide": wide, "own": own, "ran": _ran(model, inputs, pick, train, arrays)}


def _ran(
    model: Any, inputs: Any, pick: Callable[[Any], list[Any]], train: bool, arrays: Written
) -> dict[str, Any]:
    """What the model returns as it runs, or why it does not."""
    error: Exception | None = None
    try:
        copy, names, tries = torch_values.as_given(model, inputs, train)
    except Exception as failure:
        return {"error": f"{type(failure).__name__}: {failure}"}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for tensors in tries:
            try:
                out = pick(torch_values.call(copy, names, tensors))
                return {"arrays": [arrays.add(t.detach()) for t in out]}
            except Exception as failure:
                error = failure
    return {"error": f"{type(error).__name__}: {error}"}


def _check(model: Any, inputs: Any, pick: Callable[[Any], list[Any]], graph: Graph) -> None:
    """Raises PortError for a model that differs from itself."""
    if sum(graph.values[i].numel() for i in graph.params().values()) > CHECKED:
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed() + 1)  # what is drawn is sampled anew
        again = torch_program.record(model, inputs, pick)
    apart = [_apart(graph, again, k) for k in range(len(graph.outputs))]
    if max(apart, default=0.0) > 1e-9:
        raise PortError(
            f"the PyTorch model differs from itself by {max(apart):.1e} on the same input: "
            "something in it is random in eval mode (dropout called with training=True?) or "
            "nondeterministic; make it deterministic first"
        )


def _apart(graph: Graph, again: Graph, k: int) -> float:
    values: Sequence[torch.Tensor] = (
        graph.values[graph.outputs[k]],
        again.values[again.outputs[k]],
    )
    return align_distance(*map(to_numpy, values))
