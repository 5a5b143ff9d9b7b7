"""The search for the edits that turn a reference optimizer into a port.

An edit changes one setting of the reference: to a known alternative, or to a number that is solved
for (Gauss-Newton over the whole trajectory). Sets of edits are tried by size, the smaller first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from twinvit.port.optimizer_model import Problem, Settings, simulate

MOST_EDITS = 4
BEAM = 6
CAUSES = {
    "eps_place": "epsilon inside the square root, or added before the bias correction",
    "eps_value": "another epsilon",
    "bias_correction": "Adam's bias correction is missing, of one moment or both",
    "betas": "another decay rate of a moment",
    "amsgrad": "AMSGrad on one side only",
    "decay_coupling": "weight decay in the gradient, beside it, or not times the learning rate",
    "decay_value": "another weight decay",
    "decay_mask": "weight decay on other tensors",
    "momentum": "another momentum",
    "nesterov": "Nesterov on one side only",
    "dampening": "another dampening of the gradient",
    "clip_eps": "the 1e-6 that clip_grad_norm_ adds to the norm",
    "clip_value": "another norm to clip at, or no clip",
    "clip_kind": "clip by element, or by each tensor's RMS",
    "schedule_offset": "the schedule is a step ahead or behind",
    "learning_rate": "another learning rate, or another sequence of them",
}


@dataclass
class Number:
    """A setting to solve for: x is free, `inverse(x)` the setting's value."""

    name: str
    starts: tuple[float, ...]
    kind: str = "log"  # "log": positive; "logit": between 0 and 1

    def inside(self, value: float) -> float:
        return float(np.log(value) if self.kind == "log" else np.log(value / (1 - value)))

    def outside(self, x: float) -> float:
        if self.kind == "log":
            return float(np.exp(np.clip(x, -80, 80)))
        return float(1 / (1 + np.exp(-np.clip(x, -40, 40))))


@dataclass
class Edit:
    """One difference. `apply` changes settings; `numbers` are then solved for."""

    cause: str
    setting: str
    says: Callable[[Settings, Settings], str]
    apply: Callable[[Settings], None]
    numbers: tuple[Number, ...] = ()
    conflicts: frozenset[str] = frozenset()  # settings that another edit of the set must not touch
    late: bool = False  # so free that it is tried when nothing else explains the port
    mask: bool = False
    text: str = ""
    before: float = 0.0
    places: list[str] = field(default_factory=list)


Beam = list[tuple[float, list[Edit], Settings]]


@dataclass
class Found:
    edits: list[Edit]
    distance: float
    others: list[str]
    settings: Settings


def explain(s: Settings, problem: Problem, port: np.ndarray, limit: float) -> Found | None:
    """The smallest set of edits after which the model reproduces `port`, or None."""
    edits = list(_edits(s))
    usual = [e for e in edits if not e.late]
    start: Beam = [(np.inf, [], s)]
    beam = start
    for size in range(1, MOST_EDITS + 1):
        beam = _grow(beam, usual, s, problem, port, limit)
        tried = [beam]
        if size == 2:  # free rates explain much: after single edits and pairs, before more
            tried.append(_grow(start, edits, s, problem, port, limit))
            tried.append(_grow(tried[-1], edits, s, problem, port, limit))
        for sets in tried:
            proven = [item for item in sets if item[0] <= limit]
            if proven:
                proven.sort(key=lambda item: sum(e.late + len(e.numbers) for e in item[1]))
                return _report(s, proven, problem, port, limit)
        beam = beam[:BEAM]
    return None


def _grow(
    beam: Beam, pool: list[Edit], s: Settings, problem: Problem, port: np.ndarray, limit: float
) -> Beam:
    """Every set of `beam` with one more edit, the nearest to the port first."""
    grown, seen = [], set()
    for _, chosen, _settings in beam[:BEAM]:
        for edit in pool:
            if any(edit.conflicts & e.conflicts for e in chosen):
                continue
            together = [*chosen, edit]
            key = frozenset(id(e) for e in together)
            if key not in seen:
                seen.add(key)
                settings, distance = _solve(s, together, problem, port, limit)
                grown.append((distance, together, settings))
    return sorted(grown, key=lambda item: item[0])


