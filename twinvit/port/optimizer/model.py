"""Optimizers as PyTorch computes them, in NumPy, with every setting free.

The formulas of one update are in `rules`; weight decay is Loshchilov and Hutter's, 2019, or
added to the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from twinvit.port.optimizer.rules import DIRECTIONS, State, clipped


@dataclass(frozen=True)
class Problem:
    """Parameters and gradients, flat: start (elements,), gradients (steps, elements), float64."""

    shapes: dict[str, tuple[int, ...]]
    start: np.ndarray
    gradients: np.ndarray
    owner: np.ndarray  # (elements,) index of the tensor that an element belongs to

    @property
    def size(self) -> int:
        return len(self.start)

    def tree(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """`flat` as arrays by name."""
        return {
            name: flat[self.owner == i].reshape(shape)
            for i, (name, shape) in enumerate(self.shapes.items())
        }

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

    kind: str  # of rules.DIRECTIONS
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


def simulate(s: Settings, problem: Problem, port: np.ndarray | None = None) -> np.ndarray:
    """Parameters before and after each step, (steps + 1, elements).

    With `s.solve` the rate of each step is the one that brings the step nearest to `port`'s, and
    each step starts from `port`'s parameters; the solved scales are left in `s.scales`.
    """
    p = problem.start.copy()
    state: State = {name: np.zeros_like(p) for name in ("m", "v", "top")}
    owner = problem.owner
    decay = np.where(s.decayed, s.decay, 0.0)[owner]
    trajectory = [p]
    scales = []
    # Ratios between tensors' rates; the scale of each step is free.
    base = s.rates[np.argmax(s.rates.max(axis=1))]
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
                p = p - s.rate_scale * s.rates[t - 1][owner] * u - constant
            trajectory.append(p)
    if s.solve:
        s.scales = np.array(scales)
    return np.array(trajectory)


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
