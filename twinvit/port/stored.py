"""Parameters that one side holds and does not read: their values are constants in its code.

Such a port agrees with its reference on these weights and on no others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from twinvit.port.record.torch_values import WideTensors
from twinvit.port.redraw import Held, Key, Weights, redrawn_weights
from twinvit.port.report import Finding

if TYPE_CHECKING:
    from twinvit.port.verify import Program

MOST = 4  # arrays of equal values that one which is not read may stand for


@dataclass
class _Unread:
    """An array that one side holds and does not read.

    Attributes:
        name: its name on that side.
        live: positions of the other side's arrays that hold its elements and are read.
    """

    name: str
    live: list[int]


def stored_parameters(program: Program) -> list[Finding]:
    """A finding for each parameter that one side reads and the other holds and does not read, where
    the outputs depend on it and nothing that is read can have been computed from it."""
    mine, used = program.mine, program.theirs
    idle = {
        program.pair.pure.names[k]: program.pair.leaves[k]
        for k in range(len(program.pair.leaves))
        if not program.used[k] and program.pair.leaves.is_real(k)
    }
    findings = []
    learned = _learned(program)
    live = [n in learned for n in program.params]
    for found in unread(mine, live, used, idle, _constants(program)):
        moved = [program.moves(Weights(_other(mine, i), used, 1, ([], []))) for i in found.live]
        if all(moved):
            name = list(program.params)[found.live[0]] if len(found.live) == 1 else ""
            findings.append(_finding(program, found.name, name, mine[found.live[0]], max(moved)))
    own = {n: learned[n] for n in learned if n not in program.params}
    for found in unread(used, [True] * len(used), mine, own):
        moved = [program.moves(Weights(mine, _other(used, k), 1, ([], []))) for k in found.live]
        if all(moved):
            names = [program.pair.pure.names[program.leaves[k]] for k in found.live]
            findings.append(_other_way(found.name, names, max(moved)))
    return findings


def unread(
    every: Sequence[np.ndarray],
    live: Sequence[bool],
    used: Sequence[np.ndarray],
    idle: Mapping[str, np.ndarray],
    stored: Container[Key] = (),
) -> list[_Unread]:
    """The arrays that one side holds and does not read, and whose equals the other side reads.

    Where one of `used` is not made of the other side's arrays (slices, splits, stacks), it may be
    computed from `idle`: then only arrays among the constants of the code are found.

    Args:
        every: what the other side reads.
        live: which of these are looked for.
        used: what this side reads.
        idle: what this side holds and does not read, by name.
        stored: keys of the constants in this side's code.
    """
    if not idle or not used or not every:
        return []
    alone = redrawn_weights(every, used, [], 0).alone
    missing = _counts(every)
    missing.subtract(_counts(used))
    folded = bool(alone[1]) or min(missing.values(), default=0) < 0
    found = []
    arrays, reads = [Held(x) for x in every], [Held(x) for x in used]
    for name, x in idle.items():
        own = Held(x)
        if folded and (not own.strong or own.whole not in stored):
            continue
        places = [
            i
            for i, a in enumerate(arrays)
            if live[i] and a.strong == own.strong and a.whole == own.whole
        ]
        if own.strong:
            read = [a for a in reads if own.whole in a.parts]
            whole = sum(a.whole == own.whole for a in read)
            if set(places) - set(alone[0]) and not 0 < whole == len(read) < len(places):
                continue
        elif not _counts([x]) <= missing:
            continue
        if 0 < len(places) <= MOST:
            found.append(_Unread(name, places))
    return found


def _constants(program: Program) -> set[Key]:
    """Keys of the arrays that are constants in the port's code."""
    held = [e.value for e in program.index.entries if e.name == "constant"]
    return {Held(x).whole for x in held if x is not None}


def _counts(arrays: Sequence[np.ndarray]) -> Counter[float]:
    """How often each number occurs in arrays with too few different values to be recognised."""
    count: Counter[float] = Counter()
    for x in arrays:
        if not Held(x).strong:
            count.update((x + 0.0).reshape(-1).tolist())
    return count


def _learned(program: Program) -> Mapping[str, np.ndarray]:
    """The reference's parameters and running statistics in float64. Parameters that are not trained
    beside others that are, and other buffers, are tables that a port may compute."""
    model = program.pair.torch_model
    if not hasattr(model, "named_parameters"):
        return dict(program.params)
    parameters = dict(model.named_parameters())
    frozen = not any(p.requires_grad for p in parameters.values())
    held = {n: p for n, p in parameters.items() if frozen or p.requires_grad}
    held |= {n: b for n, b in model.named_buffers() if n.rsplit(".", 1)[-1].startswith("running_")}
    named = {n: p for n, p in held.items() if p.is_floating_point()}
    return WideTensors(named)


def _other(arrays: Sequence[np.ndarray], place: int) -> list[np.ndarray]:
    """The arrays with the one at index `place` replaced by random values of the same signs; zeros
    change, too."""
    rng = np.random.default_rng(0)
    result = list(arrays)
    x = arrays[place]
    factor = 1 + 0.3 * rng.uniform(0.3, 1.0, x.shape) * rng.choice([-1.0, 1.0], x.shape)
    result[place] = np.where(x == 0, 0.1 * (factor - 1), x * factor)
    return result


def _finding(program: Program, name: str, theirs: str, value: np.ndarray, moved: float) -> Finding:
    whose = f"the reference's {theirs}" if theirs else "a parameter of the reference"
    return Finding(
        "weights",
        "",
        f"the port holds {name or 'a parameter'} and does not read it: the numbers of {whose} are "
        f"stored in the port's code, and with others the outputs are {moved:.1e} apart",
        theirs or name,
        _place(program, value),
        moved,
        0.0,
        [theirs or name],
    )


def _other_way(name: str, theirs: Sequence[str], moved: float) -> Finding:
    return Finding(
        "weights",
        "",
        f"the reference holds {name} and does not read it: the port reads {theirs[0]}, and with "
        f"others of its numbers the outputs are {moved:.1e} apart",
        name,
        "",
        moved,
        0.0,
        [name],
    )


def _place(program: Program, value: np.ndarray) -> str:
    """Where the port reads a constant of these values; "" where none is found."""
    index = program.index
    hit = index.find(value, 1e-13) if value.size >= 8 else None
    if hit is None or index.entries[hit].name not in ("constant", "parameter"):
        return ""
    equal = {
        e.id
        for e in index.entries
        if e.name == "constant" and e.slot >= 0 and e.value is not None
        if e.value.size == value.size
        and np.array_equal(np.sort(e.value, None), np.sort(value, None))
    }
    return next((e.where for e in index.entries if e.where and equal & set(e.parents)), "")