def _report(
    s: Settings,
    proven: list[tuple[float, list[Edit], Settings]],
    problem: Problem,
    port: np.ndarray,
    limit: float,
) -> Found:
    _, chosen, settings = proven[0]
    _round_numbers(chosen, settings, problem, port, limit)
    distance = _distance(settings, problem, port)
    edits = []
    for edit in chosen:
        rest = [e for e in chosen if e is not edit]
        without = copy.copy(settings)
        for name in edit.conflicts:
            setattr(without, name, getattr(s, name))
        done = copy.copy(edit)
        done.before = _distance(without, problem, port) if rest else _distance(s, problem, port)
        done.text = edit.says(s, settings)
        if edit.mask:
            names = list(problem.shapes)
            done.places = [
                n for n, a, b in zip(names, s.decayed, settings.decayed, strict=True) if a != b
            ]
        if edit.setting == "lr" and settings.solve:
            small = _rate_error(s, settings)
            if small < 1e-6:
                done.cause = ""
                done.text = (
                    f"the learning rates differ by up to {small:.1e}: one side's schedule is "
                    "computed in a narrower type"
                )
        edits.append(done)
    here = {e.cause for e in chosen}
    others = []
    for _, other, _ in proven[1:]:
        causes = [e.cause for e in other]
        if len(other) == len(chosen) and set(causes) != here and not any(e.late for e in other):
            others.append(" and ".join(causes))
    return Found(edits, distance, sorted(set(others)), settings)


def _distance(s: Settings, problem: Problem, port: np.ndarray) -> float:
    run = simulate(s, problem, port if s.solve else None)
    moved = np.linalg.norm(port - port[0], axis=1).max() or 1.0
    d = np.linalg.norm(run - port, axis=1) / moved
    return float(d.max()) if np.isfinite(d).all() else float("inf")


def _residual(s: Settings, problem: Problem, port: np.ndarray) -> np.ndarray:
    moved = np.linalg.norm(port - port[0], axis=1).max() or 1.0
    r = ((simulate(s, problem, port if s.solve else None) - port) / moved).ravel()
    return np.where(np.isfinite(r), r, 1e6)


def _solve(
    s: Settings, edits: list[Edit], problem: Problem, port: np.ndarray, limit: float
) -> tuple[Settings, float]:
    """The settings with these edits, numbers solved for, and their distance."""
    settings = copy.copy(s)
    for edit in edits:
        edit.apply(settings)
    numbers = [n for e in edits for n in e.numbers]
    masked = any(e.mask for e in edits)

    def settle() -> float:
        if masked:
            _choose_mask(settings, problem, port)
        return _distance(settings, problem, port)

    best = settle()
    # Starting points, one number after another.
    for _ in range(2 if len(numbers) > 1 else 1):
        for number in numbers:
            chosen = getattr(settings, number.name)
            for start in number.starts:
                setattr(settings, number.name, start)
                distance = settle()
                if distance < best:
                    best, chosen = distance, start
            setattr(settings, number.name, chosen)
    best = settle()
    if numbers and best > limit:
        best = _gauss_newton(settings, numbers, problem, port, settle)
    return settings, best


def _gauss_newton(
    settings: Settings,
    numbers: list[Number],
    problem: Problem,
    port: np.ndarray,
    settle: Callable[[], float],
) -> float:
    x = np.array([n.inside(getattr(settings, n.name)) for n in numbers])

    def put(x: np.ndarray) -> None:
        for number, value in zip(numbers, x, strict=True):
            setattr(settings, number.name, number.outside(value))

    put(x)
    best = settle()
    for _ in range(14):
        r = _residual(settings, problem, port)
        columns = []
        for i in range(len(x)):
            moved = x.copy()
            moved[i] += 1e-6
            put(moved)
            columns.append((_residual(settings, problem, port) - r) / 1e-6)
        step, *_ = np.linalg.lstsq(np.array(columns).T, -r, rcond=None)
        size = np.abs(step).max()
        if not np.isfinite(size) or size == 0:
            put(x)
            break
        if size > 1:
            step = step / size
        for factor in (1.0, 0.3, 0.05):
            put(x + factor * step)
            distance = settle()
            if distance < best:
                improved = distance < 0.7 * best
                best, x = distance, x + factor * step
                break
        else:
            improved = False
        if not improved or best <= 1e-15:
            break
    put(x)
    return settle()


