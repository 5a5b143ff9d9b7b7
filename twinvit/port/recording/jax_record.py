"""Record a JAX model into a folder; needs no PyTorch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from twinvit.port.envelope import model_name
from twinvit.port.errors import PortError
from twinvit.port.given_jax import checked_jax
from twinvit.port.index import align_distance
from twinvit.port.native.jax_side import run_alone
from twinvit.port.native.result import NativeRun, first_line
from twinvit.port.port_side import PortSide, jax_input
from twinvit.port.record import jax_trace
from twinvit.port.record.given import split_inputs
from twinvit.port.record.jax_interpreter import Interpreter
from twinvit.port.record.jax_trace import Traced
from twinvit.port.recording.arrays import Written
from twinvit.port.recording.jax_primitives import Unwritable
from twinvit.port.recording.jax_program import Encoder, Run

CHECKED = 1 << 21  # parameters up to which a model is run again by itself
Say = Callable[[str], None]


class _Traces:
    """A port in one mode and one layout of its images, traced.

    Attributes:
        gradient: the program of its gradients, and what it takes after the leaves.
        places: of the outputs whose cotangents that takes.
    """

    def __init__(self, side: PortSide, train: bool, gradients: bool) -> None:
        side.notes, side.own_types, side.apart = [], False, False
        self.traced, self.arrays, self.pure = side.trace(train=train)
        self.notes, self.own_types, self.apart = list(side.notes), side.own_types, side.apart
        self.native = NativeRun()
        self.ran: Any = None
        try:
            self.ran = run_alone(side, self.pure, self.arrays, self.native)
        except Exception as error:
            self.error = first_line(error)
        self.gradient: tuple[Traced, list[np.ndarray]] | None = None
        self.places: list[int] = []
        if gradients and not train:
            self._differentiate(side)

    def _differentiate(self, side: PortSide) -> None:
        avals = self.traced.closed.out_avals
        self.places = [
            k for k, a in enumerate(avals) if jax.dtypes.issubdtype(a.dtype, np.floating)
        ]
        cotangents = {k: np.ones(avals[k].shape) for k in self.places}
        self.gradient = side.gradient(self.pure, self.arrays, cotangents)

    def programs(self, leaves: Sequence[Any]) -> list[tuple[Traced, list[Any]]]:
        """Every program of it, with what it is evaluated on."""
        values = [*leaves, *self.arrays]
        found = [(self.traced, values)]
        if self.traced.own is not None and self.traced.own is not self.traced.closed:
            found.append((Traced(self.traced.own, self.traced.labels, {}), values))
        if self.gradient is not None:
            found.append((self.gradient[0], [*leaves, *self.gradient[1]]))
        return found

    def written(self, encoder: Encoder) -> dict[str, Any]:
        traced = self.traced
        gradient = None
        if self.gradient is not None:
            number = encoder.program(self.gradient[0].closed)
            gradient = {"closed": number, "places": self.places}
        return {
            "arrays": [encoder.constant(x) for x in self.arrays],
            "own_types": self.own_types,
            "apart": self.apart,
            "notes": self.notes,
            "stateful": self.pure.stateful,
            "labels": list(traced.labels),
            "narrowings": [list(p) for p in traced.narrowings],
            "closed": encoder.program(traced.closed),
            "own": None if traced.own is None else encoder.program(traced.own),
            "marks": encoder.marks(traced.marks),
            "ran": self._written_run(encoder),
            "gradient": gradient,
        }

    def _written_run(self, encoder: Encoder) -> dict[str, Any]:
        if self.ran is None:
            return {"error": self.error}
        return {
            "arrays": [encoder.constant(x) for x in self.ran.arrays],
            "names": list(self.ran.names),
            "jitted": self.native.jitted,
            "notes": self.native.notes,
        }


class _Watching(Interpreter):
    """Stores what some equations are run with and return."""

    def __init__(self, wanted: Mapping[int, Any], runs: dict[int, list[Run]]) -> None:
        super().__init__()
        self.wanted, self.runs = wanted, runs

    def equation(self, eqn: Any, values: list[Any], ids: list[int]) -> tuple[list[Any], list[int]]:
        outs, found = super().equation(eqn, values, ids)
        if id(eqn) in self.wanted:
            self.runs.setdefault(id(eqn), []).append((list(values), list(outs)))
        return outs, found


def jax_program_of(
    model: Any,
    inputs: Any,
    output: Any,
    what: Sequence[str],
    say: Say,
    jax_inputs: Any = None,
) -> tuple[dict[str, Any], Written]:
    """What a recording holds of a JAX model, and its arrays.

    Args:
        model: as `port.explain` takes it; it is not changed.
        inputs: NumPy arrays as the PyTorch model takes them, a tuple or a mapping.
        output: a function that chooses of what the model returns, or None.
        what: of "forward", "grad", "train".
        say: called with what is being done.
        jax_inputs: arrays as this model takes them, where it takes others.

    Raises:
        PortError: the model does not run, or differs from itself.
    """
    notes: list[str] = []
    model = checked_jax(model, notes)
    given = [jax_input(x) for x in split_inputs(inputs)[1]]
    train = "train" in what
    side = PortSide(model, inputs, given, jax_inputs, output, evaluate=train)
    modes: dict[str, list[_Traces | None]] = {}
    for mode in ("eval", "train") if train else ("eval",):
        say(f"recording the JAX model, {'train mode' if mode == 'train' else 'evaluation'}")
        modes[mode] = _layouts(side, mode == "train", "grad" in what)
    _check(side, modes["eval"])
    say("writing")
    traces = [t for both in modes.values() for t in both if t is not None]
    arrays = Written()
    encoder = _encoder(side, traces, arrays)
    names, raw = split_inputs(inputs)
    own = None if jax_inputs is None else [arrays.add(x) for x in split_inputs(jax_inputs)[1]]
    found = {
        "model": model_name(model),
        "kind": side.pure.kind,
        "names": list(side.pure.names),
        "leaves": [encoder.constant(x) for x in side.pure.leaves],
        "inputs": {"names": names, "arrays": [arrays.add(x) for x in raw], "own": own},
        "modes": {
            k: [None if t is None else t.written(encoder) for t in both]
            for k, both in modes.items()
        },
        "notes": notes,
        "kinds": encoder.kinds,
        "programs": encoder.programs,
        "by_value": list(encoder.by_value),
    }
    return found, arrays


def _layouts(side: PortSide, train: bool, gradients: bool) -> list[_Traces | None]:
    """The port traced; in both layouts of its images where it may take either."""
    if not side.ambiguous_layout:
        return [_Traces(side, train, gradients)]
    found: list[_Traces | None] = []
    errors = []
    for side.layout in (0, 1):
        try:
            found.append(_Traces(side, train, gradients))
        except PortError as error:
            errors.append(error)
            found.append(None)
    if len(errors) == 2:
        raise errors[0]
    return found


def _encoder(side: PortSide, traces: Sequence[_Traces], arrays: Written) -> Encoder:
    """What writes the programs, given the values of equations that are recorded by value."""
    encoder = Encoder(Written())
    for trace in traces:
        for traced, _ in trace.programs(side.leaves):
            _write(encoder, traced.closed)
    runs: dict[int, list[Run]] = {}
    if encoder.wanted:
        for trace in traces:
            for traced, values in trace.programs(side.leaves):
                watching = _Watching(encoder.wanted, runs)
                own = traced.closed is trace.traced.own
                with contextlib.suppress(*([PortError] if own else [])):
                    _evaluated(traced, values, watching)  # in its own types it may have others
    final = Encoder(arrays)
    final.runs = runs
    return final


def _write(encoder: Encoder, closed: Any) -> None:
    try:
        encoder.program(closed)
    except Unwritable as reason:
        raise PortError(
            f"the JAX model computes what cannot be recorded: {reason}; explain it where both "
            "models are installed"
        ) from reason


def _evaluated(traced: Traced, values: Sequence[Any], interpreter: Interpreter) -> list[Any]:
    """What a program returns in float64. Raises PortError where it does not run in it."""
    try:
        return jax_trace.evaluate(traced, values, [-1] * len(values), interpreter)[0]
    except PortError:
        raise
    except Exception as error:
        raise PortError(
            f"the JAX model cannot be computed in float64: {first_line(error)}"
        ) from error


def _check(side: PortSide, traces: Sequence[_Traces | None]) -> None:
    """Raises PortError for a model that differs from itself."""
    if sum(int(np.size(x)) for x in side.leaves) > CHECKED:
        return
    for side.layout, first in enumerate(traces):
        if first is None:
            continue
        traced, arrays, _ = side.trace()
        values = [*side.leaves, *arrays]
        one = _evaluated(first.traced, values, Interpreter())
        two = _evaluated(traced, values, Interpreter())
        for a, b in zip(map(np.asarray, one), map(np.asarray, two)):
            apart = align_distance(a, b) if a.dtype.kind in "fc" else 0.0
            if a.shape != b.shape or apart > 1e-9:
                raise PortError(
                    f"the JAX model differs from itself by {apart:.1e} on the same input: "
                    "something in it is drawn anew in each call (np.random, a counter); make it "
                    "deterministic first"
                )
