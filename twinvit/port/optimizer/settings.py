"""A PyTorch optimizer's settings, as its parameter groups hold them and as it moved."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from twinvit.port.optimizer.model import Problem, Settings, period, simulate
from twinvit.port.optimizer.search import plain_number

_CLASSES = (
    (torch.optim.Adam, "adam"),  # AdamW is one, too
    (torch.optim.SGD, "sgd"),
    (torch.optim.RMSprop, "rmsprop"),
    (torch.optim.Adagrad, "adagrad"),
)


class NotModelledError(Exception):
    """Why an optimizer has no model, in words."""


def settings_of(
    optimizer: torch.optim.Optimizer,
    groups: dict[str, dict],
    rates: np.ndarray,
    problem: Problem,
    clipped: np.ndarray,
    trajectory: np.ndarray,
) -> Settings:
    """The settings of a run.

    Args:
        optimizer: what was run; a subclass of one of PyTorch's is taken for it, and its model must
            then reproduce the run.
        groups: by parameter, its group before the first step.
        rates: (steps + 1, tensors) learning rates.
        problem: what it was run on.
        clipped: (steps, elements) gradients after the clip.
        trajectory: (steps + 1, elements) parameters.

    Raises:
        NotModelledError: there is no model of it.
    """
    name = type(optimizer).__name__
    kind = next((k for c, k in _CLASSES if isinstance(optimizer, c)), "")
    if not kind and name.lower() == "lion":
        kind = "lion"
    if not kind:
        raise NotModelledError(
            f"{name} is not modelled (Adam, AdamW, SGD, RMSprop, Adagrad and a class Lion are)"
        )
    one = _Common(name, list(groups.values()))
    if one("maximize"):
        raise NotModelledError(f"{name}: maximize is not modelled")
    decay = np.array([float(g.get("weight_decay", 0.0)) for g in one.groups])
    settings = Settings(
        kind=kind,
        rates=rates,
        decay=float(decay.max()),
        decayed=decay == decay.max() if decay.max() else np.ones(len(decay), bool),
        clip=_clip_of(problem.gradients, clipped),
    )
    if decay.max() and len(set(decay[decay > 0])) > 1:
        raise NotModelledError(f"{name}: parameter groups with several weight decays")
    _READ[kind](settings, one)
    return _gathering(settings, problem, trajectory)


class _Common:
    """What all parameter groups have alike."""

    def __init__(self, name: str, groups: list[dict]) -> None:
        self.name, self.groups = name, groups

    def __call__(self, key: str) -> Any:
        values = {repr(g.get(key)): g.get(key) for g in self.groups}
        if len(values) > 1:
            raise NotModelledError(f"{self.name}: {key} differs between parameter groups")
        return next(iter(values.values()))


def _sgd(s: Settings, one: _Common) -> None:
    s.momentum = float(one("momentum"))
    s.dampening = float(one("dampening"))
    s.nesterov = bool(one("nesterov"))


def _adam(s: Settings, one: _Common) -> None:
    b1, b2 = one("betas")
    s.b1, s.b2 = float(b1), float(b2)
    s.eps = float(one("eps"))
    s.amsgrad = bool(one("amsgrad"))
    s.coupling = "decoupled" if one("decoupled_weight_decay") else "coupled"


def _rmsprop(s: Settings, one: _Common) -> None:
    s.b2, s.eps = float(one("alpha")), float(one("eps"))
    s.momentum, s.centered = float(one("momentum")), bool(one("centered"))
    s.correct_second = False


def _adagrad(s: Settings, one: _Common) -> None:
    s.eps, s.rate_decay = float(one("eps")), float(one("lr_decay"))
    s.initial = float(one("initial_accumulator_value"))


def _lion(s: Settings, one: _Common) -> None:
    if one("betas") is None:
        raise NotModelledError(f"{one.name}: its groups have no betas")
    b1, b2 = one("betas")
    s.b1, s.b2, s.coupling = float(b1), float(b2), "decoupled"


_READ = {"sgd": _sgd, "adam": _adam, "rmsprop": _rmsprop, "adagrad": _adagrad, "lion": _lion}


def _gathering(s: Settings, problem: Problem, trajectory: np.ndarray) -> Settings:
    """With the steps whose gradients make one update, and how they are brought together."""
    s.every = period(trajectory)
    if s.every > 1:
        far = {}
        for s.gather in ("mean", "sum", "mean32"):
            far[s.gather] = float(np.abs(simulate(s, problem) - trajectory).max())
        s.gather = min(far, key=far.__getitem__)
    return s


def _clip_of(before: np.ndarray, after: np.ndarray) -> float | None:
    """`max_norm` of a `clip_grad_norm_` that turned `before` into `after`; None without a clip."""
    norms = np.linalg.norm(before, axis=1)
    factors = np.linalg.norm(after, axis=1) / norms
    acted = np.abs(factors - 1) > 1e-12
    if not acted.any():
        return None
    values = factors[acted] * (norms[acted] + 1e-6)
    value = float(np.median(values))
    if np.abs(values / value - 1).max() > 1e-12:
        raise NotModelledError("the clip is not clip_grad_norm_'s")
    return plain_number(value, lambda x: abs(x / value - 1) < 1e-13)
