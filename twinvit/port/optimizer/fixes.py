"""What to write on the Optax side, for each difference of an optimizer that has one answer."""

from __future__ import annotations

from twinvit.port.optimizer.matrix_rules import LAST, WHOLE
from twinvit.port.optimizer.model import Settings
from twinvit.port.optimizer.one_edit import Edit


def fix_of(edit: Edit, a: Settings) -> str:
    """What to write in the port for an edit of a reference of settings `a`; "" where the settings
    do not say it."""
    if not edit.cause:
        return ""
    own = _OF_KIND.get((a.kind, edit.cause, edit.setting))
    if own is not None:
        return own(a)
    general = _ANY.get(edit.cause)
    return general(a, edit) if general is not None else ""


def _betas(a: Settings, edit: Edit) -> str:
    name = {"beta1": "b1", "beta2": "b2", "alpha": "decay"}.get(edit.setting, "")
    value = a.b1 if edit.setting == "beta1" else a.b2
    return f"{name}={value:g}" if name else ""


def _eps(a: Settings, edit: Edit) -> str:
    if a.kind == "rmsprop":
        return f"eps={a.eps:g}, eps_in_sqrt=False"
    return f"eps={a.eps:g}, eps_root=0" if edit.cause == "eps_place" else f"eps={a.eps:g}"


def _coupling(a: Settings, edit: Edit) -> str:
    if a.coupling == "coupled":
        return f"optax.add_decayed_weights({a.decay:g}) before the optimizer"
    return "optax.add_decayed_weights before the scale by the learning rate"


def _correction(a: Settings, edit: Edit) -> str:
    if a.kind == "rmsprop":
        return "bias_correction=False"
    return "divide the moments by 1 - b1 ** t and 1 - b2 ** t"


def _clip(a: Settings, edit: Edit) -> str:
    return f"optax.clip_by_global_norm({a.clip:g})" if a.clip is not None else "without the clip"


def _dampening(a: Settings, edit: Edit) -> str:
    if a.dampening:
        return f"m = momentum * m + {1 - a.dampening:g} * g, the first m being g"
    return "m = momentum * m + g (optax.trace)"


def _rate(a: Settings, edit: Edit) -> str:
    if edit.setting == "Adam's lr":
        return f"adam_learning_rate={a.rates[0][~a.own_routed].max():g}"
    if (a.rates != a.rates[0]).any():
        return ""
    return f"learning_rate={a.rates[0].max():g}"


def _schedule(a: Settings, edit: Edit) -> str:
    return "schedule(count - 1)" if "ahead" in edit.text else "schedule(count + 1)"


def _gather(a: Settings, edit: Edit) -> str:
    if a.every == 1:
        return "without optax.MultiSteps"
    mean = a.gather.startswith("mean")
    return f"optax.MultiSteps(optimizer, {a.every}{'' if mean else ', use_grad_mean=False'})"


def _nesterov(a: Settings, edit: Edit) -> str:
    on = a.matrix_nesterov if a.kind == "muon" and "NAdam" not in edit.text else a.nesterov
    return f"nesterov={on}"


_ANY = {
    "betas": _betas,
    "eps_place": _eps,
    "eps_value": _eps,
    "bias_correction": _correction,
    "amsgrad": lambda a, e: (
        "optax.scale_by_amsgrad" if a.amsgrad else "optax.scale_by_adam without amsgrad"
    ),
    "decay_coupling": _coupling,
    "decay_value": lambda a, e: f"weight_decay={a.decay:g}",
    "decay_mask": lambda a, e: "mask= by the reference's parameter groups",
    "momentum": lambda a, e: f"momentum={a.momentum:g}",
    "nesterov": _nesterov,
    "dampening": _dampening,
    "clip_eps": lambda a, e: f"g * min(1, {a.clip:g} / (norm + 1e-6))",
    "clip_value": _clip,
    "clip_kind": _clip,
    "schedule_offset": _schedule,
    "learning_rate": _rate,
    "centered": lambda a, e: f"centered={a.centered}",
    "initial_accumulator": lambda a, e: (
        f"initial_accumulator_value={a.initial:g}"
        if a.kind == "adagrad"
        else f"initial_scale={a.initial:g}"
    ),
    "accumulation": _gather,
    "clip_threshold": lambda a, e: f"clipping_threshold={a.threshold:g}",
    "factored": lambda a, e: _factored(a),
    "parameter_scale": lambda a, e: (
        f"multiply_by_parameter_scale=True; the least scale is {a.parameter_scale:g}"
    ),
    "rate_cap": lambda a, e: "learning_rate=lambda count: min(lr, 1 / sqrt(count + 1))",
    "ns_steps": lambda a, e: f"ns_steps={a.ns_steps}",
    "ns_coefficients": lambda a, e: f"ns_coeffs=({a.ns_a:g}, {a.ns_b:g}, {a.ns_c:g})",
    "ns_norm": lambda a, e: f'preconditioning="{a.precondition}"',
    "muon_scale": lambda a, e: _scale(a),
    "muon_tensors": lambda a, e: "muon_weight_dimension_numbers= by the reference's groups",
}


def _factored(a: Settings) -> str:
    if (a.factored == WHOLE).all():
        return "factored=False"
    if (a.factored == LAST).any():
        return "factored=True, min_dim_size_to_factor=1"
    return ""


def _scale(a: Settings) -> str:
    if (a.scale_rule[a.routed] == "rms").all():
        return f"consistent_rms={a.scale_factor:g}"
    return "consistent_rms=None, and reduction_axis and output_axis by the layout of each matrix"


_OF_KIND = {
    ("adafactor", "betas", "beta2_decay"): lambda a: (
        f"decay_rate={a.decay_power:g}, decay_offset=0"
    ),
    ("adafactor", "eps_place", "eps[0]"): lambda a: (
        f"jnp.maximum(squares, {a.eps_floor:g} ** 2) before the root, eps=0"
    ),
    ("adafactor", "eps_value", "eps[0]"): lambda a: f"{a.eps_floor:g}",
    ("adafactor", "momentum", "momentum"): lambda a: "momentum=None",
    ("adafactor", "decay_value", "weight_decay"): lambda a: (
        f"optax.add_decayed_weights({a.decay:g}) times the learning rate"
        if a.decay
        else "weight_decay_rate=None"
    ),
    ("muon", "momentum", "momentum"): lambda a: f"beta={a.momentum:g}",
    ("muon", "bias_correction", "momentum"): lambda a: (
        "write the momentum without bias correction: beta * m + (1 - beta) * g, m from optax.ema("
        "debias=False)"
    ),
    ("muon", "eps_place", "eps"): lambda a: f"x / jnp.maximum(norm, {a.ns_eps:g})",
    ("muon", "eps_value", "eps"): lambda a: f"eps={a.ns_eps:g}",
    ("muon", "decay_value", "Adam's weight_decay"): lambda a: (
        f"adam_weight_decay={a.others_decay:g}"
    ),
}
