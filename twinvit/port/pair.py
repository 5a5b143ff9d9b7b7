"""Two models and their inputs: the port as a pure function, what it is called with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import torch

from twinvit.port import models
from twinvit.port.errors import PortError
from twinvit.port.outputs import apply_output
from twinvit.port.record import jax_place, jax_trace, jax_types, torch_values
from twinvit.port.record.jax_dependence import as_it_runs
from twinvit.port.record.jax_place import Place
from twinvit.port.record.jax_trace import Traced
from twinvit.port.search.loop import Progress

if TYPE_CHECKING:
    from twinvit.port.weight_map import WeightMap


@dataclass(frozen=True)
class Rounded:
    """Weights of "reference" or "port" that were rounded, or put in order, as the other side holds
    them.

    Attributes:
        given, taken: the arrays by name, before and after; float64.
        text: what was found, in words.
        cause: its identifier; "" for weights that were rounded.
        place: where; the first array's name if empty.
    """

    side: str
    given: dict[str, np.ndarray]
    taken: dict[str, np.ndarray]
    text: str
    cause: str = ""
    place: str = ""


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
        self.pure = models.pure(jax_model, evaluate=evaluate)
        self.leaves = [jax_types.widen(x) for x in self.pure.leaves]
        self.notes: list[str] = []
        self.torch_arrays = [
            torch_values.to_torch(x).numpy() for x in torch_values.split_inputs(inputs)[1]
        ]
        self.jax_inputs = jax_inputs
        self.given = (
            None
            if jax_inputs is None
            else [jax_input(x) for x in torch_values.split_inputs(jax_inputs)[1]]
        )
        self.jax_model = jax_model
        self.weight_map: WeightMap | None = None  # what put the reference's weights into the port
        self.own_types = False  # the port refuses float64: it is recorded in its own types
        self.rounded: list[Rounded] = []
        self.apart = False  # its operations depend on its types: it was recorded in its own
        self.layout: int | None = None  # 0: as they are, 1: images as NHWC at once

    @property
    def ambiguous_layout(self) -> bool:
        """True if an image has as many channels as columns: a port cannot refuse the wrong
        layout."""
        return self.given is None and any(
            x.ndim == 4 and x.shape[1] == x.shape[3] > 1 for x in self.torch_arrays
        )

    def relaid(self, arrays: Sequence[np.ndarray]) -> bool:
        """True if the port took images of the reference's as NHWC."""
        return any(
            x.ndim == a.ndim == 4
            and not np.array_equal(a, x)
            and np.array_equal(a, x.transpose(0, 2, 3, 1))
            for x, a in zip(self.torch_arrays, arrays)
        )

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
        placed = self.place(found)
        kept = [n for n in self.pure.names if n not in placed]
        self.notes.append(
            f"the reference's weights were put into the port by a map of {len(placed)} arrays"
            + (f"; {len(kept)} others were left as they were: {shortened(kept)}" if kept else "")
        )

    def place(self, found: WeightMap) -> list[str]:
        """Put the reference's weights into the port by a map; returns the names of the port's
        arrays. Raises PortError if it does not fit."""
        placed = found.apply(torch_values.widened(self.torch_model).state_dict())
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
            self.leaves[position[name]] = jax_types.widen(value)
        self.weight_map = found
        return list(placed)

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
        pure = models.pure(self.jax_model, train=True) if train else self.pure
        if self.given is not None:
            tries = [("", self.given)]
        else:
            same = [jax_input(x) for x in self.torch_arrays]
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
                    self._note(
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
                arrays = [
                    jax_input(x) for x in (self.torch_arrays if self.given is None else self.given)
                ]
                called = replace(pure, call=self._picking(replace(pure, call=pure.batched)))
                try:
                    traced = self.program(called.call, arrays, train=train)
                except PortError:
                    raise
                except Exception:
                    continue
                note = "the port was mapped over the batch"
            self._note(note)
            return (traced, arrays, called), errors
        return None, errors

    def _note(self, text: str) -> None:
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
            self._note(
                "the port's program depends on the types that it is given "
                f"({found.apart}); it was recorded in its own and computed in float64"
            )
            return Traced(closed, own.labels, {}, found.marks, closed)
        for place in found.constants:
            self._note(
                f"a number of the port depends on the type of what it is computed with ({place}); "
                "it was taken as the port runs"
            )
        return replace(traced, closed=closed, marks=found.marks, own=own.closed)

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
            return self.leaves, list(arrays)
        inputs = [x.astype(np.int32) if x.dtype == np.int64 else x for x in self.own_inputs(arrays)]
        return self.own_leaves(), inputs

    def own_leaves(self) -> list[Any]:
        """The port's parameters in its own types, those that were put into it among them."""
        result = []
        for own, value in zip(self.pure.leaves, self.leaves):
            dtype = getattr(own, "dtype", None)
            if dtype is not None and jax_types.is_narrow(dtype):
                value = np.asarray(value).astype(np.dtype(dtype))
            result.append(value)
        return result

    def own_inputs(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The inputs that the port took, in the types that they were given in; float64 as
        float32."""
        given = torch_values.split_inputs(
            self.inputs if self.jax_inputs is None else self.jax_inputs
        )[1]
        result = []
        for array, x in zip(arrays, given):
            if array.dtype.kind == "f":
                dtype = torch_values.float_type(x)
                array = array.astype(jax.numpy.dtype("float32" if dtype == "float64" else dtype))
            result.append(array)
        return result


def shortened(names: Sequence[str], shown: int = 8) -> str:
    return ", ".join(names[:shown]) + (" ..." if len(names) > shown else "")


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
