"""Optimizers as PyTorch computes them, in NumPy, with every setting free.

The formulas of one update are in `rules`; weight decay is Loshchilov and Hutter's, 2019, or
added to the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from twinvit.port.optimizer.matrix_rules import adafactor, muon
from twinvit.port.optimizer.rules import DIRECTIONS, State, clipped

SHAPED = {"adafactor": adafactor, "muon": muon}
"""Directions that depend on the shapes of tensors."""


@dataclass(frozen=True)
class Problem:
    """Parameters and gradients, flat: start (elements,), gradients (steps, elements), float64.

    `shapes` are PyTorch's; `orders` has, of tensors whose axes JAX holds in another order, that
    order.
    """

    shapes: dict[str, tuple[int, ...]]
    start: np.ndarray
    gradients: np.ndarray
    owner: np.ndarray  # (elements,) index of the tensor that an element belongs to
    orders: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.start)

    @cached_property
    def slices(self) -> list[slice]:
        """Of each tensor where its elements are."""
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes.values()])
        starts = [0, *ends[:-1]]
        return [slice(int(a), int(b)) for a, b in zip(starts, ends, strict=True)]

    def shape(self, i: int) -> tuple[int, ...]:
        """The shape of the tensor number `i`, in PyTorch."""
        return list(self.shapes.values())[i]

    def axes(self, i: int) -> tuple[int, int] | None:
        """The axes over which Optax factors tensor number `i`, by PyTorch's order; None for one of
        less than two axes."""
        name, shape = list(self.shapes.items())[i]
        if len(shape) < 2:
            return None
        order = self.orders.get(name, tuple(range(len(shape))))
        size = np.argsort([shape[a] for a in order])
        return order[int(size[-2])], order[int(size[-1])]

    def jax_tree(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """`flat` as arrays by name, their axes in JAX's order."""
        return {
            n: x.transpose(self.orders.get(n, tuple(range(x.ndim))))
            for n, x in self.tree(flat).items()
        }

    def from_jax(self, name: str, array: np.ndarray) -> np.ndarray:
        """An array of the JAX tree, flat, in PyTorch's order."""
        order = self.orders.get(name)
        return (array if order is None else array.transpose(np.argsort(order))).ravel()

    def tree(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """`flat` as arrays by name."""
        return {
            name: flat[self.owner == i].reshape(shape)
            for i, (name, shape) in enumerate(self.shapes.items())
        }

    def part(self, group: np.ndarray) -> Problem:
        """The problem of some tensors, (tensors,) True for those."""
        own = np.isin(self.owner, np.flatnonzero(group))
        return replace(
            self,
            shapes={n: x for (n, x), on in zip(self.shapes.items(), group) if on},
            start=self.start[own],
            gradients=self.gradients[:, own],
            owner=np.unique(self.owner[own], return_inverse=True)[1],
        )

    def nudged(self, seed: int) -> Problem:
        """The same, every number multiplied by 1 + eps or 1 - eps."""
        rng = np.random.default_rng(seed)
        start = self.start * nudges(rng, self.start.shape)
        gradients = self.gradients * nudges(rng, self.gradients.shape)
        return replace(self, start=start, gradients=gradients)


def nudges(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Factors of 1 + eps and 1 - eps, float64."""
    return 1 + np.finfo(np.float64).eps * np.sign(rng.uniform(-1, 1, shape))


@dataclass
class Settings:
    """Everything an update depends on but parameters and gradients."""

    kind: str  # of rules.DIRECTIONS or SHAPED
    rates: np.ndarray  # (steps + 1, tensors) learning rates
    decay: float = 0.0
    decayed: np.ndarray = field(default_factory=lambda: np.ones(1, bool))  # (tensors,)
    coupling: str = "coupled"  # "decoupled"; "constant": decoupled and not times the rate
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    eps_root: float = 0.0
    eps_hat: bool = False  # eps added before v's bias correction (Kingma and Ba, end of section 2)
    correct_first: bool = True
    correct_second: bool = True
    amsgrad: bool = False
    initial: float = 0.0  # of the squares' sum or mean
    centered: bool = False  # RMSprop divides by the deviation
    rate_decay: float = 0.0  # Adagrad's
    momentum: float = 0.0
    dampening: float = 0.0
    dampen_first: bool = False  # PyTorch does not dampen the first gradient
    nesterov: bool = False
    clip: float | None = None
    clip_eps: float = 1e-6
    clip_kind: str = "norm"  # "value": each element; "rms": each tensor's RMS
    decay_first: bool = False  # coupled decay is added before the clip
    every: int = 1  # gradients of so many steps make one update
    gather: str = "mean"  # or "sum"; "mean32": a running mean that is held in float32
    solve: str = ""  # "rates": a scale for each step's rates, from the port's trajectory
    rate_scale: float = 1.0
    scales: np.ndarray | None = None  # what `solve` found, (steps,)
    # Adafactor's
    decay_power: float = 0.8  # squares decay by 1 - step ** -power
    decay_offset: int = 0
    fixed_decay: float | None = None  # instead of that
    narrow_decay: bool = False  # computed in float32
    eps_floor: float = 0.0  # of the squares' root and of their mean
    eps_inside: float = 0.0  # added to the squares
    threshold: float | None = None  # of an update's root mean square
    parameter_scale: float | None = None  # the least; None: updates are not scaled by parameters
    rate_cap: bool = False  # no rate above 1 / sqrt(step)
    narrow_momentum: bool = False  # held in float32
    factored: np.ndarray = field(default_factory=lambda: np.zeros(1, int))  # (tensors,)
    # Muon's
    routed: np.ndarray = field(default_factory=lambda: np.zeros(1, bool))  # (tensors,); else Adam's
    own_routed: np.ndarray = field(default_factory=lambda: np.zeros(1, bool))  # the reference's
    others_decay: float = 0.0
    others_scale: float = 1.0  # of Adam's learning rates
    matrix_nesterov: bool = True
    correct_momentum: bool = False
    ns_steps: int = 5
    ns_a: float = 3.4445
    ns_b: float = -4.7750
    ns_c: float = 2.0315
    ns_table: np.ndarray | None = None  # (steps, 3), instead of these
    ns_eps: float = 1e-7
    ns_eps_added: bool = False  # else the larger one of the norm and it
    precondition: str = "frobenius"
    scale_rule: np.ndarray = field(default_factory=lambda: np.full(1, "original"))
    """(tensors,) of matrix_rules.matrix_scale"""
    scale_factor: float = 0.2


def simulate(s: Settings, problem: Problem, port: np.ndarray | None = None) -> np.ndarray:
    """Parameters before and after each step, (steps + 1, elements).

    With `s.solve` the rate of each step is the one that brings the step nearest to `port`'s, and
    each step starts from `port`'s parameters; the solved scales are left in `s.scales`.
    """
    p = problem.start.copy()
    state: State = {name: np.zeros_like(p) for name in ("m", "v", "top")}
    owner = problem.owner
    decay = _decays(s)[owner]
    all_rates = _rates(s)
    trajectory = [p]
    scales = []
    # Ratios between tensors' rates; the scale of each step is free.
    base = all_rates[np.argmax(all_rates.max(axis=1))]
    base = base / (base.max() or 1.0)
    with np.errstate(all="ignore"):
        for t, g in enumerate(_gathered(s, problem.gradients), 1):
            if s.solve and port is not None:
                p = port[t - 1]
            if g is None:  # nothing is updated yet
                trajectory.append(p)
                scales.append(np.nan)
                continue
            if s.coupling == "coupled" and s.decay_first:
                g = clipped(s, g + decay * p, owner)
            else:
                g = clipped(s, g, owner)
                if s.coupling == "coupled":
                    g = g + decay * p
            rates = all_rates[t - 1][owner]
            if s.kind in SHAPED:
                u = SHAPED[s.kind](s, g, state, t // s.every, (problem, p, s.rate_scale * rates))
            else:
                u = DIRECTIONS[s.kind](s, g, state, t // s.every)
            if s.coupling == "decoupled":
                u = u + decay * p
            constant = decay * p if s.coupling == "constant" else 0.0
            if s.solve and port is not None:
                direction = base[owner] * u
                scale = -((port[t] - p + constant) @ direction) / (direction @ direction)
                scales.append(scale)
                p = p - scale * direction - constant
            else:
                p = p - s.rate_scale * rates * u - constant
            trajectory.append(p)
    if s.solve:
        s.scales = np.array(scales)
    return np.array(trajectory)


def _decays(s: Settings) -> np.ndarray:
    """(tensors,) weight decay of each."""
    if s.kind != "muon":
        return np.where(s.decayed, s.decay, 0.0)
    return np.where(s.decayed, np.where(s.routed, s.decay, s.others_decay), 0.0)


def _rates(s: Settings) -> np.ndarray:
    """(steps + 1, tensors) learning rates; a tensor that changes between Muon and Adam takes those
    of its new group."""
    if s.kind != "muon" or np.array_equal(s.routed, s.own_routed):
        return s.rates
    columns = []
    for i, (now, own) in enumerate(zip(s.routed, s.own_routed)):
        group = np.flatnonzero(s.own_routed == now)
        columns.append(i if now == own or not group.size else int(group[0]))
    return s.rates[:, columns]


def _gathered(s: Settings, gradients: np.ndarray) -> Iterator[np.ndarray | None]:
    """Of each step the gradient of its update; None where it is only added to the others."""
    if s.every == 1:
        yield from gradients
        return
    total = np.zeros_like(gradients[0])
    for t, g in enumerate(gradients):
        k = t % s.every
        total = np.zeros_like(g) if k == 0 else total
        total = total + ((g - total) / (k + 1) if s.gather == "mean32" else g)
        if k + 1 == s.every:
            yield total / s.every if s.gather == "mean" else total
        else:
            if s.gather == "mean32":
                total = total.astype(np.float32).astype(np.float64)
            yield None


def period(trajectory: np.ndarray) -> int:
    """Of how many steps one moves anything, the last of them; 1 where that is no rule."""
    moved = np.flatnonzero((np.diff(trajectory, axis=0) != 0).any(axis=1))
    if not moved.size:
        return 1
    every = int(moved[0]) + 1
    wanted = np.arange(every - 1, len(trajectory) - 1, every)
    return every if np.array_equal(moved, wanted) else 1
