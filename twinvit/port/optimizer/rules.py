"""The direction of one update of each optimizer, as `torch.optim` and Optax compute it.

Kingma and Ba 2015 (Adam), Dozat 2016 (NAdam), Sutskever et al. 2013 (momentum), Tieleman and Hinton
2012 (RMSprop), Duchi et al. 2011 (Adagrad), Chen et al. 2023 (Lion).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from twinvit.port.optimizer.model import Settings

State = dict[str, Any]
"""What an optimizer keeps between updates: "m", "v" and "top" are arrays of all elements, zeros
before the first; what depends on shapes is kept by tensor."""


def clipped(s: Settings, g: np.ndarray, owner: np.ndarray) -> np.ndarray:
    if s.clip is None:
        return g
    if s.clip_kind == "value":
        return np.clip(g, -s.clip, s.clip)
    if s.clip_kind == "rms":
        count = np.maximum(1, np.bincount(owner))  # a tensor may be empty
        rms = np.sqrt(np.bincount(owner, weights=g * g) / count)[owner]
        return g / np.maximum(1.0, rms / s.clip)
    return g * min(1.0, s.clip / (np.linalg.norm(g) + s.clip_eps))


def sgd(s: Settings, g: np.ndarray, state: State, t: int) -> np.ndarray:
    """Momentum, dampening and Nesterov."""
    if not s.momentum:
        return g
    first = t == 1 and not s.dampen_first
    m = state["m"] = g if first else s.momentum * state["m"] + (1 - s.dampening) * g
    return g + s.momentum * m if s.nesterov else m


def adam(s: Settings, g: np.ndarray, state: State, t: int) -> np.ndarray:
    """Adam, AMSGrad, and NAdam as Optax has it."""
    m = state["m"] = s.b1 * state["m"] + (1 - s.b1) * g
    v = state["v"] = s.b2 * state["v"] + (1 - s.b2) * g * g
    first = 1 - s.b1**t if s.correct_first else 1.0
    second = 1 - s.b2**t if s.correct_second else 1.0
    if s.nesterov:
        following = 1 - s.b1 ** (t + 1) if s.correct_first else 1.0
        numerator = s.b1 * m / following + (1 - s.b1) * g / first
    else:
        numerator = m / first
    if s.amsgrad:
        v = state["top"] = np.maximum(state["top"], v)
    if s.eps_hat:
        return numerator * np.sqrt(second) / (np.sqrt(v + s.eps_root) + s.eps)
    return numerator / (np.sqrt(v / second + s.eps_root) + s.eps)


def rmsprop(s: Settings, g: np.ndarray, state: State, t: int) -> np.ndarray:
    """RMSprop, centered or not, with momentum of what it divides."""
    before = state["v"] if t > 1 else np.full_like(g, s.initial)
    v = state["v"] = s.b2 * before + (1 - s.b2) * g * g
    if s.centered:
        mean = state["m"] = s.b2 * state["m"] + (1 - s.b2) * g
        v = v - mean * mean
    second = 1 - s.b2**t if s.correct_second else 1.0
    u = g / (np.sqrt(v / second + s.eps_root) + s.eps)
    if not s.momentum:
        return u
    buffer = state["top"] = s.momentum * state["top"] + u
    return u + s.momentum * buffer if s.nesterov else buffer


def adagrad(s: Settings, g: np.ndarray, state: State, t: int) -> np.ndarray:
    """Adagrad with PyTorch's decay of the learning rate."""
    v = state["v"] = (state["v"] if t > 1 else np.full_like(g, s.initial)) + g * g
    return g / (np.sqrt(v + s.eps_root) + s.eps) / (1 + (t - 1) * s.rate_decay)


def lion(s: Settings, g: np.ndarray, state: State, t: int) -> np.ndarray:
    """The sign of an interpolation with the momentum."""
    u = np.sign(s.b1 * state["m"] + (1 - s.b1) * g)
    state["m"] = s.b2 * state["m"] + (1 - s.b2) * g
    return u


DIRECTIONS: dict[str, Callable[[Settings, np.ndarray, State, int], np.ndarray]] = {
    "sgd": sgd, "adam": adam, "rmsprop": rmsprop, "adagrad": adagrad, "lion": lion,
}  # fmt: skip
