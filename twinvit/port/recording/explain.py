"""Explain a port from recordings of both models, where neither model is installed."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from twinvit.port.envelope import versions
from twinvit.port.errors import PortError
from twinvit.port.explainer import explain_pair
from twinvit.port.pair import Pair, shortened
from twinvit.port.record.given import split_inputs
from twinvit.port.recording.folder import Recorded, read
from twinvit.port.recording.record import WHAT
from twinvit.port.recording.stored_port import StoredPort
from twinvit.port.recording.stored_reference import StoredReference
from twinvit.port.report import Report
from twinvit.port.search.loop import Progress

WHOLE = "biu"  # kinds of NumPy's types without fractions
Path = str | os.PathLike[str]


def explain_recordings(
    reference: Path,
    port: Path,
    *,
    weights: Any = "as_is",
    what: str | Sequence[str] = ("forward",),
    output: str | None = None,
    right: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Say what a port computes otherwise than its reference, from recordings of both.

    The report is that of `explain` on the models themselves; its `verify` runs both recordings.

    Args:
        reference: the folder of `record_model` of the model that is right.
        port: that of the model of the other framework.
        weights: as of `explain`.
        what: as of `explain`; it must have been recorded.
        output: as of `explain`.
        right: the framework that is right, "torch" or "jax"; by default that of `reference`.
        progress: called with what is being done.

    Raises:
        PortError: a recording is damaged, or the two are not of the same inputs.
    """
    started = time.perf_counter()
    kinds = (what,) if isinstance(what, str) else tuple(what)
    if not kinds or any(k not in WHAT for k in kinds):
        raise PortError(f'what={what!r} is none of "forward", "grad", "train", nor several of them')
    say = progress or (lambda text: None)
    say("reading the recordings")
    first, second = read(reference), read(port)
    found = {r.framework: r for r in (first, second)}
    if len(found) == 1:
        raise PortError(
            f"{reference} and {port} are both recordings of a {first.framework} model; give one of "
            "each framework"
        )
    mine, theirs = StoredReference(found["torch"]), StoredPort(found["jax"])
    for stored in (mine, theirs):
        stored.check(kinds)
    _check_inputs(mine.stored_inputs, theirs.stored_inputs)
    if weights != "as_is" and not mine.is_module:
        raise PortError("the reference is a function, which has no weights to put into the port")
    pair = Pair(
        mine, theirs, mine.stored_inputs, theirs.own_inputs, output, say, evaluate="train" in kinds
    )
    pair.notes += [*mine.stored_notes, *theirs.stored_notes, *_notes(found)]
    pair.notes += _by_value("reference", mine.by_value) + _by_value("port", theirs.by_value)
    threads = torch.get_num_threads()
    try:
        return explain_pair(pair, weights, kinds, [], started, right or first.framework)
    finally:
        torch.set_num_threads(threads)


def _check_inputs(mine: Any, theirs: Any) -> None:
    """Raises PortError where the two sides were recorded on other inputs."""
    one, two = split_inputs(mine)[1], split_inputs(theirs)[1]
    if len(one) != len(two):
        raise PortError(
            f"the reference was recorded on {len(one)} inputs, the port on {len(two)}; record both "
            "on the same"
        )
    for k, (a, b) in enumerate(zip(one, two)):
        if a.shape != b.shape or not np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"):
            raise PortError(
                f"the two were recorded with other numbers as input {k}; record both on the same"
            )
        if (a.dtype.kind in WHOLE) != (b.dtype.kind in WHOLE):
            raise PortError(
                f"the two were recorded with input {k} of {a.dtype} and of {b.dtype}; record both "
                "on the same"
            )


def _notes(found: dict[str, Recorded]) -> list[str]:
    """Where a side was recorded with another version of its framework than is here."""
    here = versions()
    return [
        f"the {name} side was recorded with {name} {recorded.versions[name]}; {here[name]} runs it"
        for name, recorded in found.items()
        if recorded.versions.get(name) not in (None, "", here[name])
    ]


def _by_value(side: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [
        f"operations of the {side} that were recorded by their value, and are compared and not "
        f"edited nor run on other numbers: {shortened(names)}"
    ]
