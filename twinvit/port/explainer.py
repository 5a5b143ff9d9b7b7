"""`explain`: the port = the reference + these edits."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import torch

from twinvit.port import record_jax, record_torch
from twinvit.port.errors import PortError
from twinvit.port.index import Index, align_distance, evidence
from twinvit.port.record_torch import apply_output, numbers, pick_output, pick_torch, preferred
from twinvit.port.report import SHOWN, Finding, Narrowing, Operation, Report
from twinvit.port.search.loop import Progress, explain_divergences
from twinvit.port.search.noise import measure_noise
from twinvit.port.search.session import MOVES, Session

CHECKED = 1 << 21  # parameters up to which a model is run again by itself
RANDOM = (
    "native_dropout",
    "bernoulli",
    "rand",
    "randn",
    "rand_like",
    "randn_like",
    "uniform",
    "normal",
    "randint",
    "multinomial",
)


def explain(
    torch_model: Any,
    jax_model: Any,
    inputs: Sequence[Any] | Mapping[str, Any],
    *,
    jax_inputs: Sequence[Any] | None = None,
    weights: Any = "as_is",
    what: str | Sequence[str] = ("forward",),
    output: Any = None,
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
        return _explain(pair, kinds, started, say)
    finally:
        torch.set_num_threads(threads)


def assert_same(torch_model: Any, jax_model: Any, inputs: Any, **arguments: Any) -> Report:
    """Fail with the report as the message unless the port is the reference; for pytest. Arguments
    as of `explain`."""
    __tracebackhide__ = True
    report = explain(torch_model, jax_model, inputs, **arguments)
    if not report.same:
        raise AssertionError(f"the port differs from its reference\n{report}")
    return report


class Pair:
    """Two models and their inputs, recorded."""

    def __init__(
        self,
        torch_model: Any,
        jax_model: Any,
        inputs: Any,
        jax_inputs: Any,
        output: Any,
        say: Progress,
        evaluate: bool = False,
    ) -> None:
        self.torch_model = torch_model
        self.inputs = inputs
        self.output = output
        self.say = say
        self.pure = record_jax.pure(jax_model, evaluate=evaluate)
        self.leaves = [record_jax.widen(x) for x in self.pure.leaves]
        self.notes: list[str] = []
        self.torch_arrays = [
            record_torch.to_torch(x).numpy() for x in record_torch.split_inputs(inputs)[1]
        ]
        self.jax_inputs = jax_inputs
        self.given = (
            None
            if jax_inputs is None
            else [_jax_input(x) for x in record_torch.split_inputs(jax_inputs)[1]]
        )
        self.jax_model = jax_model

    def transfer(self, weights: Any) -> None:
        """Put the reference's weights into the port.

        Raises:
            PortError: the map does not fit the two models.
        """
        from twinvit.port.weight_map import WeightMap, map_weights

        if not isinstance(self.torch_model, torch.nn.Module):
            raise PortError(
                "the reference is a function, which has no weights to put into the port"
            )
        if isinstance(weights, WeightMap):
            found = weights
        elif weights == "transfer":
            found = map_weights(self.torch_model, self.jax_model, self.inputs, self.jax_inputs)
        elif isinstance(weights, str | os.PathLike):
            found = WeightMap.load(weights)
        else:
            raise PortError(
                f'weights= is a {type(weights).__name__}; give "as_is", "transfer", a WeightMap '
                "or the path of one"
            )
        placed = found.apply(record_torch.widened(self.torch_model).state_dict())
        position = {name: i for i, name in enumerate(self.pure.names)}
        for name, value in placed.items():
            if name not in position:
                raise PortError(f"the map of weights makes {name}, which the port does not have")
            shape = np.shape(self.leaves[position[name]])
            if value.shape != shape:
                raise PortError(
                    f"the map of weights makes {name} of shape {value.shape}; the port's is {shape}"
                )
        for name, value in placed.items():
            self.leaves[position[name]] = record_jax.widen(value)
        kept = [n for n in position if n not in placed]
        self.notes.append(
            f"the reference's weights were put into the port by a map of {len(placed)} arrays"
            + (f"; {len(kept)} others were left as they were: {_shortened(kept)}" if kept else "")
        )

    def _picking(self, pure: record_jax.Pure) -> Callable[..., Any]:
        """The port's call; a function given as `output=` is applied to what it returns."""
        if not callable(self.output):
            return pure.call

        def call(leaves: Any, *xs: Any) -> Any:
            out = pure.call(leaves, *xs)
            if pure.stateful:
                return apply_output(self.output, out[0], "JAX"), out[1]
            return apply_output(self.output, out, "JAX")

        return call

    def trace(
        self, *, train: bool = False
    ) -> tuple[record_jax.Traced, list[np.ndarray], record_jax.Pure]:
        """The port's jaxpr and the inputs that it took."""
        pure = record_jax.pure(self.jax_model, train=True) if train else self.pure
        if self.given is not None:
            tries = [("", self.given)]
        else:
            same = [_jax_input(x) for x in self.torch_arrays]
            tries = [("", same)]
            if any(x.ndim == 4 for x in same):
                tries.append(
                    (
                        "images were given to the port as NHWC",
                        [x.transpose(0, 2, 3, 1) if x.ndim == 4 else x for x in same],
                    )
                )
        errors: list[str] = []
        for note, arrays in tries:
            self.called = self._picking(pure)
            try:
                traced = record_jax.trace(self.called, self.leaves, arrays)
            except PortError:
                raise
            except Exception as error:
                errors.append(
                    f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}"
                    if str(error)
                    else type(error).__name__
                )
                if pure.kind != "pytree":
                    continue
                arrays = [
                    _jax_input(x) for x in (self.torch_arrays if self.given is None else self.given)
                ]
                self.called = self._picking(replace(pure, call=_mapped(pure.call)))
                try:
                    traced = record_jax.trace(self.called, self.leaves, arrays)
                except PortError:
                    raise
                except Exception:
                    continue
                note = "the port was mapped over the batch"
            if note and note not in self.notes:
                self.notes.append(note)
            return traced, arrays, pure
        shapes = ", ".join(f"{x.shape} {x.dtype}" for x in tries[0][1])
        hint = (
            ""
            if self.given is not None
            else "; give jax_inputs= as the port takes them (images NHWC?)"
        )
        raise PortError(f"the port refuses its inputs ({shapes}): {errors[0]}{hint}")


