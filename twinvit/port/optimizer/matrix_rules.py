"""Updates that depend on the shapes of tensors: Adafactor's and Muon's, with every choice free.

Shazeer and Stern 2018 (Adafactor) as PyTorch and Optax compute it, Jordan 2024 (Muon), Liu et al.
2025 (its scale by the root mean square).
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import jax
import numpy as np

from twinvit.port.optimizer.rules import State, adam
from twinvit.port.record.jax_settings import on_cpu

if TYPE_CHECKING:
    from twinvit.port.optimizer.model import Problem, Settings

WHOLE, LAST, LARGEST = 0, 1, 2
"""How Adafactor holds a tensor's squares: element by element, factored over its last two axes, or
over its two largest ones, as Optax chooses them."""


def adafactor(
    s: Settings, g: np.ndarray, state: State, t: int, at: tuple[Problem, np.ndarray, np.ndarray]
) -> np.ndarray:
    """Adafactor's direction. `at`: the problem, parameters and rates, (elements,) each."""
    problem, p, rates = at
    beta = _squares_decay(s, t)
    u = np.empty_like(g)
    for i, own in enumerate(problem.slices):
        if own.start == own.stop:
            continue
        shape = problem.shape(i)
        x = g[own].reshape(shape)
        squares = _squares(s, x * x + s.eps_inside, beta, state, i, problem.axes(i))
        y = x / np.sqrt(np.maximum(squares, s.eps_floor**2))
        if s.threshold is not None:
            y = y / max(1.0, float(np.sqrt((y * y).mean())) / s.threshold)
        if s.parameter_scale is not None:
            y = y * max(s.parameter_scale, float(np.sqrt((p[own] ** 2).mean())))
        u[own] = y.ravel()
    if s.rate_cap:
        u = u * np.minimum(1.0, 1 / (math.sqrt(t) * np.where(rates > 0, rates, 1.0)))
    if not s.momentum:
        return u
    before = state["m"]
    if s.narrow_momentum:
        before = (np.float32(s.momentum) * before.astype(np.float32)).astype(np.float64)
    else:
        before = s.momentum * before
    moved = state["m"] = before + (1 - s.momentum) * rates * u
    return moved / np.where(rates > 0, rates, 1.0)


def _squares_decay(s: Settings, t: int) -> float:
    """The decay of the squares' mean at an update."""
    if s.fixed_decay is not None:
        return s.fixed_decay
    step = t + s.decay_offset
    if step <= 0:
        return 0.0
    if s.narrow_decay:
        return _narrow_decay(step, s.decay_power)
    return 1 - step**-s.decay_power


@functools.lru_cache(maxsize=4096)
def _narrow_decay(step: int, power: float) -> float:
    """1 - step ** -power as Optax computes it, in float32: NumPy's power rounds otherwise."""
    with on_cpu(x64=False):
        return float(_narrow_power(np.float32(step), np.float32(-power)))


_narrow_power = jax.jit(lambda step, power: 1.0 - step**power)


def _squares(
    s: Settings,
    new: np.ndarray,
    beta: float,
    state: State,
    i: int,
    largest: tuple[int, int] | None,
) -> np.ndarray:
    """The mean of a tensor's squares, as the product of its factors where they are kept."""
    axes = {WHOLE: None, LAST: (new.ndim - 2, new.ndim - 1), LARGEST: largest}[int(s.factored[i])]
    if axes is None or new.ndim < 2:
        name = f"squares {i}"
        state[name] = beta * state.get(name, 0.0) + (1 - beta) * new
        return np.asarray(state[name])
    columns, rows = axes
    for name, axis in ((f"rows {i}", rows), (f"columns {i}", columns)):
        mean = new.mean(axis, keepdims=True)
        state[name] = beta * state.get(name, 0.0) + (1 - beta) * mean
    total = state[f"rows {i}"].mean(columns, keepdims=True)
    return np.asarray(state[f"rows {i}"] * state[f"columns {i}"] / np.maximum(total, s.eps_floor))


def muon(
    s: Settings, g: np.ndarray, state: State, t: int, at: tuple[Problem, np.ndarray, np.ndarray]
) -> np.ndarray:
    """Muon's direction, and Adam's of the tensors that are not Muon's."""
    problem, _, _ = at
    others = state.setdefault("others", {n: np.zeros_like(g) for n in ("m", "v", "top")})
    u = s.others_scale * adam(s, g, others, t)
    m = state["m"] = s.momentum * state["m"] + (1 - s.momentum) * g
    first = 1 - s.momentum**t if s.correct_momentum else 1.0
    if s.matrix_nesterov:
        following = 1 - s.momentum ** (t + 1) if s.correct_momentum else 1.0
        x = s.momentum * m / following + (1 - s.momentum) * g / first
    else:
        x = m / first
    for i, own in enumerate(problem.slices):
        shape = problem.shape(i)
        if not s.routed[i] or len(shape) < 2 or own.start == own.stop:
            continue
        rows, columns = shape[0], math.prod(shape[1:])
        y = newton_schulz(s, x[own].reshape(rows, columns))
        u[own] = (matrix_scale(s, i, rows, columns) * y).ravel()
    return u


def matrix_scale(s: Settings, i: int, rows: int, columns: int) -> float:
    """What an orthogonalized update of tensor number `i`, (rows, columns), outputs first, is
    multiplied by."""
    rule = s.scale_rule[i]
    if rule == "rms":
        return s.scale_factor * math.sqrt(max(rows, columns))
    if rule == "swapped":
        return math.sqrt(max(1, columns / rows))
    if rule == "ratio":
        return math.sqrt(rows / columns)
    return math.sqrt(max(1, rows / columns)) if rule == "original" else 1.0


def newton_schulz(s: Settings, x: np.ndarray) -> np.ndarray:
    """The iteration that brings a matrix's singular values near to one."""
    turned = x.shape[0] > x.shape[1]
    x = x.T if turned else x
    if s.precondition in ("frobenius", "spectral"):
        with np.errstate(all="ignore"):
            norm = float(np.linalg.norm(x, None if s.precondition == "frobenius" else 2))
        below = norm + s.ns_eps if s.ns_eps_added else max(norm, s.ns_eps)
        x = x / (below or 1.0)
    for k in range(s.ns_steps):
        a, b, c = s.ns_table[k] if s.ns_table is not None else (s.ns_a, s.ns_b, s.ns_c)
        gram = x @ x.T
        if k == 0 and s.precondition == "aol":
            scale = np.abs(gram).sum(-1, keepdims=True).clip(1e-8) ** -0.5
            x, gram = x * scale, gram * scale * scale.T
        elif k == 0 and s.precondition == "schatten":
            factor = max(float(np.linalg.norm(gram)), 1e-8) ** -0.5
            x, gram = x * factor, gram * factor**2
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if turned else x