def _choose_mask(settings: Settings, problem: Problem, port: np.ndarray) -> None:
    """For each tensor, decayed or not, by which is nearer to the port."""
    count = len(problem.shapes)
    errors = []
    for on in (False, True):
        settings.decayed = np.full(count, on)
        r = simulate(settings, problem, port if settings.solve else None) - port
        squares = np.where(np.isfinite(r), r, 1e6) ** 2
        errors.append(np.bincount(problem.owner, weights=squares.sum(axis=0), minlength=count))
    settings.decayed = errors[1] < errors[0]


def plain_number(value: float, good: Callable[[float], bool]) -> float:
    """The shortest decimal that is as good as `value`."""
    for digits in range(1, 13):
        short = float(f"{value:.{digits}g}")
        if good(short):
            return short
    return value


def _round_numbers(
    edits: list[Edit], settings: Settings, problem: Problem, port: np.ndarray, limit: float
) -> None:
    for number in (n for e in edits for n in e.numbers):
        value = getattr(settings, number.name)

        def good(short: float, name: str = number.name) -> bool:
            setattr(settings, name, short)
            return _distance(settings, problem, port) <= limit

        setattr(settings, number.name, plain_number(value, good))


def _rate_error(s: Settings, solved: Settings) -> float:
    rates = s.rates.max(axis=1)[:-1]
    known = rates > 0
    if not known.any() or solved.scales is None:
        return float("inf")
    scales = solved.scales
    return float(np.abs(scales[known] / rates[known] - 1).max())


def _set(**values: object) -> Callable[[Settings], None]:
    def apply(s: Settings) -> None:
        for name, value in values.items():
            setattr(s, name, value)

    return apply


def _edit(
    cause: str,
    setting: str,
    says: str | Callable[[Settings, Settings], str],
    numbers: tuple[Number, ...] = (),
    late: bool = False,
    mask: bool = False,
    also: tuple[str, ...] = (),
    **values: object,
) -> Edit:
    text = (lambda a, b: says) if isinstance(says, str) else says
    touched = frozenset(values) | {n.name for n in numbers} | set(also)
    return Edit(cause, setting, text, _set(**values), numbers, touched, late, mask)


def _edits(s: Settings) -> Iterator[Edit]:
    if s.kind == "adam":
        yield from _adam_edits(s)
    else:
        yield from _sgd_edits(s)
    yield from _decay_edits(s)
    yield from _clip_edits(s)
    yield from _rate_edits(s)