def _shortened(names: Sequence[str], shown: int = 8) -> str:
    return ", ".join(names[:shown]) + (" ..." if len(names) > shown else "")


def _mapped(call: Callable[..., Any]) -> Callable[..., Any]:
    """A model of single examples, as Equinox's are, mapped over the batch."""
    return lambda leaves, *xs: jax.vmap(lambda *x: call(leaves, *x))(*xs)


def _jax_input(x: Any) -> np.ndarray:
    array = np.asarray(x)
    return record_jax.widen(array)


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


def _explain(pair: Pair, kinds: tuple[str, ...], started: float, say: Progress) -> Report:
    alone = kinds == ("train",)
    forward = _compare(pair, alone, say)
    session = forward.session
    findings = list(forward.findings)
    notes = [*pair.notes]
    lost = _lost_weights(session)
    if lost:
        notes.append(f"parameters without an equal in the port: {_shortened(lost)}")
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
        trained = _compare(pair, True, say)
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
            f"{_shortened(list(session.errors), 3)}"
        )
    index = session.index
    notes.append(
        f"{len(session.graph.nodes)} operations against "
        f"{len(index.entries)} values of the port ({pair.pure.kind}), "
        f"{index.lookups} looked up, {index.sorts} sorted, {session.trials} "
        f"edits tried, {time.perf_counter() - started:.1f} s"
    )
    unseen = [*forward.branches, *_unseen(session, kinds)]
    explained = same or (bool(findings) and not unknown and judged)
    return Report(
        same,
        explained,
        forward.distance,
        forward.distance if same else remaining,
        findings,
        forward.narrowings,
        unseen,
        notes,
        forward.operations,
    )


