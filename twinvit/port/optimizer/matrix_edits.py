"""What a port of Adafactor or of Muon may compute otherwise than PyTorch's, one setting at a
time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from twinvit.port.optimizer.matrix_rules import LARGEST, LAST, WHOLE
from twinvit.port.optimizer.one_edit import Edit, Number, make

if TYPE_CHECKING:
    from twinvit.port.optimizer.model import Settings

CAUSES = {
    "clip_threshold": "another root mean square to clip Adafactor's updates at, or no clip",
    "factored": "Adafactor's mean of squares is factored on one side only, or over other axes",
    "parameter_scale": "Adafactor's updates are not scaled by the parameters' root mean square",
    "rate_cap": "Adafactor's learning rate is not kept below 1 / sqrt(step)",
    "ns_steps": "another number of Muon's Newton-Schulz steps",
    "ns_coefficients": "other coefficients of Muon's Newton-Schulz steps",
    "ns_norm": "another norm before Muon's Newton-Schulz steps",
    "muon_scale": "another rule for the scale of Muon's updates",
    "muon_tensors": "Muon has other tensors, and Adam the rest",
}
"""Those that only Adafactor and Muon have; the others are in `edits.CAUSES`."""
FACTORED = {
    WHOLE: "keeps the squares' mean of every element",
    LAST: "factors the squares' mean over the last two axes",
    LARGEST: "factors the squares' mean over the two largest axes",
}
SCALES = {
    "original": "sqrt(max(1, outputs / inputs))",
    "swapped": "sqrt(max(1, inputs / outputs))",
    "ratio": "sqrt(outputs / inputs)",
    "none": "nothing",
}
COEFFICIENTS = {
    "those of Optax's preset dion": (
        (4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046), (2.8366, -3.0525, 1.2012),
    ),
    "3.4445, -4.775, 2.0315": ((3.4445, -4.7750, 2.0315),),
    "2, -1.5, 0.5": ((2.0, -1.5, 0.5),),
    "15/8, -10/8, 3/8": ((15 / 8, -10 / 8, 3 / 8),),
    "3, -16/5, 6/5": ((3.0, -16 / 5, 6 / 5),),
    "1.5, -0.5, 0": ((1.5, -0.5, 0.0),),
}  # fmt: skip
_POWERS = (0.8, 0.5, 0.6, 0.7, 0.75, 0.85, 0.9, 0.95, 1.0)


def adafactor_edits(s: Settings) -> Iterator[Edit]:
    yield from _squares_edits(s)
    yield from _floor_edits(s)
    threshold = Number("threshold", (0.1, 0.5, 1.0, 2.0, 5.0, 10.0))
    if s.threshold is not None:
        yield make("clip_threshold", "d", "the port does not clip updates", threshold=None)
    yield make(
        "clip_threshold",
        "d",
        lambda a, b: (
            f"the port clips updates at a root mean square of {b.threshold:g}, the reference at "
            f"{a.threshold:g}"
        ),
        numbers=(threshold,),
        threshold=s.threshold or 1.0,
    )
    if s.parameter_scale is not None:
        yield make(
            "parameter_scale",
            "eps[1]",
            "the port does not multiply updates by the parameters' root mean square",
            parameter_scale=None,
        )
        yield make(
            "parameter_scale",
            "eps[1]",
            lambda a, b: (
                f"the port takes {b.parameter_scale:g} for the least root mean square of "
                f"parameters, the reference {a.parameter_scale:g}"
            ),
            numbers=(Number("parameter_scale", (1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)),),
        )
    if s.rate_cap:
        yield make(
            "rate_cap",
            "lr",
            "the port lets the learning rate exceed 1 / sqrt(step), the reference does not",
            rate_cap=False,
        )
    for narrow in (True, False):
        yield make(
            "momentum",
            "momentum",
            lambda a, b: f"the port has a momentum of {b.momentum:g}, the reference none",
            numbers=(Number("momentum", (0.5, 0.8, 0.9, 0.95, 0.99), "logit"),),
            momentum=0.9,
            narrow_momentum=narrow,
        )


def _squares_edits(s: Settings) -> Iterator[Edit]:
    yield make(
        "",
        "beta2_decay",
        "one side's decay of squares is computed in float32",
        narrow_decay=True,
    )
    yield make(
        "betas",
        "beta2_decay",
        lambda a, b: (
            f"the port's squares decay by 1 - step ** -{b.decay_power:g}, the reference's by "
            f"1 - step ** -{a.decay_power:g}"
        ),
        numbers=(Number("decay_power", _POWERS),),
    )
    yield make(
        "betas",
        "beta2_decay",
        lambda a, b: (
            f"the port's squares decay by {b.fixed_decay:g} at every step, the reference's by "
            f"1 - step ** -{a.decay_power:g}"
        ),
        numbers=(Number("fixed_decay", (0.9, 0.95, 0.98, 0.99, 0.999), "logit"),),
        fixed_decay=0.99,
        also=("decay_power", "decay_offset", "narrow_decay"),
    )
    for offset in (1, -1):
        way = "ahead" if offset > 0 else "behind"
        yield make(
            "betas",
            "beta2_decay",
            f"the port's decay of squares is one step {way} of the reference's",
            decay_offset=offset,
        )
    yield make(
        "factored",
        "squares",
        _factored_text,
        chosen=("factored", (WHOLE, LAST, LARGEST)),
        factored=s.factored,
    )


def _factored_text(a: Settings, b: Settings) -> str:
    apart = np.flatnonzero(a.factored != b.factored)
    theirs = {FACTORED[int(b.factored[i])] for i in apart}
    mine = {FACTORED[int(a.factored[i])] for i in apart}
    return f"the port {' or '.join(sorted(theirs))}, the reference {' or '.join(sorted(mine))}"


def _floor_edits(s: Settings) -> Iterator[Edit]:
    starts = (1e-30, 1e-20, 1e-16, 1e-12, 1e-10, 1e-8, 1e-7, 1e-6, 1e-3)
    if s.eps_floor:
        yield make(
            "eps_place",
            "eps[0]",
            f"the port has no least value {s.eps_floor:g} of the squares' root",
            eps_floor=0.0,
        )
        yield make(
            "eps_value",
            "eps[0]",
            lambda a, b: (
                f"the least value of the squares' root is {b.eps_floor:g} in the port, "
                f"{a.eps_floor:g} in the reference"
            ),
            numbers=(Number("eps_floor", starts),),
        )
    yield make(
        "eps_place",
        "eps[0]",
        lambda a, b: (
            f"the port adds eps {b.eps_inside:g} to the squares; the reference's squares have a "
            f"root of at least {a.eps_floor:g}"
        ),
        numbers=(Number("eps_inside", starts),),
        eps_inside=1e-30,
        eps_floor=0.0,
    )


def muon_edits(s: Settings) -> Iterator[Edit]:
    yield from _momentum_edits(s)
    yield from _iteration_edits(s)
    yield make(
        "muon_scale",
        "adjust_lr_fn",
        lambda a, b: (
            f"the port multiplies updates by {_scales(b, a)}, the reference by {_scales(a, b)}"
        ),
        chosen=("scale_rule", ("original", "none", "swapped", "ratio")),
        scale_rule=s.scale_rule,
    )
    yield make(
        "muon_scale",
        "adjust_lr_fn",
        lambda a, b: (
            f"the port multiplies updates by {b.scale_factor:g} * sqrt(max(outputs, inputs)), the "
            "reference by " + _scales(a, b)
        ),
        numbers=(Number("scale_factor", (0.2, 0.1, 0.4, 1.0)),),
        scale_rule=np.full(len(s.routed), "rms"),
    )
    yield make(
        "muon_tensors",
        "parameters",
        _routed_text,
        chosen=("routed", (False, True)),
        routed=s.routed,
    )


def _scales(s: Settings, other: Settings) -> str:
    """The scale of updates, of tensors where another has another one."""
    texts = dict(SCALES, rms=f"{s.scale_factor:g} * sqrt(max(outputs, inputs))")
    apart = s.scale_rule != other.scale_rule
    rules = s.scale_rule[apart & s.routed] if apart.any() else s.scale_rule[s.routed]
    return " or ".join(texts[rule] for rule in dict.fromkeys(rules.tolist()))


def _routed_text(a: Settings, b: Settings) -> str:
    more, less = bool((b.routed & ~a.routed).any()), bool((a.routed & ~b.routed).any())
    if more and less:
        return "the port gives other tensors to Muon than the reference"
    if more:
        return "the port gives tensors to Muon that the reference gives to Adam"
    return "the port gives tensors to Adam that the reference gives to Muon"


def _momentum_edits(s: Settings) -> Iterator[Edit]:
    yield make(
        "momentum",
        "momentum",
        lambda a, b: f"the port's momentum is {b.momentum:g}, the reference's {a.momentum:g}",
        numbers=(Number("momentum", (0.5, 0.8, 0.9, 0.95, 0.99), "logit"),),
    )
    yield make(
        "momentum", "momentum", f"the port has no momentum, the reference {s.momentum:g}",
        momentum=0.0,
    )  # fmt: skip
    on = "the reference" if s.matrix_nesterov else "the port"
    yield make(
        "nesterov",
        "nesterov",
        f"only {on} uses Nesterov's momentum",
        matrix_nesterov=not s.matrix_nesterov,
    )
    yield make(
        "bias_correction",
        "momentum",
        "the port corrects the bias of the momentum, and of the gradient beside it, the reference "
        "does not",
        correct_momentum=True,
    )


def _iteration_edits(s: Settings) -> Iterator[Edit]:
    for steps in range(1, 13):
        if steps != s.ns_steps:
            yield make(
                "ns_steps",
                "ns_steps",
                f"the port makes {steps} Newton-Schulz steps, the reference {s.ns_steps}",
                ns_steps=steps,
            )
    own = f"{s.ns_a:g}, {s.ns_b:g}, {s.ns_c:g}"
    for name, table in COEFFICIENTS.items():
        if table == ((s.ns_a, s.ns_b, s.ns_c),):
            continue
        text = f"the port's Newton-Schulz coefficients are {name}, the reference's {own}"
        if len(table) > 1:
            values: dict[str, object] = {"ns_table": np.array(table), "ns_steps": len(table)}
        else:
            values = dict(zip(("ns_a", "ns_b", "ns_c"), table[0]))
        yield make("ns_coefficients", "ns_coefficients", text, **values)  # type: ignore[arg-type]
    for name in ("ns_a", "ns_b", "ns_c"):
        value = float(getattr(s, name))
        sign = -1.0 if value < 0 else 1.0
        yield make(
            "ns_coefficients",
            "ns_coefficients",
            lambda a, b: (
                "the port's Newton-Schulz coefficients are "
                f"{b.ns_a:g}, {b.ns_b:g}, {b.ns_c:g}, the reference's {own}"
            ),
            numbers=(Number(name, (value,), "log" if sign > 0 else "negative"),),
        )
    for way in ("spectral", "aol", "schatten", "frobenius"):
        if way != s.precondition:
            yield make(
                "ns_norm",
                "Newton-Schulz",
                f"the port divides a matrix by its {way} norm before the iteration, the reference "
                f"by its {s.precondition} norm",
                precondition=way,
            )
    yield from _ns_eps_edits(s)


def _ns_eps_edits(s: Settings) -> Iterator[Edit]:
    number = Number("ns_eps", (1e-30, 1e-16, 1e-12, 1e-10, 1e-8, 1e-7, 1e-6, 1e-5, 1e-3))
    yield make(
        "eps_place",
        "eps",
        lambda a, b: (
            f"the port adds eps {b.ns_eps:g} to a matrix's norm, the reference takes the larger "
            f"one of the norm and {a.ns_eps:g}"
        ),
        numbers=(number,),
        ns_eps_added=True,
    )
    yield make(
        "eps_value",
        "eps",
        lambda a, b: f"the port's eps of the norm is {b.ns_eps:g}, the reference's {a.ns_eps:g}",
        numbers=(number,),
    )
    yield make("eps_value", "eps", "the port has no eps of a matrix's norm", ns_eps=0.0)


def others_edits(s: Settings) -> Iterator[Edit]:
    """What differs in the tensors that Adam has."""
    yield make(
        "learning_rate",
        "Adam's lr",
        lambda a, b: (
            f"the port's learning rate of Adam's tensors is {b.others_scale:g} times the "
            "reference's"
        ),
        numbers=(Number("others_scale", _ratios(s)),),
    )
    value = Number("others_decay", (1e-4, 1e-3, 1e-2, 0.1))
    if s.others_decay:
        yield make(
            "decay_value",
            "Adam's weight_decay",
            f"the port does not decay Adam's tensors, the reference by {s.others_decay:g}",
            others_decay=0.0,
        )
    yield make(
        "decay_value",
        "Adam's weight_decay",
        lambda a, b: (
            f"the port's weight decay of Adam's tensors is {b.others_decay:g}, the reference's "
            f"{a.others_decay:g}"
        ),
        numbers=(value,),
        others_decay=s.others_decay or 0.01,
    )


def _ratios(s: Settings) -> tuple[float, ...]:
    """Muon's rate over Adam's, as Optax takes one for both, and plain numbers."""
    first = s.rates[0]
    with np.errstate(all="ignore"):
        ratio = float(first[s.own_routed].max(initial=0) / first[~s.own_routed].max(initial=0))
    return (0.1, 0.5, 2.0, 10.0) if not np.isfinite(ratio) or not ratio else (ratio, 0.1, 0.5, 2.0)
