"""Two models and their inputs: the port as a pure function, what it is called with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from twinvit.port.errors import PortError
from twinvit.port.port_side import PortSide
from twinvit.port.record import jax_types, torch_values
from twinvit.port.record.given import split_inputs
from twinvit.port.record.torch_values import to_torch
from twinvit.port.search.loop import Progress

if TYPE_CHECKING:
    from twinvit.port.record.graph import Graph
    from twinvit.port.record.live_edits import LiveEdits
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


class Pair(PortSide):
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
        arrays = [to_torch(x).numpy() for x in split_inputs(inputs)[1]]
        super().__init__(jax_model, inputs, arrays, jax_inputs, output, evaluate)
        self.torch_model = torch_model
        self.say = say
        self.weight_map: WeightMap | None = None  # what put the reference's weights into the port
        self.rounded: list[Rounded] = []
        self.live: tuple[LiveEdits, Graph] | None = None
        """Edits that the reference is recorded with, and its recording without them."""

    def transfer(self, weights: Any) -> None:
        """Load the reference's weights into the port.

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
        """Load the reference's weights into the port by a map; returns the names of the port's
        arrays. Raises PortError if it does not fit."""
        placed = found.apply(torch_values.widened(self.torch_model).state_dict())
        position = {name: i for i, name in enumerate(self.pure.names)}
        for name, value in placed.items():
            if name not in position:
                raise PortError(f"the map of weights makes {name}, which the port does not have")
            shape = np.shape(self.leaves.kept(position[name]))
            if value.shape != shape:
                raise PortError(
                    f"the map of weights makes {name} of shape {value.shape}; the port's is {shape}"
                )
        for name, value in placed.items():
            self.leaves[position[name]] = jax_types.widen(value)
        self.weight_map = found
        return list(placed)


def shortened(names: Sequence[str], shown: int = 8) -> str:
    return ", ".join(names[:shown]) + (" ..." if len(names) > shown else "")