def _compare(pair: Pair, train: bool, say: Progress) -> Comparison:
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
        _check_weights(graph, index, pair.leaves)
    ids += [index.add(x, "input", f"input {k}", []) for k, x in enumerate(arrays)]
    interpreter = record_jax.Interpreter(index.add)
    outs, _ = record_jax.evaluate(traced, [*pair.leaves, *arrays], ids, interpreter)
    theirs = pick_output(_labelled(traced, outs, pure), output, "JAX")
    _pair_outputs(graph, first, theirs)
    chosen = [next(i for i, out in enumerate(outs) if out is x) for _, x in theirs]
    port_outputs = [np.asarray(x) for _, x in theirs]
    if not train:
        _check_harness(pair, graph)
        _check_port(pair, port_outputs, theirs)
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
    _costs(session, narrowings)
    if not train:
        _port_costs(pair, arrays, theirs, narrowings)
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


def _labelled(
    traced: record_jax.Traced, outs: Sequence[Any], pure: record_jax.Pure
) -> list[tuple[str, Any]]:
    """The port's output by its labels, the new state left out."""
    named = zip(traced.labels, outs)
    if not pure.stateful:
        return list(named)
    return [
        (n.removeprefix("0").removeprefix("."), x) for n, x in named if n == "0" or n[:2] == "0."
    ]


def _costs(session: Session, narrowings: list[Narrowing]) -> None:
    """What each narrowing of the reference costs: the outputs with it against the outputs
    without."""
    graph = session.graph
    if sum(v.numel() for v in graph.values) > 1 << 24:
        return
    for narrowing in narrowings:
        if narrowing.side != "torch":
            continue
        edits = {
            n.index: record_torch.Edit(_rounded(n.op, n.narrowed))
            for n in graph.nodes
            if n.narrowed is not None and n.where == narrowing.where
        }
        if edits:
            changed = graph.run(edits, first=min(edits))
            far = [
                align_distance(numbers(graph.values[o]), numbers(changed[o]))
                for o in graph.outputs
                if o in changed
            ]
            narrowing.cost = max(far, default=0.0)


def _port_costs(
    pair: Pair,
    arrays: Sequence[np.ndarray],
    named: Sequence[tuple[str, Any]],
    narrowings: Sequence[Narrowing],
) -> None:
    """What each narrowing of the port costs: the port is traced and evaluated with it alone."""
    if sum(int(np.size(x)) for x in pair.leaves) > CHECKED:
        return
    values = [*pair.leaves, *arrays]
    for narrowing in [n for n in narrowings if n.side == "jax"][:SHOWN]:
        place = (narrowing.where, narrowing.dtype)
        traced = record_jax.trace(pair.called, pair.leaves, arrays, place)
        interpreter = record_jax.Interpreter(round_at=place)
        outs, _ = record_jax.evaluate(traced, values, [-1] * len(values), interpreter)
        rounded = dict(zip(traced.labels, outs))
        narrowing.cost = max(
            (align_distance(np.asarray(x), np.asarray(rounded[n])) for n, x in named), default=0.0
        )


def _rounded(op: Any, dtype: torch.dtype) -> Any:
    return lambda *args, **kwargs: op(*args, **kwargs).to(dtype).to(record_torch.WIDE[dtype])


