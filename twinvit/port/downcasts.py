"""Computations in narrower types: which of them one side has alone, and what each costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from twinvit.port.record.own_types import OwnTypes, Rounding, Types, as_narrow, narrowest
from twinvit.port.report import Downcast
from twinvit.port.search.session import Session


def as_run(found: list[Downcast], side: str, own: OwnTypes) -> None:
    """Add the narrowings that a side makes as it runs and that do not show in float64, as of
    `x.astype(y.dtype)`."""
    known = {(n.where, n.dtype) for n in found if n.side == side}
    places = dict.fromkeys((r.inner, r.dtype) for r in own.roundings)
    found += [Downcast(side, *place) for place in places if place not in known]


def tell_alone(found: Iterable[Downcast], session: Session, port: OwnTypes | None) -> None:
    """Say of each downcast whether the other side holds the same values in wider types alone.

    Args:
        found: both sides' narrowings.
        port: the types that the port's values have as it runs; None where they are not known.
    """
    reference = session.graph.types
    if reference is None or port is None:
        return
    mine, theirs = _by_numbers(session, reference), _of_port(session, port)
    sides = {"jax": (port, mine, reference), "torch": (reference, theirs, port)}
    for downcast in found:
        own, others, other = sides[downcast.side]
        events = [
            r for r in own.roundings if (r.inner, r.dtype) == (downcast.where, downcast.dtype)
        ]
        said = [_alone(session, downcast.side, r, others, other) for r in events]
        downcast.alone = True if True in said else None if None in said else False
        told = [r for r, alone in zip(events, said) if alone] or events
        downcast.lines = list(dict.fromkeys(r.where for r in told if r.where))


_Numbers = Mapping[object, Types]
"""By what a value holds, the types that it is held in."""


def _by_numbers(session: Session, reference: OwnTypes) -> dict[object, Types]:
    found: dict[object, Types] = {}
    for i, dtypes in reference.held.items():
        key = _key(session, i)
        if key is not None:
            found[key] = found.get(key, frozenset()) | dtypes
    return found


def _of_port(session: Session, port: OwnTypes) -> dict[object, Types]:
    found: dict[object, Types] = {}
    for entry, dtypes in port.held.items():
        key = session.index.key(entry)
        found[key] = found.get(key, frozenset()) | dtypes
    return found


def _key(session: Session, value: int) -> object | None:
    """What the port's equals of a value of the reference have in common; None without one."""
    entry = session.match.get(session.root.get(value, value))
    return None if entry is None or entry < 0 else session.index.key(entry)


def _alone(
    session: Session, side: str, rounding: Rounding, others: _Numbers, other: OwnTypes
) -> bool | None:
    """Whether the other side rounds nowhere what one side rounds; None where it cannot be
    determined, as it holds no equal value."""
    value = rounding.value
    key = session.index.key(value) if side == "jax" else _key(session, value)
    held = others.get(key) if key is not None else None
    if held:
        return not as_narrow(held, rounding.dtype)
    return None if as_narrow(narrowest(other.held), rounding.dtype) else True
