"""Activations: GELU's forms, slopes, and one activation instead of another."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F

from twinvit.port.call import Call
from twinvit.port.causes import Variant, cause
from twinvit.port.ops import ACTIVATIONS, ACTIVATIONS_BEGIN

Unary = Callable[[torch.Tensor], torch.Tensor]


def _tanh_form(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


def _erf_form(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x)


ROUNDED = "; its constant is rounded to float32"
ROOT_HALF, ROOT_2_PI = (float(np.float32(x)) for x in (0.5**0.5, (2 / np.pi) ** 0.5))


def _narrow_erf_form(x: torch.Tensor) -> torch.Tensor:
    """GELU as `jax.nn.gelu` computes it of float32: the root of a half is rounded."""
    return 0.5 * x * torch.special.erfc(-x * ROOT_HALF)


def _narrow_tanh_form(x: torch.Tensor) -> torch.Tensor:
    """GELU's tanh form as `jax.nn.gelu` computes it of float32: the root of 2 / pi is rounded."""
    return 0.5 * x * (1 + torch.tanh(ROOT_2_PI * (x + 0.044715 * x**3)))


def _quick(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


OTHERS: dict[str, Unary] = {
    "ReLU": F.relu,
    "SiLU (swish)": F.silu,
    "ReLU6": F.relu6,
    "leaky ReLU, slope 0.01": F.leaky_relu,
    "leaky ReLU, slope 0.2": lambda x: F.leaky_relu(x, 0.2),
    "leaky ReLU, slope 0.1": lambda x: F.leaky_relu(x, 0.1),
    "ELU": F.elu,
    "SELU": F.selu,
    "CELU": F.celu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "Mish": F.mish,
    "hard swish": F.hardswish,
    "hard sigmoid": F.hardsigmoid,
    "hard tanh": F.hardtanh,
    "squared ReLU": lambda x: F.relu(x) ** 2,
    "softsign": F.softsign,
    "log sigmoid": F.logsigmoid,
    "no activation": lambda x: x.clone(),
}


def _form(call: Call) -> str:
    """The reference's form of GELU, "erf" or "tanh"; "" for another activation."""
    if call.node.name == "gelu":
        return "tanh" if call.kwargs.get("approximate") == "tanh" else "erf"
    for name in ("erf", "tanh"):
        if call.node.name == name or call.leads_to(name, steps=6, before=("mm", "addmm")):
            return name
    return ""


def _guards(call: Call) -> bool:
    """True for a lower bound above zero, which keeps a divisor from zero and is no activation."""
    if call.node.name not in ("clamp", "clamp_min"):
        return False
    low = call.argument(1, call.kwargs.get("min"))
    return isinstance(low, int | float) and low > 0


def _at(
    call: Call, text: str, fn: Unary, solved: tuple[float, float] | None = None
) -> Iterator[Variant]:
    """The variant at the operation and, where the reference writes the activation out, at the end
    of the expression."""
    if _guards(call):
        return
    if call.node.name in ACTIVATIONS:
        yield Variant(text, lambda x, *_, **__: fn(x), solved=solved)
    for end, source in call.elementwise_regions():
        yield Variant(text, fn, refs=(source,), node=end, solved=solved)


@cause("gelu_tanh", on=ACTIVATIONS_BEGIN)
def gelu_tanh(call: Call) -> Iterator[Variant]:
    """The port computes GELU's tanh form (`jax.nn.gelu`'s default); the reference does not."""
    text = "the port computes GELU's tanh form (jax.nn.gelu's default)"
    advice = "; pass approximate=False for erf"
    constants = (ROOT_2_PI, (2 / np.pi) ** 0.5) if _form(call) == "tanh" else None
    yield from _at(call, text + advice, _tanh_form)
    yield from _at(call, f"{text}{ROUNDED}{advice}", _narrow_tanh_form, constants)


@cause("gelu_erf", on=ACTIVATIONS_BEGIN)
def gelu_erf(call: Call) -> Iterator[Variant]:
    """The port computes GELU with erf; the reference does not."""
    text = "the port computes GELU with erf; the reference computes another form"
    constants = (ROOT_HALF, 0.5**0.5) if _form(call) == "erf" else None
    yield from _at(call, text, _erf_form)
    yield from _at(call, text + ROUNDED, _narrow_erf_form, constants)


@cause("gelu_quick", on=ACTIVATIONS_BEGIN)
def gelu_quick(call: Call) -> Iterator[Variant]:
    """The port computes quick GELU, x * sigmoid(1.702 x); the reference does not."""
    yield from _at(
        call,
        "the port computes quick GELU, x * sigmoid(1.702 x); the reference computes another form",
        _quick,
    )


@cause("clip_missing", on=("clamp", "clamp_min", "clamp_max"))
def clip_missing(call: Call) -> Iterator[Variant]:
    """The port does not limit values that the reference clips."""
    yield Variant("the port does not clip these values", lambda x, *_, **__: x.clone())


@cause("activation", on=ACTIVATIONS_BEGIN)
def activation(call: Call) -> Iterator[Variant]:
    """The port uses another activation, or the same with another slope or bound."""
    name = call.node.name
    if name == "leaky_relu":
        for t in call.solve(lambda t: F.leaky_relu(call.args[0], t), 1e-4, 0.9):
            yield Variant(
                f"the port's leaky ReLU has slope {t:g}; "
                f"the reference's {call.argument(1, 0.01):g}",
                _leaky(t),
                solved=(t, call.argument(1, 0.01)),
            )
    if name in ("elu", "celu"):
        form = F.elu if name == "elu" else F.celu
        for t in call.solve(lambda t: form(call.args[0], t), 1e-3, 10.0):
            yield Variant(
                f"the port's {name.upper()} has alpha {t:g}; "
                f"the reference's {call.argument(1, 1.0):g}",
                lambda x, *_, t=t, **__: form(x, t),
                solved=(t, call.argument(1, 1.0)),
            )
    if name == "softplus":
        for t in call.solve(lambda t: F.softplus(call.args[0], t), 1e-2, 20.0):
            yield Variant(f"the port's softplus has beta {t:g}", _softplus(t))
    if name in ("hardtanh", "clamp", "clamp_min", "relu") and not _guards(call):
        for t in call.solve(lambda t: call.args[0].clamp(0, t), 0.5, 20.0):
            yield Variant(f"the port clips at {t:g}", _clip(t))
    if name == "sigmoid" and call.out.shape[-1:] > (1,):  # of one number softmax is 1
        text = "the port computes softmax over the last axis; the reference computes sigmoid"
        yield from _at(call, text, lambda x: x.softmax(-1))
    for text, fn in OTHERS.items():
        if name.startswith("clamp") and text == "no activation":  # clip_missing
            continue
        yield from _at(call, f"the port computes {text}; the reference computes {name}", fn)


def _leaky(t: float) -> Callable[..., torch.Tensor]:
    return lambda x, *_, **__: F.leaky_relu(x, t)


def _softplus(t: float) -> Callable[..., torch.Tensor]:
    return lambda x, *_, **__: F.softplus(x, t)


def _clip(t: float) -> Callable[..., torch.Tensor]:
    return lambda x, *_, **__: x.clamp(0, t)
