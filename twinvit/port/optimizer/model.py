"""Adam, AdamW and SGD as PyTorch computes them, in NumPy, with every setting free.

Kingma and Ba 2015 (Adam), Loshchilov and Hutter 2019 (AdamW), Sutskever et al. 2013 (momentum); the
formulas follow `torch.optim` and, where a setting says so, Optax.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np


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

    kind: str  # "adam", "sgd"
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
    momentum: float = 0.0
    dampening: float = 0.0
    dampen_first: bool = False  # PyTorch does not dampen the first gradient
    nesterov: bool = False
    clip: float | None = None
    clip_eps: float = 1e-6
    clip_kind: str = "norm"  # "value": each element; "rms": each tensor's RMS
    decay_first: bool = False  # coupled decay is added before the clip
    solve: str = ""  # "rates": a scale for each step's rates, from the port's trajectory
    rate_scale: float = 1.0
    scales: np.ndarray | None = None  # what `solve` found, (steps,)


def simulate(s: Settings, problem: Problem, port: np.ndarray | None = None) -> np.ndarray:
    """Parameters before and after each step, (steps + 1, elements).

    With `s.solve` the rate of each step is the one that brings the step nearest to `port`'s, and
    each step starts from `port`'s parameters; the solved scales are left in `s.scales`.
    """
    p = problem.start.copy()
    m, v, top = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    owner = problem.owner
    decay = np.where(s.decayed, s.decay, 0.0)[owner]
    trajectory = [p]
    scales = []
    # Ratios between tensors' rates; the scale of each step is free.
    base = s.rates[np.argmax(s.rates.max(axis=1))]
    base = base / (base.max() or 1.0)
    with np.errstate(all="ignore"):
        for t, gradient in enumerate(problem.gradients, 1):
            if s.solve and port is not None:
                p = port[t - 1]
            g = gradient
            if s.coupling == "coupled" and s.decay_first:
                g = _clip(s, g + decay * p, owner)
            else:
                g = _clip(s, g, owner)
                if s.coupling == "coupled":
                    g = g + decay * p
            if s.kind == "sgd":
                u, m = _momentum(s, g, m, t)
            else:
                m = s.b1 * m + (1 - s.b1) * g
                v = s.b2 * v + (1 - s.b2) * g * g
                u, top = _adam(s, g, m, v, top, t)
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


def _clip(s: Settings, g: np.ndarray, owner: np.ndarray) -> np.ndarray:
    if s.clip is None:
        return g
    if s.clip_kind == "value":
        return np.clip(g, -s.clip, s.clip)
    if s.clip_kind == "rms":
        count = np.maximum(1, np.bincount(owner))  # a tensor may be empty
        rms = np.sqrt(np.bincount(owner, weights=g * g) / count)[owner]
        return g / np.maximum(1.0, rms / s.clip)
    return g * min(1.0, s.clip / (np.linalg.norm(g) + s.clip_eps))


def _momentum(s: Settings, g: np.ndarray, m: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray]:
    if not s.momentum:
        return g, m
    first = t == 1 and not s.dampen_first
    m = g if first else s.momentum * m + (1 - s.dampening) * g
    return (g + s.momentum * m if s.nesterov else m), m


def _adam(
    s: Settings, g: np.ndarray, m: np.ndarray, v: np.ndarray, top: np.ndarray, t: int
) -> tuple[np.ndarray, np.ndarray]:
    first = 1 - s.b1**t if s.correct_first else 1.0
    second = 1 - s.b2**t if s.correct_second else 1.0
    if s.nesterov:  # Dozat 2016 as Optax has it
        following = 1 - s.b1 ** (t + 1) if s.correct_first else 1.0
        numerator = s.b1 * m / following + (1 - s.b1) * g / first
    else:
        numerator = m / first
    if s.amsgrad:
        v = top = np.maximum(top, v)
    if s.eps_hat:
        return numerator * np.sqrt(second) / (np.sqrt(v + s.eps_root) + s.eps), top
    return numerator / (np.sqrt(v / second + s.eps_root) + s.eps), top
