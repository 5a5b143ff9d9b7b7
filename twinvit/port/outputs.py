"""Which arrays of what the two models return are compared, and in which layout."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from twinvit.port import verdict
from twinvit.port.errors import PortError

PREFERRED = ("logits", "last_hidden_state")
Leaves = list[tuple[str, Any]]
"""Names ("logits", "aux.0"; "" for an array alone) and arrays, in the order of the model's own."""


@dataclass
class Paired:
    """One output of the reference and the port's that it is compared with.

    Attributes:
        name, theirs: the names on either side, "" for an array alone.
        mine: position among the reference's arrays.
        port: position among the port's arrays; None where there is none.
        shape, port_shape: the shapes as the models return them.
        layout: how the port's array becomes the reference's; None if no order of axes fits.
        note: why it is not compared; "" where it is.
    """

    name: str
    theirs: str
    mine: int
    port: int | None
    shape: tuple[int, ...]
    port_shape: tuple[int, ...] | None = None
    layout: verdict.Layout | None = None
    note: str = ""

    @property
    def title(self) -> str:
        return self.name or self.theirs or "the output"

    def fix_layout(self, mine: np.ndarray, theirs: np.ndarray, relaid: bool = False) -> None:
        """Choose the order of the port's axes, on these values, once for all.

        `relaid`: the port was given its images as NHWC, and may return images so where shapes do
        not tell (as many channels as rows and columns). No other order is tried for equal shapes.
        """
        self.port_shape = tuple(theirs.shape)
        self.layout = verdict.best_layout(mine, theirs, relaid)

    def arrange(self, theirs: np.ndarray) -> np.ndarray:
        """The port's array in the reference's layout; as it is where none fits."""
        return theirs if self.layout is None else verdict.arrange(theirs, self.layout)

    @property
    def permuted(self) -> tuple[int, ...] | None:
        """The order of the port's axes, where it is not that of the reference's."""
        if self.layout is None or self.port_shape is None:
            return None
        order = self.layout[0]
        return None if list(order) == sorted(order) else order


def leaves_of(out: Any) -> Leaves:
    """Names and arrays of what the PyTorch model returned, numbers among them, in its own order."""
    import torch  # here, so that a port can be recorded where PyTorch is not installed

    if isinstance(out, torch.Tensor):
        return [("", out)]
    if isinstance(out, bool | int | float):
        kind = {bool: torch.bool, int: torch.int64}.get(type(out), torch.float64)
        return [("", torch.tensor(out, dtype=kind))]
    if isinstance(out, Mapping):
        return [(_join(k, n), t) for k, v in out.items() for n, t in leaves_of(v)]
    if dataclasses.is_dataclass(out) and not isinstance(out, type):
        fields = [f.name for f in dataclasses.fields(out)]
        return [(_join(k, n), t) for k in fields for n, t in leaves_of(getattr(out, k))]
    if isinstance(out, tuple | list):
        names = getattr(out, "_fields", range(len(out)))
        return [(_join(k, n), t) for k, v in zip(names, out) for n, t in leaves_of(v)]
    return []


def _join(key: Any, name: str) -> str:
    return f"{key}.{name}".rstrip(".")


def apply_output(output: Any, out: Any, side: str) -> Any:
    """What a function given as `output=` makes of what a model returned; else `out` itself."""
    if not callable(output):
        return out
    try:
        return output(out)
    except Exception as error:
        raise PortError(
            f"output= fails on what the {side} model returns: {type(error).__name__}: {error}"
        ) from error


def pick(leaves: Leaves, output: Any, side: str, others: Sequence[str] = ()) -> Leaves:
    """The arrays of a structured output that `output=` names, else all.

    An array alone is what `output=` names on the other side. `others` are the names that side has.

    Raises:
        PortError: there is none, or none of that name; the message lists those that there are.
    """
    if not leaves:
        raise PortError(f"the {side} model returns no array; choose one with output=, a function")
    if output is None or callable(output) or [n for n, _ in leaves] == [""]:
        return leaves
    chosen = [(n, x) for n, x in leaves if n == str(output) or n.split(".")[0] == str(output)]
    if not chosen:
        names = [n for n, _ in leaves]
        near = difflib.get_close_matches(str(output), names, n=1)
        raise PortError(
            f"the {side} model's output has no {output!r}; it has {', '.join(names)}"
            + (f", the other model's {', '.join(others)}" if others else "")
            + (f"; did you mean {near[0]!r}?" if near else "; give output= a function that picks")
        )
    return chosen


