"""A PyTorch optimizer's settings, as its parameter groups hold them and as its steps show them."""

from __future__ import annotations

from collections.abc import Mapping
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
    (torch.optim.Adafactor, "adafactor"),
    (torch.optim.Muon, "muon"),
)
FLOOR = float(torch.finfo(torch.float32).eps)
"""What Adafactor takes for an eps of None where parameters are float32, as models run."""


class NotModelledError(Exception):
    """Why an optimizer has no model, in words."""


def kind_of(optimizer: torch.optim.Optimizer) -> str:
    """The kind of an optimizer, of rules.DIRECTIONS or model.SHAPED.

    Raises:
        NotModelledError: there is no model of it.
    """
    name = type(optimizer).__name__
    kind = next((k for c, k in _CLASSES if isinstance(optimizer, c)), "")
    if not kind and name.lower() == "lion":
        kind = "lion"
    if not kind:
        raise NotModelledError(
            f"{name} is not modelled (Adam, AdamW, SGD, RMSprop, Adagrad, Adafactor, Muon and a "
            "class Lion are)"
        )
    return kind


def settings_of(
    optimizers: Mapping[str, torch.optim.Optimizer],
    groups: Mapping[str, dict],
    rates: np.ndarray,
    problem: Problem,
    clipped: np.ndarray,
    trajectory: np.ndarray,
) -> Settings:
    """The settings of a run.

    Args:
        optimizers: by parameter, what was run; a subclass of one of PyTorch's is taken for it, and
            its model must then reproduce the run.
        groups: by parameter, its group before the first step.
        rates: (steps + 1, tensors) learning rates.
        problem: what it was run on.
        clipped: (steps, elements) gradients after the clip.
        trajectory: (steps + 1, elements) parameters.

    Raises:
        NotModelledError: there is no model of it.
    """
    kinds = [kind_of(o) for o in optimizers.values()]
    name = type(next(iter(optimizers.values()))).__name__
    own = list(groups.values())
    routed = np.array([k == "muon" for k in kinds])
    if len(set(kinds)) > 1 and set(kinds) != {"muon", "adam"}:
        raise NotModelledError(f"{' and '.join(sorted(set(kinds)))} together are not modelled")
    kind = "muon" if routed.any() else kinds[0]
    if any(g.get("maximize") for g in own):
        raise NotModelledError(f"{name}: maximize is not modelled")
    decay = np.array([float(g.get("weight_decay", 0.0)) for g in own])
    value, others = _values(name, decay, routed)
    settings = Settings(
        kind=kind,
        rates=rates,
        decay=value,
        decayed=_decayed(decay, routed),
        clip=_clip_of(problem.gradients, clipped),
        others_decay=others,
        routed=routed,
        own_routed=routed,
    )
    if kind == "muon":
        _muon(settings, _Common("Muon", [g for g, on in zip(own, routed) if on]))
        if not routed.all():
            _beside_muon(settings, _Common("Adam", [g for g, on in zip(own, routed) if not on]))
    else:
        _READ[kind](settings, _Common(name, own))
    if kind == "adafactor":
        settings.factored = np.array([int(len(x) > 1) for x in problem.shapes.values()])
    return _gathering(settings, problem, trajectory)


def _decayed(decay: np.ndarray, routed: np.ndarray) -> np.ndarray:
    """(tensors,) True for those that decay, or whose group of tensors has no decay at all."""
    found = decay != 0
    for group in (routed, ~routed) if routed.any() else (~routed,):
        if not decay[group].any():
            found = found | group
    return found


def _values(name: str, decay: np.ndarray, routed: np.ndarray) -> tuple[float, float]:
    """The weight decay, and that of Adam's tensors beside Muon's."""
    if not routed.any():
        routed = np.ones_like(routed)
    found = []
    for group in (decay[routed], decay[~routed]):
        if len(set(group[group > 0])) > 1:
            raise NotModelledError(f"{name}: parameter groups with several weight decays")
        found.append(float(group.max(initial=0.0)))
    return found[0], found[1]


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


def _adafactor(s: Settings, one: _Common) -> None:
    floor, least = one("eps")
    s.eps_floor = FLOOR if floor is None else float(floor)
    s.parameter_scale, s.rate_cap = float(least), True
    s.decay_power, s.threshold = -float(one("beta2_decay")), float(one("d"))
    s.coupling = "decoupled"


def _muon(s: Settings, one: _Common) -> None:
    s.momentum, s.matrix_nesterov = float(one("momentum")), bool(one("nesterov"))
    s.ns_a, s.ns_b, s.ns_c = (float(x) for x in one("ns_coefficients"))
    s.ns_steps, s.ns_eps = int(one("ns_steps")), float(one("eps"))
    rule = "rms" if one("adjust_lr_fn") == "match_rms_adamw" else "original"
    s.scale_rule = np.full(len(s.routed), rule)
    s.coupling = "decoupled"


def _beside_muon(s: Settings, one: _Common) -> None:
    """Adam's settings of the tensors that Muon has not."""
    _adam(s, one)
    if s.coupling == "coupled" and s.others_decay:
        raise NotModelledError("Adam with coupled weight decay beside Muon is not modelled")
    s.coupling = "decoupled"


_READ = {"sgd": _sgd, "adam": _adam, "rmsprop": _rmsprop, "adagrad": _adagrad, "lion": _lion,
         "adafactor": _adafactor}  # fmt: skip


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
