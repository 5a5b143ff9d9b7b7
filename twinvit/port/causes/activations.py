"""Activations: GELU's forms, slopes, and one activation in place of another."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from twinvit.port.call import Call
from twinvit.port.causes import Variant, cause

ACTIVATIONS = (
    "gelu",
    "relu",
    "silu",
    "leaky_relu",
    "hardtanh",
    "elu",
    "softplus",
    "mish",
    "hardswish",
    "hardsigmoid",
    "sigmoid",
    "tanh",
    "relu6",
    "prelu",
    "_prelu_kernel",
    "rrelu_with_noise",
    "clamp",
    "clamp_min",
    "erf",
    "pow",
    "celu",
    "selu",
)
Unary = Callable[[torch.Tensor], torch.Tensor]


def _tanh_form(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


def _erf_form(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x)


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


def _at(call: Call, text: str, fn: Unary) -> Iterator[Variant]:
    """The variant at the operation and, where the reference writes the activation out, at the end
    of the expression."""
    if call.node.name in (
        "gelu",
        "relu",
        "silu",
        "leaky_relu",
        "hardtanh",
        "elu",
        "softplus",
        "mish",
        "hardswish",
        "hardsigmoid",
        "sigmoid",
        "tanh",
        "_prelu_kernel",
        "clamp_min",
        "clamp",
    ):
        yield Variant(text, lambda x, *_, **__: fn(x))
    for end, source in call.elementwise_regions():
        yield Variant(text, fn, refs=(source,), node=end)


ANY = (*ACTIVATIONS, "mul", "div", "exp", "neg")


@cause("gelu_tanh", on=ANY)
def gelu_tanh(call: Call) -> Iterator[Variant]:
    """The port computes GELU's tanh form (`jax.nn.gelu`'s default); the reference does not."""
    yield from _at(
        call,
        "the port computes GELU's tanh form (jax.nn.gelu's "
        "default); pass approximate=False for erf",
        _tanh_form,
    )


@cause("gelu_erf", on=ANY)
def gelu_erf(call: Call) -> Iterator[Variant]:
    """The port computes GELU with erf; the reference does not."""
    yield from _at(
        call, "the port computes GELU with erf; the reference computes another form", _erf_form
    )


@cause("gelu_quick", on=ANY)
def gelu_quick(call: Call) -> Iterator[Variant]:
    """The port computes quick GELU, x * sigmoid(1.702 x); the reference does not."""
    yield from _at(
        call,
        "the port computes quick GELU, x * sigmoid(1.702 x); the reference computes another form",
        _quick,
    )


@cause("activation", on=ANY)
def activation(call: Call) -> Iterator[Variant]:
    """The port uses another activation, or the same with another slope or bound."""
    name = call.node.name
    if name == "leaky_relu":
        for t in call.solve(lambda t: F.leaky_relu(call.args[0], t), 1e-4, 0.9):
            yield Variant(
                f"the port's leaky ReLU has slope {t:g}; "
                f"the reference's {call.argument(1, 0.01):g}",
                _leaky(t),
            )
    if name in ("elu", "celu"):
        for t in call.solve(lambda t: F.elu(call.args[0], t), 1e-3, 10.0):
            yield Variant(
                f"the port's ELU has alpha {t:g}; the reference's {call.argument(1, 1.0):g}",
                _elu(t),
            )
    if name == "softplus":
        for t in call.solve(lambda t: F.softplus(call.args[0], t), 1e-2, 20.0):
            yield Variant(f"the port's softplus has beta {t:g}", _softplus(t))
    if name in ("hardtanh", "clamp", "clamp_min", "relu"):
        for t in call.solve(lambda t: call.args[0].clamp(0, t), 0.5, 20.0):
            yield Variant(f"the port clips at {t:g}", _clip(t))
    for text, fn in OTHERS.items():
        yield from _at(call, f"the port computes {text}; the reference computes {name}", fn)


def _leaky(t: float) -> Callable[..., torch.Tensor]:
    return lambda x, *_, **__: F.leaky_relu(x, t)


def _elu(t: float) -> Callable[..., torch.Tensor]:
    return lambda x, *_, **__: F.elu(x, t)


def _softplus(t: float) -> Callable[..., torch.Tensor]:
    return lambda x, *_, **__: F.softplus(x, t)


def _clip(t: float) -> Callable[..., torch.Tensor]:
    return lambda x, *_, **__: x.clamp(0, t)
