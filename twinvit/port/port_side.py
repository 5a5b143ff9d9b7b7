"""The port: a pure function of its arrays, the inputs that it takes, and its programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from twinvit.port import models
from twinvit.port.errors import PortError
from twinvit.port.outputs import apply_output
from twinvit.port.port_leaves import PortLeaves
from twinvit.port.record import jax_place, jax_trace, jax_types
from twinvit.port.record.given import float_type, split_inputs
from twinvit.port.record.jax_dependence import as_it_runs
from twinvit.port.record.jax_outputs import flattened, ordered_leaves
from twinvit.port.record.jax_place import Place
from twinvit.port.record.jax_settings import on_cpu
from twinvit.port.record.jax_trace import Traced

if TYPE_CHECKING:
    from twinvit.port.recording.stored_port import StoredPort


class PortSide:
    """A port, traced on the inputs of a comparison.

    Attributes:
        arrays: the inputs as the reference takes them, in float64.
        given: the inputs as the port takes them, where it was given its own; else None.
        leaves: the port's arrays in float64, those that were loaded into it among them.
        own_types: the port refuses float64: it is recorded in its own types.
        apart: its operations depend on its types: it was recorded in its own.
        layout: which layout of images is tried: 0 as they are, 1 images as NHWC at once.
        notes: what was done, in words.
    """

    def __init__(
        self,
        jax_model: Any,
        inputs: Any,
        arrays: Sequence[np.ndarray],
        jax_inputs: Any,
        output: Any,
        evaluate: bool = False,
    ) -> None:
        self.jax_model = jax_model
        self.inputs = inputs
        self.arrays = list(arrays)
        self.jax_inputs = jax_inputs
        self.output = output
        self.stored: StoredPort | None = jax_model if hasattr(jax_model, "stored_pure") else None
        self.pure = models.pure(jax_model, evaluate=evaluate)
        self.leaves = PortLeaves(self.pure.leaves)
        self.given = (
            None if jax_inputs is None else [jax_input(x) for x in split_inputs(jax_inputs)[1]]
        )
        self.notes: list[str] = []
        self.own_types = False
        self.apart = False
        self.layout: int | None = None

    @property
    def ambiguous_layout(self) -> bool:
        """True if an image has as many channels as columns: a port cannot refuse the wrong
        layout."""
        return self.given is None and any(
            x.ndim == 4 and x.shape[1] == x.shape[3] > 1 for x in self.arrays
        )

    def relaid(self, arrays: Sequence[np.ndarray]) -> bool:
        """True if the port took images of the reference's as NHWC."""
        return any(
            x.ndim == a.ndim == 4
            and not np.array_equal(a, x)
            and np.array_equal(a, x.transpose(0, 2, 3, 1))
            for x, a in zip(self.arrays, arrays)
        )

    def _picking(self, pure: models.Pure) -> Callable[..., Any]:
        """The port's call; a function given as `output=` is applied to what it returns."""
        if not callable(self.output):
            return pure.call

        def call(leaves: Any, *xs: Any) -> Any:
            out = pure.call(leaves, *xs)
            if pure.stateful:
                return apply_output(self.output, out[0], "JAX"), out[1]
            return apply_output(self.output, out, "JAX")

        return call

    def trace(self, *, train: bool = False) -> tuple[Traced, list[np.ndarray], models.Pure]:
        """The port's jaxpr, the inputs that it took, and the port with the call that took them."""
        if self.stored is not None:
            return self.stored.trace(self, train)
        pure = models.pure(self.jax_model, train=True) if train else self.pure
        if self.given is not None:
            tries = [("", self.given)]
        else:
            same = [jax_input(x) for x in self.arrays]
            tries = [("", same)]
            if any(x.ndim == 4 for x in same):
                tries.append(
                    (
                        "images were given to the port as NHWC",
                        [x.transpose(0, 2, 3, 1) if x.ndim == 4 else x for x in same],
                    )
                )
        errors: list[str] = []
        for own in (True,) if self.own_types else (False, True):
            self.own_types = own
            found, refused = self._first_traced(pure, tries[self.layout or 0 :], train)
            errors += refused
            if found is not None:
                if own and len(errors):
                    self.note(
                        f"the port refuses float64 ({errors[0]}); it was recorded with inputs and "
                        "parameters of its own types and computed in float64: numbers that it "
                        "makes in those types keep their rounding"
                    )
                return found
        self.own_types = False
        shapes = ", ".join(f"{x.shape} {x.dtype}" for x in tries[0][1])
        raise PortError(
            f"the port refuses its inputs ({shapes}): {errors[0]}"
            + _refused_layouts(tries, errors, self.given is not None)
        )

    def _first_traced(
        self,
        pure: models.Pure,
        tries: Sequence[tuple[str, list[np.ndarray]]],
        train: bool,
    ) -> tuple[tuple[Traced, list[np.ndarray], models.Pure] | None, list[str]]:
        """The port's jaxpr of the first of these inputs that it takes, these inputs, and the port
        with the call that takes them; and what it says of the others."""
        errors: list[str] = []
        for note, arrays in tries:
            called = replace(pure, call=self._picking(pure))
            try:
                traced = self.program(called.call, arrays, train=train)
            except PortError:
                raise
            except Exception as error:
                errors.append(
                    f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}"
                    if str(error)
                    else type(error).__name__
                )
                if pure.batched is None:
                    continue
                arrays = [jax_input(x) for x in (self.arrays if self.given is None else self.given)]
                called = replace(pure, call=self._picking(replace(pure, call=pure.batched)))
                try:
                    traced = self.program(called.call, arrays, train=train)
                except PortError:
                    raise
                except Exception:
                    continue
                note = "the port was mapped over the batch"
            self.note(note)
            return (traced, arrays, called), errors
        return None, errors

    def note(self, text: str) -> None:
        """Take up a note, once."""
        if text and text not in self.notes:
            self.notes.append(text)

    def program(
        self, call: Callable[..., Any], arrays: Sequence[np.ndarray], *, train: bool = False
    ) -> Traced:
        """The jaxpr of `call(leaves, *arrays)` with unrounded constants, and with the numbers that
        depend on the types as they are where the port runs."""
        leaves, inputs = self.typed(arrays)
        try:
            traced = jax_trace.trace(call, leaves, inputs)
        except Exception:
            if not self.own_types:
                raise
            # it mixes integers of 32 bits with JAX's own, which are of 64 in the other trace
            return jax_trace.trace_as_it_runs(call, self.own_leaves(), self.own_inputs(arrays))
        try:
            own = jax_trace.trace_as_it_runs(call, self.own_leaves(), self.own_inputs(arrays))
        except Exception:
            return traced  # it does not run in its own types, which the native run says
        closed, found = as_it_runs(traced.closed, own.closed, _place)
        if found.apart and train:
            return traced  # random numbers are drawn in other widths
        if found.apart:
            self.apart = True
            self.note(
                "the port's program depends on the types that it is given "
                f"({found.apart}); it was recorded in its own and computed in float64"
            )
            return Traced(closed, own.labels, {}, found.marks, closed)
        for place in found.constants:
            self.note(
                f"a number of the port depends on the type of what it is computed with ({place}); "
                "it was taken as the port runs"
            )
        return replace(traced, closed=closed, marks=found.marks, own=own.closed)

    def gradient(
        self,
        pure: models.Pure,
        arrays: Sequence[np.ndarray],
        cotangents: Mapping[int, np.ndarray],
    ) -> tuple[Traced, list[np.ndarray]]:
        """The jaxpr of the gradients of sum(outputs * cotangents) by the floating-point leaves, and
        what it takes after the leaves.

        Args:
            cotangents: by the place of an output among all that the port returns; float64.
        """
        if self.stored is not None:
            return self.stored.gradient(arrays, cotangents)
        places = list(cotangents)
        floats = self.floats()

        def loss(some: list[Any], rest: list[Any], xs: Any, cotangents: Any) -> Any:
            leaves = list(rest)
            for i, x in zip(floats, some):
                leaves[i] = x
            found = [x for _, x in ordered_leaves(pure.call(leaves, *xs))]
            return sum((found[p] * c).sum() for p, c in zip(places, cotangents))

        def gradient(leaves: list[Any], *given: Any) -> Any:
            xs, cotangents = given[: len(arrays)], given[len(arrays) :]
            return jax.grad(loss)([leaves[i] for i in floats], leaves, xs, cotangents)

        given = [*arrays, *cotangents.values()]
        return self.program(gradient, given), given

    def floats(self) -> list[int]:
        """Places of the leaves of floating-point values."""
        return [i for i in range(len(self.leaves)) if self.leaves.is_real(i)]

    def own_program(self, pure: models.Pure, arrays: Sequence[np.ndarray]) -> tuple[Any, Any]:
        """The jaxpr of the port as it runs, in its own types, and its outputs' names."""
        if self.stored is not None:
            return self.stored.own_program()
        with on_cpu(x64=False):
            call = jax.make_jaxpr(flattened(pure.call), return_shape=True)
            closed, shapes = call(self.own_leaves(), *self.own_inputs(arrays))
        return closed, shapes.names

    def wide_program(self, pure: models.Pure, arrays: Sequence[np.ndarray]) -> Any:
        """The jaxpr of the port with 64-bit types."""
        if self.stored is not None:
            return self.stored.wide_program()
        with on_cpu(x64=True):
            leaves, inputs = self.typed(arrays)
            call = jax.make_jaxpr(flattened(pure.call), return_shape=True)
            return call(list(leaves), *inputs)[0]

    def rounding(
        self, pure: models.Pure, arrays: Sequence[np.ndarray], place: Place
    ) -> Traced | None:
        """The port traced with the rounding to a narrower type at one place; None where the port is
        a recording, which holds the program that rounds nowhere."""
        if self.stored is not None:
            return None
        return jax_trace.trace(pure.call, *self.typed(arrays), place)

    def own_narrowings(self, places: Iterable[Place]) -> list[Place]:
        """Of a recording's narrowings those that the port makes: not the types that it was given,
        where it was recorded in its own."""
        if not self.own_types and not self.apart:
            return list(places)
        given = {np.dtype(x.dtype).name for x in self.pure.leaves if hasattr(x, "dtype")}
        return [p for p in places if p[1] not in given | {"float32"}]

    def typed(self, arrays: Sequence[np.ndarray]) -> tuple[list[Any], list[np.ndarray]]:
        """Parameters and inputs to record the port with: in float64, or in its own types where it
        refuses float64."""
        if not self.own_types:
            return self.leaves.shapes(), list(arrays)
        inputs = [x.astype(np.int32) if x.dtype == np.int64 else x for x in self.own_inputs(arrays)]
        return self.own_leaves(), inputs

    def own_leaves(self) -> list[Any]:
        """The port's parameters in its own types, those that were loaded into it among them."""
        result = []
        for k, own in enumerate(self.pure.leaves):
            value, dtype = self.leaves.kept(k), getattr(own, "dtype", None)
            if dtype is None or not jax_types.is_narrow(dtype):
                value = jax_types.widen(value)
            elif value.dtype != dtype:
                value = value.astype(np.dtype(dtype))
            result.append(value)
        return result

    def own_inputs(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The inputs that the port took, in the types that they were given in; float64 as
        float32."""
        given = split_inputs(self.inputs if self.jax_inputs is None else self.jax_inputs)[1]
        result = []
        for k, array in enumerate(arrays):  # cotangents may follow
            if array.dtype.kind == "f":
                dtype = float_type(given[k]) if k < len(given) else "float32"
                array = array.astype(jax.numpy.dtype("float32" if dtype == "float64" else dtype))
            result.append(array)
        return result


def _refused_layouts(
    tries: Sequence[tuple[str, list[np.ndarray]]], errors: Sequence[str], given: bool
) -> str:
    """What the port said of images in the other layout, and what to do about the inputs."""
    text = ""
    if len(tries) > 1 and len(errors) > 1 and errors[1] != errors[0]:
        shapes = ", ".join(str(x.shape) for x in tries[1][1])
        text = f"; and as NHWC ({shapes}): {errors[1]}"
    if not given:
        return f"{text}; give jax_inputs= as the port takes them"
    # Few channels before many columns: the shape of NCHW, which ports rarely take.
    first = any(x.ndim == 4 and x.shape[1] <= 4 < x.shape[3] for x in tries[0][1])
    return f"{text}; are its images NHWC?" if first else text


def _place(eqn: Any) -> str:
    return jax_place.frames(eqn.source_info)[0]


def jax_input(x: Any) -> np.ndarray:
    array = np.asarray(x)
    return jax_types.widen(array)