def _adam_edits(s: Settings) -> Iterator[Edit]:
    place = "eps_place"
    yield _edit(
        place,
        "eps",
        f"the port adds eps {s.eps:g} inside the square root, the reference outside",
        eps=0.0,
        eps_root=s.eps,
    )
    yield _edit(
        place,
        "eps",
        lambda a, b: f"the port adds eps_root {b.eps_root:g} inside the square root",
        numbers=(Number("eps_root", (1e-15, 1e-12, 1e-10, 1e-8, 1e-6)),),
        eps_root=1e-8,
    )
    yield _edit(
        place,
        "eps",
        "the port adds eps before the second moment's bias correction, the reference after",
        eps_hat=True,
    )
    yield _edit(
        "eps_value",
        "eps",
        lambda a, b: f"the port's eps is {b.eps:g}, the reference's {a.eps:g}",
        numbers=(Number("eps", (1e-12, 1e-10, 1e-8, 1e-7, 1e-6, 1e-5, 1e-3)),),
    )
    for first, second, which in (
        (False, False, "of both moments"),
        (False, True, "of the first moment"),
        (True, False, "of the second moment"),
    ):
        yield _edit(
            "bias_correction",
            "bias correction",
            f"the port lacks the bias correction {which}",
            correct_first=first,
            correct_second=second,
        )
    yield _edit(
        "betas",
        "beta1",
        lambda a, b: f"the port's beta1 is {b.b1:g}, the reference's {a.b1:g}",
        numbers=(Number("b1", (0.5, 0.8, 0.9, 0.95, 0.99), "logit"),),
    )
    yield _edit(
        "betas",
        "beta2",
        lambda a, b: f"the port's beta2 is {b.b2:g}, the reference's {a.b2:g}",
        numbers=(Number("b2", (0.9, 0.95, 0.98, 0.99, 0.999, 0.9999), "logit"),),
    )
    yield _edit("nesterov", "nesterov", "the port uses Nesterov's momentum (NAdam)", nesterov=True)
    on = "the reference" if s.amsgrad else "the port"
    yield _edit("amsgrad", "amsgrad", f"only {on} uses AMSGrad", amsgrad=not s.amsgrad)


def _sgd_edits(s: Settings) -> Iterator[Edit]:
    momentum = Number("momentum", (0.5, 0.9, 0.95, 0.99), "logit")
    yield _edit(
        "momentum",
        "momentum",
        lambda a, b: f"the port's momentum is {b.momentum:g}, the reference's {a.momentum:g}",
        numbers=(momentum,),
        momentum=s.momentum or 0.9,
    )
    if not s.momentum:
        return
    yield _edit(
        "momentum",
        "momentum",
        f"the port has no momentum, the reference {s.momentum:g}",
        momentum=0.0,
    )
    on = "the reference" if s.nesterov else "the port"
    yield _edit(
        "nesterov", "nesterov", f"only {on} uses Nesterov's momentum", nesterov=not s.nesterov
    )
    if s.dampening:
        yield _edit(
            "dampening",
            "dampening",
            f"the reference dampens gradients by {s.dampening:g}, the port does not",
            dampening=0.0,
        )
    yield _edit(
        "dampening",
        "dampening",
        f"the port averages gradients (times {1 - s.momentum:g}, from the first step on)",
        dampening=s.momentum,
        dampen_first=True,
    )
    yield (
        _edit(
            "dampening",
            "dampening",
            "the port dampens the first gradient, too",
            dampen_first=True,
        )
        if s.dampening
        else _edit(
            "dampening",
            "dampening",
            lambda a, b: (
                f"the port's dampening is {b.dampening:g}, the reference's {a.dampening:g}"
            ),
            numbers=(Number("dampening", (0.1, 0.5, 0.9), "logit"),),
            dampening=0.1,
        )
    )


def _decay_edits(s: Settings) -> Iterator[Edit]:
    names = {
        "coupled": "adds weight decay to the gradient",
        "decoupled": "decays weights beside the gradient, times the learning rate",
        "constant": "decays weights beside the gradient, not times the learning rate",
    }
    value = Number("decay", (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.3))
    if not s.decay:
        for cause, some in (("decay_value", ""), ("decay_mask", " on some tensors")):
            for kind, does in names.items():
                yield _edit(
                    cause,
                    "weight_decay",
                    lambda a, b, does=does, some=some: (  # type: ignore[misc]
                        f"the port {does} ({b.decay:g}){some}; the reference has none"
                    ),
                    numbers=(value,),
                    mask=bool(some),
                    decay=1e-2,
                    coupling=kind,
                    decayed=np.ones(len(s.decayed), bool),
                )
        return
    yield _edit(
        "decay_value",
        "weight_decay",
        f"the port has no weight decay, the reference {s.decay:g}",
        decay=0.0,
    )
    yield _edit(
        "decay_value",
        "weight_decay",
        lambda a, b: f"the port's weight decay is {b.decay:g}, the reference's {a.decay:g}",
        numbers=(value,),
    )
    for kind, does in names.items():
        if kind != s.coupling:
            yield _edit(
                "decay_coupling",
                "weight_decay",
                f"the port {does}; the reference {names[s.coupling]}",
                coupling=kind,
            )
    if s.coupling == "coupled" and s.clip is not None:
        yield _edit(
            "decay_coupling",
            "weight_decay",
            "the port adds weight decay before the clip, the reference after",
            decay_first=True,
        )
    yield _edit(
        "decay_mask",
        "weight_decay",
        "the port decays other tensors than the reference",
        mask=True,
        decayed=s.decayed,
    )


