"""The search for the edits that turn a reference optimizer into a port.

An edit changes one setting of the reference: to a known alternative, or to a number that is solved
for (Gauss-Newton over the whole trajectory). Sets of edits are tried by size, the smaller first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from twinvit.port.optimizer.edits import edits_of, shifted
from twinvit.port.optimizer.model import SHAPED, Problem, Settings, period, simulate
from twinvit.port.optimizer.one_edit import Edit, Number

MOST_EDITS = 4
MOST_OF_MATRICES = 3
SOLVED = 24  # sets of edits, the nearest ones, whose numbers are solved for where updates are slow
BEAM = 6
TIED = 8  # sets that explain the port, which are tried on other gradients
NARROW = 1e-6  # rates that a schedule in float32 is off by, at most
Beam = list[tuple[float, list[Edit], Settings]]


@dataclass
class Found:
    edits: list[Edit]
    distance: float
    others: list[str]
    settings: Settings


def explain(
    s: Settings,
    problem: Problem,
    port: np.ndarray,
    limit: float,
    left: Callable[[list[Edit], Settings], int] = lambda edits, settings: 0,
) -> Found | None:
    """The smallest set of edits after which the model reproduces `port`, or None. `left`: of
    several such sets, how much each leaves on other gradients; the one that leaves least is
    taken."""
    edits = list(edits_of(s, period(port)))
    usual = [e for e in edits if not e.late]
    start: Beam = [(np.inf, [], s)]
    beam = start
    most = MOST_OF_MATRICES if s.kind in SHAPED else MOST_EDITS
    for size in range(1, most + 1):
        beam = _grow(beam, usual, s, problem, port, limit)
        tried = [beam]
        if size == 2:  # free rates explain much: after single edits and pairs, before more
            tried.append(_grow(start, edits, s, problem, port, limit))
            tried.append(_grow(tried[-1], edits, s, problem, port, limit))
        for sets in tried:
            proven = [item for item in sets if item[0] <= limit]
            proven += _narrowed(sets, usual, s, problem, port, limit) if not proven else []
            if proven:
                proven.sort(key=lambda item: sum(e.late + len(e.numbers) for e in item[1]))
                if len(proven) > 1:
                    proven[:TIED] = sorted(proven[:TIED], key=lambda item: left(item[1], item[2]))
                return _report(s, proven, problem, port, limit)
        if size == 1 and s.kind == "muon":
            apart = _by_groups(s, problem, port, limit, left)
            if apart is not None:
                return apart
        beam = beam[:BEAM]
    return None


def _by_groups(
    s: Settings,
    problem: Problem,
    port: np.ndarray,
    limit: float,
    left: Callable[[list[Edit], Settings], int],
) -> Found | None:
    """Muon's tensors and Adam's explained apart, where that explains all: neither moves the other,
    but for a clip."""
    if s.routed.all() or not s.routed.any() or s.clip is not None:
        return None
    settings = copy.copy(s)
    chosen: list[Edit] = []
    touched: set[str] = set()
    for group in (s.routed, ~s.routed):
        own = np.isin(problem.owner, np.flatnonzero(group))
        if _distance(_of_group(s, group), part := problem.part(group), port[:, own]) <= limit:
            continue
        found = explain(_of_group(s, group), part, port[:, own], limit)
        if found is None:
            return None
        names = {n for e in found.edits for n in e.conflicts}
        if names & touched:
            return None
        touched |= names
        for name in names:
            _put(settings, name, getattr(found.settings, name), group)
        chosen += found.edits
    distance = _distance(settings, problem, port)
    if not chosen or distance > limit:
        return None
    return _report(s, [(distance, chosen, settings)], problem, port, limit)


_BY_TENSOR = ("decayed", "routed", "own_routed", "factored", "scale_rule")


def _of_group(s: Settings, group: np.ndarray) -> Settings:
    """The settings of some tensors, (tensors,) True for those."""
    own = copy.copy(s)
    own.rates = s.rates[:, group]
    for name in _BY_TENSOR:
        value = getattr(s, name)
        setattr(own, name, value[group] if len(value) == len(group) else value)
    return own


def _put(settings: Settings, name: str, value: object, group: np.ndarray) -> None:
    """Set what was found for a group of tensors."""
    if name in _BY_TENSOR or name == "rates":
        whole = getattr(settings, name).copy()
        whole[..., group] = value
        value = whole
    setattr(settings, name, value)


def _narrowed(
    sets: Beam, pool: list[Edit], s: Settings, problem: Problem, port: np.ndarray, limit: float
) -> Beam:
    """Sets that are near, with what one side computes in a narrower type, where that proves
    them."""
    near = [item for item in sets if item[0] <= NARROW][:BEAM]
    precise = [e for e in pool if not e.cause]
    found = _grow(near, precise, s, problem, port, limit) if near and precise else []
    return [item for item in found if item[0] <= limit]


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
                settings, distance = _started(s, together, problem, port)
                grown.append((distance, together, settings))
    grown.sort(key=lambda item: item[0])
    solved = SOLVED if s.kind in SHAPED else len(grown)
    for k, (distance, together, settings) in enumerate(grown[:solved]):
        numbers = [n for e in together for n in e.numbers]
        if numbers and distance > limit:
            settle = _settling(settings, together, problem, port)
            grown[k] = (
                _gauss_newton(settings, numbers, problem, port, settle), together, settings,
            )  # fmt: skip
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
        if edit.chosen is not None:
            now, then = getattr(s, edit.chosen[0]), getattr(settings, edit.chosen[0])
            done.places = [n for n, a, b in zip(problem.shapes, now, then, strict=True) if a != b]
        if edit.setting == "lr" and settings.solve:
            _name_rates(done, s, settings)
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


def _started(
    s: Settings, edits: list[Edit], problem: Problem, port: np.ndarray
) -> tuple[Settings, float]:
    """The settings with these edits, each number at the best of its starting points, and their
    distance."""
    settings = copy.copy(s)
    for edit in edits:
        edit.apply(settings)
    numbers = [n for e in edits for n in e.numbers]
    settle = _settling(settings, edits, problem, port)
    best = settle()
    # Starting points, one number after another.
    for _ in range(2 if len(numbers) > 1 else 1):
        for number in numbers:
            kept = getattr(settings, number.name)
            for start in number.starts:
                setattr(settings, number.name, start)
                distance = settle()
                if distance < best:
                    best, kept = distance, start
            setattr(settings, number.name, kept)
    return settings, settle()


def _settling(
    settings: Settings, edits: list[Edit], problem: Problem, port: np.ndarray
) -> Callable[[], float]:
    """Chooses what the edits leave to be chosen by tensor, and returns the distance."""
    chosen = [e.chosen for e in edits if e.chosen is not None]

    def settle() -> float:
        for name, options in chosen:
            _choose(settings, name, options, problem, port)
        return _distance(settings, problem, port)

    return settle


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


def _choose(
    settings: Settings, name: str, options: tuple[object, ...], problem: Problem, port: np.ndarray
) -> None:
    """For each tensor the one of a setting's options that is nearest to the port; of those that
    rounding alone tells apart the first."""
    count = len(problem.shapes)
    ways = np.nan_to_num(np.abs(port - port[0]), posinf=0.0)
    moved = np.bincount(problem.owner, weights=(ways**2).sum(axis=0), minlength=count)
    errors = []
    for option in options:
        setattr(settings, name, np.full(count, option))
        r = simulate(settings, problem, port if settings.solve else None) - port
        squares = np.clip(np.where(np.isfinite(r), r, 1e6), -1e6, 1e6) ** 2
        errors.append(np.bincount(problem.owner, weights=squares.sum(axis=0), minlength=count))
    near = np.array(errors) <= np.min(errors, axis=0) + 1e-24 * moved
    chosen = np.array(options)[np.argmax(near, axis=0)]
    if name == "routed":  # Muon takes matrices alone
        chosen &= np.array([len(shape) > 1 for shape in problem.shapes.values()])
    setattr(settings, name, chosen)


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


def _name_rates(edit: Edit, s: Settings, solved: Settings) -> None:
    """Word rates that were solved for: the reference's, rounded, or those of other steps."""
    small = _rate_error(s.rates, solved)
    if small < NARROW:
        edit.cause = ""
        edit.text = (
            f"the learning rates differ by up to {small:.1e}: one side's schedule is computed in a "
            "narrower type"
        )
        return
    for text, rates in shifted(s.rates).items():
        small = _rate_error(rates, solved)
        if small < NARROW:
            edit.cause = "schedule_offset"
            edit.text = f"{text} (its rates are {small:.1e} from them, by a narrower type)"
            return


def _rate_error(rates: np.ndarray, solved: Settings) -> float:
    """The largest relative distance of the rates that were solved for from these."""
    wanted = rates.max(axis=1)[:-1]
    if solved.scales is None:
        return float("inf")
    known = np.isfinite(solved.scales)  # a step without an update shows none
    with np.errstate(all="ignore"):
        far = np.abs(solved.scales - wanted) / np.where(wanted > 0, wanted, wanted.max() or 1.0)
    return float(far[known].max()) if known.any() and wanted.any() else float("inf")
