"""What a port may compute otherwise than a reference optimizer, one setting at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from twinvit.port.optimizer.matrix_edits import adafactor_edits, muon_edits, others_edits
from twinvit.port.optimizer.model import Settings
from twinvit.port.optimizer.one_edit import DECAYED, Edit, Number, make

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
    "centered": "RMSprop is centered on one side only",
    "initial_accumulator": "the mean or sum of squares begins at another number",
    "accumulation": "the sum for the mean of several steps' gradients, or of other steps",
}


def edits_of(s: Settings, every: int = 1) -> Iterator[Edit]:
    """What may differ from a reference. every: of how many steps the port moves at one."""
    yield from _KINDS[s.kind](s)
    yield from _decay_edits(s)
    yield from _clip_edits(s)
    yield from _rate_edits(s)
    yield from _gather_edits(s, every)


def _eps_edits(s: Settings, starts: tuple[float, ...]) -> Iterator[Edit]:
    """Epsilon of what divides by the root of a mean or sum of squares."""
    yield make(
        "eps_place",
        "eps",
        f"the port adds eps {s.eps:g} inside the square root, the reference outside",
        eps=0.0,
        eps_root=s.eps,
    )
    yield make(
        "eps_place",
        "eps",
        lambda a, b: (
            f"the port adds eps {b.eps_root:g} inside the square root, the reference "
            f"{a.eps:g} outside"
        ),
        numbers=(Number("eps_root", starts),),
        eps=0.0,
        eps_root=s.eps,
    )
    yield make(
        "eps_value",
        "eps",
        lambda a, b: f"the port's eps is {b.eps:g}, the reference's {a.eps:g}",
        numbers=(Number("eps", starts),),
    )


_EPS = (1e-12, 1e-10, 1e-8, 1e-7, 1e-6, 1e-5, 1e-3, 1e-2)


def _rmsprop_edits(s: Settings) -> Iterator[Edit]:
    yield from _eps_edits(s, _EPS)
    yield make(
        "betas",
        "alpha",
        lambda a, b: f"the port's decay of squares is {b.b2:g}, the reference's alpha {a.b2:g}",
        numbers=(Number("b2", (0.9, 0.95, 0.98, 0.99, 0.999), "logit"),),
    )
    on = "the reference" if s.centered else "the port"
    yield make("centered", "centered", f"only {on} is centered", centered=not s.centered)
    yield make(
        "bias_correction", "bias correction", "the port corrects the bias of the squares' mean",
        correct_second=True,
    )  # fmt: skip
    yield from _initial_edits(s)
    yield from _momentum_edits(s)
    if s.momentum:
        yield make("nesterov", "nesterov", "only the port uses Nesterov's momentum", nesterov=True)


def _initial_edits(s: Settings) -> Iterator[Edit]:
    yield make(
        "initial_accumulator",
        "initial_accumulator_value",
        lambda a, b: f"the port's squares begin at {b.initial:g}, the reference's at {a.initial:g}",
        numbers=(Number("initial", (1e-3, 0.01, 0.1, 1.0, 10.0)),),
        initial=s.initial or 0.1,
    )
    if s.initial:
        yield make(
            "initial_accumulator",
            "initial_accumulator_value",
            f"the port's squares begin at 0, the reference's at {s.initial:g}",
            initial=0.0,
        )


def _adagrad_edits(s: Settings) -> Iterator[Edit]:
    yield from _eps_edits(s, _EPS)
    yield from _initial_edits(s)
    if s.rate_decay:
        yield make(
            "learning_rate", "lr_decay", "the port does not decay the learning rate", rate_decay=0.0
        )


def _lion_edits(s: Settings) -> Iterator[Edit]:
    for setting, name in (("b1", "beta1"), ("b2", "beta2")):
        yield make(
            "betas",
            name,
            lambda a, b, x=setting, n=name: (  # type: ignore[misc]
                f"the port's {n} is {getattr(b, x):g}, the reference's {getattr(a, x):g}"
            ),
            numbers=(Number(setting, (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999), "logit"),),
        )


def _gather_edits(s: Settings, every: int) -> Iterator[Edit]:
    """Gradients of several steps that make one update."""
    ways = {
        "mean": f"takes the mean of every {every} gradients",
        "sum": f"takes the sum of every {every} gradients",
        "mean32": f"takes the mean of every {every} gradients, which it holds in float32",
    }
    if s.every == 1:
        mine = "the reference updates at every step"
    else:
        mine = f"the reference takes the {s.gather.removesuffix('32')} of every {s.every}"
    if every == 1 and s.every > 1:
        yield make("accumulation", "steps", f"the port updates at every step; {mine}", every=1)
    for gather, does in ways.items():
        if every == 1 or (every, gather) == (s.every, s.gather):
            continue
        held = every == s.every and {gather, s.gather} == {"mean", "mean32"}
        yield make(
            "" if held else "accumulation",
            "steps",
            "one side holds the sum of gradients in float32"
            if held
            else f"the port {does}; {mine}",
            every=every,
            gather=gather,
        )


def _adam_edits(s: Settings) -> Iterator[Edit]:
    place = "eps_place"
    yield make(
        place,
        "eps",
        f"the port adds eps {s.eps:g} inside the square root, the reference outside",
        eps=0.0,
        eps_root=s.eps,
    )
    yield make(
        place,
        "eps",
        lambda a, b: f"the port adds eps_root {b.eps_root:g} inside the square root",
        numbers=(Number("eps_root", (1e-15, 1e-12, 1e-10, 1e-8, 1e-6)),),
        eps_root=1e-8,
    )
    yield make(
        place,
        "eps",
        "the port adds eps before the second moment's bias correction, the reference after",
        eps_hat=True,
    )
    yield make(
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
        yield make(
            "bias_correction",
            "bias correction",
            f"the port lacks the bias correction {which}",
            correct_first=first,
            correct_second=second,
        )
    yield make(
        "betas",
        "beta1",
        lambda a, b: f"the port's beta1 is {b.b1:g}, the reference's {a.b1:g}",
        numbers=(Number("b1", (0.5, 0.8, 0.9, 0.95, 0.99), "logit"),),
    )
    yield make(
        "betas",
        "beta2",
        lambda a, b: f"the port's beta2 is {b.b2:g}, the reference's {a.b2:g}",
        numbers=(Number("b2", (0.9, 0.95, 0.98, 0.99, 0.999, 0.9999), "logit"),),
    )
    yield make("nesterov", "nesterov", "the port uses Nesterov's momentum (NAdam)", nesterov=True)
    on = "the reference" if s.amsgrad else "the port"
    yield make("amsgrad", "amsgrad", f"only {on} uses AMSGrad", amsgrad=not s.amsgrad)


def _momentum_edits(s: Settings) -> Iterator[Edit]:
    yield make(
        "momentum",
        "momentum",
        lambda a, b: f"the port's momentum is {b.momentum:g}, the reference's {a.momentum:g}",
        numbers=(Number("momentum", (0.5, 0.9, 0.95, 0.99), "logit"),),
        momentum=s.momentum or 0.9,
    )
    if s.momentum:
        yield make(
            "momentum",
            "momentum",
            f"the port has no momentum, the reference {s.momentum:g}",
            momentum=0.0,
        )


def _sgd_edits(s: Settings) -> Iterator[Edit]:
    yield from _momentum_edits(s)
    if not s.momentum:
        return
    on = "the reference" if s.nesterov else "the port"
    yield make(
        "nesterov", "nesterov", f"only {on} uses Nesterov's momentum", nesterov=not s.nesterov
    )
    if s.dampening:
        yield make(
            "dampening",
            "dampening",
            f"the reference dampens gradients by {s.dampening:g}, the port does not",
            dampening=0.0,
        )
    yield make(
        "dampening",
        "dampening",
        f"the port averages gradients (times {1 - s.momentum:g}, from the first step on)",
        dampening=s.momentum,
        dampen_first=True,
    )
    yield (
        make(
            "dampening",
            "dampening",
            "the port dampens the first gradient, too",
            dampen_first=True,
        )
        if s.dampening
        else make(
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
                yield make(
                    cause,
                    "weight_decay",
                    lambda a, b, does=does, some=some: (  # type: ignore[misc]
                        f"the port {does} ({b.decay:g}){some}; the reference has none"
                    ),
                    numbers=(value,),
                    chosen=DECAYED if some else None,
                    decay=1e-2,
                    coupling=kind,
                    decayed=np.ones(len(s.decayed), bool),
                )
        return
    yield make(
        "decay_value",
        "weight_decay",
        f"the port has no weight decay, the reference {s.decay:g}",
        decay=0.0,
    )
    yield make(
        "decay_value",
        "weight_decay",
        lambda a, b: f"the port's weight decay is {b.decay:g}, the reference's {a.decay:g}",
        numbers=(value,),
    )
    for kind, does in names.items():
        if kind != s.coupling:
            yield make(
                "decay_coupling",
                "weight_decay",
                f"the port {does}; the reference {names[s.coupling]}",
                coupling=kind,
            )
    if s.coupling == "coupled" and s.clip is not None:
        yield make(
            "decay_coupling",
            "weight_decay",
            "the port adds weight decay before the clip, the reference after",
            decay_first=True,
        )
    yield make(
        "decay_mask",
        "weight_decay",
        "the port decays other tensors than the reference",
        chosen=DECAYED,
        decayed=s.decayed,
    )


def _clip_edits(s: Settings) -> Iterator[Edit]:
    starts = (1e-6, 1e-4, 1e-2, 0.1, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 1e2, 1e3, 1e4, 1e6)
    value = Number("clip", starts)
    if s.clip is None:
        yield make(
            "clip_value",
            "clip",
            lambda a, b: (
                f"the port clips the gradient's norm at {b.clip:g}, the reference does not"
            ),
            numbers=(value,),
            clip=1.0,
            clip_eps=0.0,
        )
        yield make(
            "clip_kind",
            "clip",
            lambda a, b: f"the port clips each element at {b.clip:g}, the reference does not clip",
            numbers=(value,),
            clip=1.0,
            clip_kind="value",
        )
        return
    yield make(
        "clip_eps",
        "clip_grad_norm_",
        "clip_grad_norm_ adds 1e-6 to the norm before it divides, the port does not",
        clip_eps=0.0,
    )
    yield make(
        "clip_value",
        "clip_grad_norm_",
        lambda a, b: f"the port clips at {b.clip:g}, the reference at {a.clip:g}",
        numbers=(value,),
    )
    yield make(
        "clip_value", "clip_grad_norm_", "the port does not clip", clip=None, also=("clip_eps",)
    )
    yield make(
        "clip_kind",
        "clip_grad_norm_",
        f"the port clips each element at {s.clip:g}, the reference the norm",
        clip_kind="value",
        also=("clip_eps",),
    )
    yield make(
        "clip_kind",
        "clip_grad_norm_",
        f"the port clips each tensor's RMS at {s.clip:g}, the reference the gradient's norm",
        clip_kind="rms",
        also=("clip_eps",),
    )


def shifted(rates: np.ndarray) -> dict[str, np.ndarray]:
    """Schedules that are a step off, in words: (steps + 1, tensors) rates."""
    behind = "the port's schedule is one step behind: its first step has "
    return {
        "the port's schedule is one step ahead of the reference's": np.concatenate(
            [rates[1:], rates[-1:]]
        ),
        f"{behind}the reference's first rate": np.concatenate([rates[:1], rates[:-1]]),
        f"{behind}a rate of 0": np.concatenate([0 * rates[:1], rates[:-1]]),
    }


def _rate_edits(s: Settings) -> Iterator[Edit]:
    if np.ptp(s.rates, axis=0).any():
        for text, rates in shifted(s.rates).items():
            yield make("schedule_offset", "lr", text, rates=rates)
    yield make(
        "learning_rate",
        "lr",
        lambda a, b: f"the port's learning rate is {b.rate_scale:g} times the reference's",
        numbers=(Number("rate_scale", (0.1, 0.5, 2.0, 10.0)),),
        also=("rates",),
    )
    yield make(
        "learning_rate", "lr", _rates_text, late=True, also=("rates", "rate_scale"), solve="rates"
    )


def _rates_text(a: Settings, b: Settings) -> str:
    mine = a.rates.max(axis=1)[:-1]
    theirs = b.scales if b.scales is not None else mine
    shown = ", ".join(f"{x:.4g}" for x in theirs[:8])
    usual = ", ".join(f"{x:.4g}" for x in mine[:8])
    return f"the port's learning rates are {shown}, ...; the reference's {usual}, ..."


def _muon_edits(s: Settings) -> Iterator[Edit]:
    if s.routed.any():
        yield from muon_edits(s)
    if not s.routed.all():
        yield from others_edits(s)
        yield from _adam_edits(s)


_KINDS: dict[str, Callable[[Settings], Iterator[Edit]]] = {
    "adam": _adam_edits, "sgd": _sgd_edits, "rmsprop": _rmsprop_edits, "adagrad": _adagrad_edits,
    "lion": _lion_edits, "adafactor": adafactor_edits, "muon": _muon_edits,
}  # fmt: skip
