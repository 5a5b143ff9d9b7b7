"""A recorded JAX model, used like the model itself: its arrays, and its programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from twinvit.port.errors import PortError
from twinvit.port.models.base import Pure
from twinvit.port.record import jax_types
from twinvit.port.record.jax_outputs import Outputs
from twinvit.port.record.jax_settings import on_cpu
from twinvit.port.record.jax_trace import Traced
from twinvit.port.recording.folder import Recorded
from twinvit.port.recording.jax_program import DAMAGED, Decoder

if TYPE_CHECKING:
    from twinvit.port.native.result import NativeRun
    from twinvit.port.port_side import PortSide


class _Mode:
    """A program in one mode and one layout of its images."""

    def __init__(self, found: Mapping[str, Any], decoder: Decoder) -> None:
        self.arrays = [np.asarray(decoder.constant(x)) for x in found["arrays"]]
        self.own_types, self.apart = bool(found["own_types"]), bool(found["apart"])
        self.notes = [str(n) for n in found["notes"]]
        self.stateful = bool(found["stateful"])
        own = None if found["own"] is None else decoder.program(found["own"])
        self.traced = Traced(
            decoder.program(found["closed"]),
            tuple(map(str, found["labels"])),
            {(str(w), str(d)): None for w, d in found["narrowings"]},
            decoder.marks(found["marks"]),
            own,
        )
        ran = found["ran"]
        self.error = str(ran.get("error", ""))
        self.ran = [decoder.constant(x) for x in ran.get("arrays", ())]
        self.ran_names = tuple(map(str, ran.get("names", ())))
        self.jitted = bool(ran.get("jitted", True))
        self.ran_notes = [str(n) for n in ran.get("notes", ())]
        self.gradient: Traced | None = None
        self.places: list[int] = []
        if found["gradient"] is not None:
            self.gradient = Traced(decoder.program(found["gradient"]["closed"]), (), {})
            self.places = [int(p) for p in found["gradient"]["places"]]


class StoredPort:
    """A recorded JAX model, as a comparison uses it.

    Attributes:
        stored_inputs: the inputs as the PyTorch model takes them; `own_inputs`, as this one does,
            where it takes others; else None.
        by_value: primitives that were recorded by their value.

    Raises PortError where the recording is damaged.
    """

    def __init__(self, recorded: Recorded) -> None:
        program, arrays = recorded.program, recorded.arrays
        decoder = Decoder(program, arrays)
        try:
            self._leaves = [decoder.constant(x) for x in program["leaves"]]
            self._names = [str(n) for n in program["names"]]
            self._kind = str(program["kind"])
            self.__qualname__ = str(program["model"])
            self.stored_notes = [str(n) for n in program["notes"]]
            self.by_value = [str(n) for n in program["by_value"]]
            self._modes = {
                str(k): [None if m is None else _Mode(m, decoder) for m in both]
                for k, both in program["modes"].items()
            }
            given = program["inputs"]
            values = [arrays[k] for k in given["arrays"]]
            names = [str(n) for n in given["names"]]
            own = given["own"]
            self.own_inputs = None if own is None else tuple(arrays[k] for k in own)
        except DAMAGED as error:
            raise PortError(f"{recorded.path} is damaged ({error}); record it again") from error
        self.stored_inputs: Any = dict(zip(names, values)) if names else tuple(values)
        self._now: _Mode | None = None

    def check(self, kinds: Sequence[str]) -> None:
        """Raises PortError where one of "forward", "grad", "train" was not recorded."""
        if "train" in kinds and "train" not in self._modes:
            raise PortError("the port was recorded without train mode; record it with --train")
        if "grad" in kinds and all(m is None or m.gradient is None for m in self._modes["eval"]):
            raise PortError("the port was recorded without gradients; record it with --grad")

    def stored_pure(self) -> Pure:
        """The port's arrays; its call is never made."""
        return Pure(_not_called, list(self._leaves), list(self._names), self._kind)

    def trace(self, side: PortSide, train: bool) -> tuple[Traced, list[np.ndarray], Pure]:
        """The recorded program, the inputs that it took, and the port.

        Raises:
            PortError: it was recorded without this mode, or not in this layout.
        """
        name = "train" if train else "eval"
        if name not in self._modes:
            raise PortError("the port was recorded without train mode; record it with --train")
        both = self._modes[name]
        mode = both[min(side.layout or 0, len(both) - 1)]
        if mode is None:
            raise PortError("the port refuses its images in this layout")
        self._now = mode
        side.own_types, side.apart = mode.own_types, mode.apart
        for note in mode.notes:
            side.note(note)
        return mode.traced, list(mode.arrays), replace(side.pure, stateful=mode.stateful)

    @property
    def _mode(self) -> _Mode:
        assert self._now is not None  # a program was requested before
        return self._now

    def gradient(
        self, arrays: Sequence[np.ndarray], cotangents: Mapping[int, np.ndarray]
    ) -> tuple[Traced, list[np.ndarray]]:
        """The recorded program of the gradients, and what it takes after the leaves.

        Raises:
            PortError: it was recorded without.
        """
        mode = self._mode
        if mode.gradient is None:
            raise PortError("the port was recorded without gradients; record it with --grad")
        avals = mode.traced.closed.out_avals
        given = [cotangents.get(p, np.zeros(avals[p].shape)) for p in mode.places]
        return mode.gradient, [*arrays, *given]

    def own_program(self) -> tuple[Any, Any]:
        """The recorded program in its own types, and its outputs' names."""
        if self._mode.traced.own is None:
            raise ValueError("it does not run in its own types")
        return self._mode.traced.own, self._mode.traced.labels

    def wide_program(self) -> Any:
        """The recorded program with 64-bit types."""
        return self._mode.traced.closed

    def as_it_ran(self, side: PortSide, native: NativeRun) -> Outputs:
        """What the port returned where it was recorded; with other arrays, what its program returns
        here. Raises RuntimeError where it did not run."""
        mode = self._mode
        same = zip(side.leaves, map(jax_types.widen, self._leaves))
        if not all(a is b or _equal(a, b) for a, b in same):
            return self._run_again(side)
        if mode.error:
            raise RuntimeError(mode.error)
        native.jitted = mode.jitted
        native.notes += mode.ran_notes
        return Outputs(list(mode.ran), mode.ran_names)

    def _run_again(self, side: PortSide) -> Outputs:
        from twinvit.port.native.jax_place import Watch

        closed, names = self.own_program()
        values = [*side.own_leaves(), *side.own_inputs(self._mode.arrays)]
        with on_cpu(x64=False):
            outs, _ = Watch(lambda *_: 0, narrow=True).closed(closed, values, [-1] * len(values))
        return Outputs([x if _is_key(x) else np.asarray(x) for x in outs], names)


def _equal(a: Any, b: Any) -> bool:
    if _is_key(a) or _is_key(b):
        return True  # nothing changes them
    return np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind in "fc")


def _is_key(x: Any) -> bool:
    return bool(jax_types.extended(getattr(x, "dtype", None)))


def _not_called(*_: Any) -> Any:
    raise PortError("a recording of a port holds its programs, and no function to call")