def check_chosen(output: Any, mine: Leaves, theirs: Leaves) -> None:
    """Raises PortError if `output=` names an array, and both models return one alone."""
    if output is None or callable(output):
        return
    if [n for n, _ in mine] == [n for n, _ in theirs] == [""]:
        raise PortError(
            f"output={output!r} names an array of a structured output, and both models return an "
            "array alone; leave output= out"
        )


def pick_torch(out: Any, output: Any) -> Leaves:
    """The compared arrays of what the PyTorch model returned."""
    return pick(leaves_of(apply_output(output, out, "PyTorch")), output, "PyTorch")


def pair_outputs(mine: Leaves, theirs: Leaves) -> list[Paired]:
    """Pair the reference's arrays with the port's: by name, then by position, never by size."""
    taken: dict[int, int] = {}
    if len(mine) == 1 or len(theirs) == 1:
        k, p = _preferred(mine), _preferred(theirs)
        same = [j for j, (n, _) in enumerate(theirs) if n == mine[k][0]]
        if len(theirs) == 1:
            named = [j for j, (n, _) in enumerate(mine) if n and n == theirs[0][0]]
            taken[named[0] if named else k] = 0
        else:
            taken[k] = same[0] if same else p
    else:
        for k, (name, _) in enumerate(mine):
            same = [j for j, (n, _) in enumerate(theirs) if n == name]
            if same:
                taken[k] = same[0]
        left = [k for k in range(len(mine)) if k not in taken]
        rest = [j for j in range(len(theirs)) if j not in taken.values()]
        if len(left) == len(rest) or not taken:
            taken.update(zip(left, rest))
    pairs = []
    for k, (name, array) in enumerate(mine):
        j = taken.get(k)
        other = "" if j is None else theirs[j][0]
        pair = Paired(name, other, k, j, tuple(array.shape))
        if j is None:
            pair.note = "the port returns nothing that is named or placed like it"
        pairs.append(pair)
    return pairs


def by_numbers(
    pairs: Sequence[Paired], mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray]
) -> str:
    """Where one side returns a tuple and the other names, whose order JAX sorts: exchange the
    port's arrays if all agree then and not as they are placed. What was done, in words.

    Args:
        pairs: the compared outputs, changed in place.
        mine, theirs: the arrays of both sides, in the order of `pairs`.
    """
    mixed = all(_named(p.theirs) and not _named(p.name) for p in pairs)
    if [p.theirs for p in pairs] != sorted(p.theirs for p in pairs):
        return ""  # not sorted: the port's own order
    if len(pairs) < 2 or len(pairs) > 5 or not mixed:
        return ""
    alike = [[_alike(a, b) for b in theirs] for a in mine]
    orders = itertools.permutations(range(len(pairs)))
    order = next((o for o in orders if all(alike[k][j] for k, j in enumerate(o))), None)
    if order is None or list(order) == sorted(order):
        return ""
    old = [(p.theirs, p.port) for p in pairs]
    for k, j in enumerate(order):
        pairs[k].theirs, pairs[k].port = old[j]
    names = ", ".join(n for n, _ in old if _named(n)) or ", ".join(p.name for p in pairs)
    return (
        f"one side returns a tuple and the other names ({names}), whose order JAX sorts: they "
        "were paired by their numbers; return names on both sides, or choose one with output="
    )


def _named(name: str) -> bool:
    return any(not part.isdigit() for part in name.split("."))


def _alike(mine: np.ndarray, theirs: np.ndarray) -> bool:
    layout = verdict.best_layout(mine, theirs)
    return layout is not None and verdict.relative(mine, verdict.arrange(theirs, layout)) < 1e-6


def preferred(leaves: Leaves) -> Leaves:
    """Of several arrays the one that is meant (logits, last_hidden_state), alone."""
    place = _preferred(leaves)
    return leaves[place : place + 1]


def _preferred(leaves: Leaves) -> int:
    """Of several arrays the one that is meant: logits or last_hidden_state, else the first of
    floating point."""
    for name in PREFERRED:
        for k, (n, _) in enumerate(leaves):
            if n.split(".")[-1] == name:
                return k
    return next((k for k, (_, x) in enumerate(leaves) if is_float(x)), 0)


def is_float(x: Any) -> bool:
    """True for arrays of real or complex floating-point values, of either framework."""
    name = str(x.dtype).removeprefix("torch.")
    return name.startswith(("float", "bfloat", "complex"))


def labelled(labels: Sequence[str], outs: Sequence[Any], stateful: bool) -> Leaves:
    """The port's outputs by their labels, the new state left out."""
    named = list(zip(labels, outs))
    if not stateful:
        return named
    return [
        (n.removeprefix("0").removeprefix("."), x) for n, x in named if n == "0" or n[:2] == "0."
    ]