def _check_weights(graph: record_torch.Graph, index: Index, leaves: Sequence[Any]) -> None:
    """Raise if no parameter of the reference is in the port."""
    own = [
        v
        for v, s in zip(graph.values, graph.source)
        if s.startswith("param:") and v.dtype == torch.float64 and evidence(numbers(v))
    ]
    held = [
        x for x in leaves if isinstance(x, np.ndarray) and x.dtype == np.float64 and x.size >= 8
    ]
    if not own or not held:
        return
    if any(index.find(numbers(v), 1e-12) is not None for v in own):
        return
    numbers_held = np.sort(np.concatenate([x.reshape(-1) for x in held]))
    for value in own:
        flat = numbers(value).reshape(-1)
        sample = flat[:: max(1, flat.size // 64)][:64]
        place = np.searchsorted(numbers_held, sample).clip(1, numbers_held.size - 1)
        near = np.minimum(
            np.abs(numbers_held[place] - sample), np.abs(numbers_held[place - 1] - sample)
        )
        if float((near <= 1e-6 * np.abs(sample)).mean()) > 0.5:
            return
    raise PortError(
        f"none of the reference's {len(own)} weights of 8 numbers "
        "or more is found in the port: the two hold other weights. "
        'Convert the weights first, or give weights="transfer" to have them put into the port'
    )


def _lost_weights(session: Session) -> list[str]:
    """Parameters whose values the port does not hold, in any split."""
    lost = []
    for name, i in session.graph.params().items():
        if session.status(i) != "lost" or not any(
            u in session.live for u in session.graph.consumers.get(i, [])
        ):
            continue
        value = numbers(session.graph.values[i])
        if not any(
            value.shape
            and value.shape[0] % n == 0
            and all(session.index.find(part, 1e-12) is not None for part in np.split(value, n))
            for n in (2, 3, 4)
        ):
            lost.append(name)
    return lost


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
            elif node.name not in ("convolution", "mm", "addmm"):
                return False
    return True


def _unseen(session: Session, kinds: tuple[str, ...]) -> list[str]:
    """What these inputs and weights could not show."""
    graph = session.graph
    found: list[str] = []
    constant = [
        n
        for n, i in graph.params().items()
        if graph.values[i].numel() >= 2
        and graph.values[i].dtype == torch.float64
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
    for node in graph.nodes:
        if (
            node.name in ("gelu", "silu")
            and node.refs
            and float(graph.values[node.refs[0]].abs().max()) < 1
        ):
            found.append(f"{node.place}: no input beyond 1, the activation's tails are not reached")
            break
    masks = [n for n in graph.nodes if n.name in ("masked_fill", "where")]
    if masks and not any(
        bool(graph.values[r].any())
        for n in masks
        for r in n.refs
        if graph.values[r].dtype == torch.bool
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


def _pair_outputs(
    graph: record_torch.Graph, mine: list[tuple[str, Any]], theirs: list[tuple[str, Any]]
) -> None:
    """Choose the arrays that are compared, in place."""
    if len(mine) == len(theirs) == 1:
        return
    if len(mine) == len(theirs) and all(
        int(np.prod(a.shape)) == int(np.prod(b.shape)) for (_, a), (_, b) in zip(mine, theirs)
    ):
        return
    a, b = preferred(mine), preferred(theirs)
    keep = [k for k, (n, _) in enumerate(mine) if n == a[0][0]][:1]
    graph.outputs[:] = [graph.outputs[k] for k in keep]
    theirs[:] = b


def _check_harness(pair: Pair, graph: record_torch.Graph) -> None:
    """Each model against itself: a model that differs from itself cannot be compared."""
    random = [n for n in graph.nodes if n.name in RANDOM]
    size = sum(v.numel() for v, s in zip(graph.values, graph.source) if s.startswith("param:"))
    if not random and size > CHECKED:
        return
    model = record_torch.widened(pair.torch_model)
    if isinstance(model, torch.nn.Module):
        model.eval()
    names, inputs = record_torch.split_inputs(pair.inputs)
    tensors = [record_torch.to_torch(x) for x in inputs]
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            results = []
            for _ in range(2):
                out = record_torch.call(model, names, tensors)
                results.append([t.clone() for _, t in pick_torch(out, pair.output)])
    finally:
        torch.set_default_dtype(default)
    for a, b in zip(*results):
        d = align_distance(numbers(a.double()), numbers(b.double()))
        if d > 1e-9:
            raise PortError(
                f"the PyTorch model differs from itself by {d:.1e} on "
                "the same input: something in it is random in eval mode "
                "(dropout called with training=True?) or "
                "nondeterministic; make it deterministic first"
            )


def _check_port(
    pair: Pair, outputs: Sequence[np.ndarray], named: Sequence[tuple[str, Any]]
) -> None:
    """The port against itself, traced and evaluated once more."""
    if sum(int(np.size(x)) for x in pair.leaves) > CHECKED:
        return
    traced, arrays, _ = pair.trace()
    values = [*pair.leaves, *arrays]
    interpreter = record_jax.Interpreter()
    outs, _ = record_jax.evaluate(traced, values, [-1] * len(values), interpreter)
    again = dict(zip(traced.labels, outs))
    for (name, _), first in zip(named, outputs):
        second = np.asarray(again[name]) if name in again else first
        d = align_distance(first, second)
        if first.shape != second.shape or d > 1e-9:
            raise PortError(
                f"the JAX model differs from itself by {d:.1e} on the same input: something in it "
                "is drawn anew in each call (np.random, a counter); make it deterministic first"
            )