def _clip_edits(s: Settings) -> Iterator[Edit]:
    starts = (1e-6, 1e-4, 1e-2, 0.1, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 1e2, 1e3, 1e4, 1e6)
    value = Number("clip", starts)
    if s.clip is None:
        yield _edit(
            "clip_value",
            "clip",
            lambda a, b: (
                f"the port clips the gradient's norm at {b.clip:g}, the reference does not"
            ),
            numbers=(value,),
            clip=1.0,
            clip_eps=0.0,
        )
        yield _edit(
            "clip_kind",
            "clip",
            lambda a, b: f"the port clips each element at {b.clip:g}, the reference does not clip",
            numbers=(value,),
            clip=1.0,
            clip_kind="value",
        )
        return
    yield _edit(
        "clip_eps",
        "clip_grad_norm_",
        "clip_grad_norm_ adds 1e-6 to the norm before it divides, the port does not",
        clip_eps=0.0,
    )
    yield _edit(
        "clip_value",
        "clip_grad_norm_",
        lambda a, b: f"the port clips at {b.clip:g}, the reference at {a.clip:g}",
        numbers=(value,),
    )
    yield _edit(
        "clip_value", "clip_grad_norm_", "the port does not clip", clip=None, also=("clip_eps",)
    )
    yield _edit(
        "clip_kind",
        "clip_grad_norm_",
        f"the port clips each element at {s.clip:g}, the reference the norm",
        clip_kind="value",
        also=("clip_eps",),
    )
    yield _edit(
        "clip_kind",
        "clip_grad_norm_",
        f"the port clips each tensor's RMS at {s.clip:g}, the reference the gradient's norm",
        clip_kind="rms",
        also=("clip_eps",),
    )


def _rate_edits(s: Settings) -> Iterator[Edit]:
    if np.ptp(s.rates, axis=0).any():
        yield _edit(
            "schedule_offset",
            "lr",
            "the port's schedule is one step ahead of the reference's",
            rates=np.concatenate([s.rates[1:], s.rates[-1:]]),
        )
        yield _edit(
            "schedule_offset",
            "lr",
            "the port's schedule is one step behind: its first step has the reference's first rate",
            rates=np.concatenate([s.rates[:1], s.rates[:-1]]),
        )
        yield _edit(
            "schedule_offset",
            "lr",
            "the port's schedule is one step behind: its first step has a rate of 0",
            rates=np.concatenate([0 * s.rates[:1], s.rates[:-1]]),
        )
    yield _edit(
        "learning_rate",
        "lr",
        lambda a, b: f"the port's learning rate is {b.rate_scale:g} times the reference's",
        numbers=(Number("rate_scale", (0.1, 0.5, 2.0, 10.0)),),
        also=("rates",),
    )
    yield _edit(
        "learning_rate", "lr", _rates_text, late=True, also=("rates", "rate_scale"), solve="rates"
    )


def _rates_text(a: Settings, b: Settings) -> str:
    mine = a.rates.max(axis=1)[:-1]
    theirs = b.scales if b.scales is not None else mine
    shown = ", ".join(f"{x:.4g}" for x in theirs[:8])
    usual = ", ".join(f"{x:.4g}" for x in mine[:8])
    return f"the port's learning rates are {shown}, ...; the reference's {usual}, ..."
